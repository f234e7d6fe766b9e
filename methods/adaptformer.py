"""AdaptFormer: a scaled bottleneck beside the feed-forward part of every block.

Chen et al., NeurIPS 2022, arXiv 2205.13535, section 3.2: with x' the tokens after attention,
x = MLP(LN(x')) + s * ReLU(LN(x') W_down) W_up + x'. Official `models/adapter.py`; docs/methods.md says where that code
and this equation part.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from harness.method import Adapted, Method, Probability, Task
from harness.models.encoder import Encoder


class Bottleneck(nn.Module):
    """s * up(dropout(relu(down z))); `up` is zero at the start, so the block begins as it was pre-trained."""

    def __init__(self, *, dim: int, rank: int, dropout: float, scale: float | None) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(rank, dim)
        self.scale = nn.Parameter(torch.ones(1)) if scale is None else scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, z: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.scale * self.up(self.dropout(F.relu(self.down(z))))


class AdaptMLP(nn.Module):
    """The frozen feed-forward part and the bottleneck beside it, on the same normalised tokens."""

    def __init__(self, mlp: nn.Module, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.mlp, self.bottleneck = mlp, bottleneck

    def forward(self, z: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.mlp(z) + self.bottleneck(z)


class AdaptFormer(Method):
    """A scaled bottleneck beside the feed-forward part of every block; class token and position train too."""

    rank: PositiveInt = 64
    """Width of the bottleneck."""
    scale: PositiveFloat | Literal["learned"] = "learned"
    """`learned`: one number per block, 1 at the start. The paper's own constant is 0.1."""
    dropout: Probability = 0.1
    """Inside the bottleneck; the official code's."""

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Put a bottleneck beside the feed-forward part of every block."""
        scale = None if self.scale == "learned" else self.scale
        added = []
        for block in encoder.plain_blocks:
            bottleneck = Bottleneck(dim=block.dim, rank=self.rank, dropout=self.dropout, scale=scale)
            block.register_module("mlp", AdaptMLP(block.mlp, bottleneck))
            added.append(bottleneck)
        return Adapted(encoder, added=added, unfrozen=encoder.class_parameters)
