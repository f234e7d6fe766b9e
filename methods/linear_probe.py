"""Linear probe: the encoder is frozen, only the head trains.

The field's tables call this "linear probing" although their head has three layers; its 0.27 M parameters at
15 classes are that head (docs/protocol.md).
"""

from __future__ import annotations

from harness.method import Adapted, Method, Task
from harness.models.encoder import Encoder


class LinearProbe(Method):
    """Train the head on frozen features."""

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """The encoder as it is; none of it trains."""
        return Adapted(encoder)
