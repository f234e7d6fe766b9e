"""Bottleneck adapter: a small residual MLP after the feed-forward part of every block.

Houlsby et al., ICML 2019, arXiv 1902.00751, in the placement of Pfeiffer et al., EACL 2021, arXiv 2005.00247:
one adapter per block, h <- h + up(gelu(down(h))), where h is the output of the feed-forward part.
"""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from harness.method import Adapted, Method, Probability, Task
from harness.models.encoder import Encoder


class Adapter(nn.Module):
    """h + up(gelu(down(h))); `up` is zero at the start, so the block begins as it was pre-trained."""

    def __init__(self, *, dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, width)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return h + self.up(self.dropout(F.gelu(self.down(h))))


class BottleneckAdapter(Method):
    """One bottleneck adapter per block; class token and position train too."""

    width: PositiveInt = 64
    dropout: Probability = 0.0

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Append an adapter to the feed-forward part of every block."""
        blocks = encoder.plain_blocks
        adapters = [Adapter(dim=block.dim, width=self.width, dropout=self.dropout) for block in blocks]
        for block, adapter in zip(blocks, adapters, strict=True):
            block.register_module("mlp", nn.Sequential(block.mlp, adapter))
        return Adapted(encoder, added=adapters, unfrozen=encoder.class_parameters)
