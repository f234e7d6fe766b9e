"""The plain point-cloud transformer: points in, tokens out, built of parts that a method can replace."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from harness.geometry import Groups, group
from harness.models.tokenizer import PositionEmbedding, Tokenizer
from harness.models.transformer import Block, Tokens


class Encoder(nn.Module):
    """Point-MAE's encoder as it is fine-tuned: patches -> tokens -> blocks -> norm, with a class token.

    Parts: `tokenizer`, `position`, `class_token`, `class_position`, `blocks`, `norm`. A method swaps parts with
    `with_parts`, or wraps the encoder and calls `patches`, `embed` and `transform` itself.

    Source: Pang et al., ECCV 2022, arXiv 2203.06604; official `models/Point_MAE.py`, class PointTransformer.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        groups: int,
        group_size: int,
        tokenizer_width: int = 256,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.depth, self.heads = dim, depth, heads
        self.groups, self.group_size = groups, group_size
        self.tokenizer: nn.Module = Tokenizer(dim=dim, width=tokenizer_width)
        self.position: nn.Module = PositionEmbedding(dim=dim)
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.class_position = nn.Parameter(torch.empty(1, 1, dim))
        rates = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        self.blocks = nn.ModuleList(Block(dim=dim, heads=heads, drop_path=rate) for rate in rates)
        self.norm: nn.Module = nn.LayerNorm(dim)
        self.initialise()

    def initialise(self) -> None:
        """Random weights: Xavier-uniform linears, zero biases; class token and position normal with sd 0.02."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.class_position, std=0.02)

    @property
    def plain_blocks(self) -> list[Block]:
        """The blocks, before any method has wrapped them."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    def no_decay(self) -> list[nn.Parameter]:
        """Parameters without weight decay beside the one-dimensional ones: the class token (official rule)."""
        return [self.class_token]

    def with_parts(
        self,
        *,
        tokenizer: nn.Module | None = None,
        blocks: Sequence[nn.Module] | None = None,
        norm: nn.Module | None = None,
    ) -> Self:
        """This encoder with some parts replaced; the parts that stay are shared, not copied."""
        other = copy.copy(self)
        other._modules = dict(self._modules)  # copy.copy would share the table of parts itself
        if tokenizer is not None:
            other.tokenizer = tokenizer
        if blocks is not None:
            other.blocks = nn.ModuleList(blocks)
        if norm is not None:
            other.norm = norm
        return other

    def patches(self, points: Tensor) -> Groups:
        """Cut clouds (B, N, 3) into the encoder's patches."""
        return group(points, self.groups, self.group_size)

    def embed(self, patches: Groups) -> Tokens:
        """Patches -> the sequence [class token, patch tokens] before the first block."""
        tokens, positions = self.tokenizer(patches.neighbourhoods), self.position(patches.centers)
        batch = len(tokens)
        return Tokens(
            features=torch.cat([self.class_token.expand(batch, -1, -1), tokens], dim=1),
            positions=torch.cat([self.class_position.expand(batch, -1, -1), positions], dim=1),
            centers=patches.centers,
        )

    def transform(self, tokens: Tokens, keep: Sequence[int] = ()) -> Tokens:
        """Run the blocks and the final norm; patch tokens after the blocks in `keep` go into `kept`."""
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in keep:
                tokens = replace(tokens, kept=(*tokens.kept, tokens.patches))
        return replace(tokens, features=self.norm(tokens.features))

    def forward(self, points: Tensor, keep: Sequence[int] = ()) -> Tokens:
        """Points (B, N, 3) -> Tokens after the final norm."""
        return self.transform(self.embed(self.patches(points)), keep)
