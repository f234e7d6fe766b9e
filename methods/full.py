"""Full fine-tuning: every parameter of the encoder trains. The upper reference of both papers' tables."""

from __future__ import annotations

from torch import nn

from harness.method import Adapted, Method, Task
from harness.models.encoder import Encoder


class Full(Method):
    """Train the whole encoder and the head."""

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """The encoder as it is; all of it trains."""
        return Adapted(encoder, unfrozen=[encoder])

    def merged(self, encoder: nn.Module) -> Encoder:
        """The encoder itself."""
        assert isinstance(encoder, Encoder)
        return encoder
