"""Full fine-tuning: every parameter of the encoder trains. The upper reference of both papers' tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.method import Adapted, Method, Task
from harness.models.encoder import Encoder


class Full(Method):
    """Train the whole encoder and the head."""

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Nothing: no tensor is the method's own."""
        return {}

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """The encoder as it is; all of it trains."""
        return Adapted(encoder, unfrozen=[encoder])
