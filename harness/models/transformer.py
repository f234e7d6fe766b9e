"""The pre-norm transformer block that all plain backbones share, built of public, named parts.

A method takes hold of `norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.activation, mlp.fc2`; what travels between
blocks is `Tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from harness.geometry import Groups
from harness.models.recompute import for_products, recomputed


@dataclass(frozen=True)
class Tokens:
    """The state between blocks: a sequence [class token, prompts..., patch tokens...] of length T.

    How many prompts there are follows from the lengths, so nothing has to be told when a method inserts some.
    """

    features: Tensor
    """(B, T, C)"""
    positions: Tensor
    """(B, T, C): added to the features at the entry of every block (Point-MAE)."""
    centers: Tensor
    """(B, G, 3): centres of the patches."""
    class_tokens: int = 1
    """Tokens in front that are no prompts: 1, or 0 where an encoder has no class token."""
    near: Tensor | None = None
    """(B, G, G) bool: which patches attend to which; None where all do."""
    above: Groups | None = None
    """How the patches are grouped into those of the next level (hierarchical encoders)."""
    kept: tuple[Tensor, ...] = ()
    """Patch tokens (B, G, C) after the blocks that the caller asked to keep; through the final norm in the end."""

    @property
    def groups(self) -> int:
        """Number of patch tokens G."""
        return self.centers.shape[1]

    @property
    def patches(self) -> Tensor:
        """Patch tokens (B, G, C)."""
        return self.features[:, -self.groups :]

    @property
    def prompts(self) -> Tensor:
        """Prompt tokens (B, P, C)."""
        return self.features[:, self.class_tokens : -self.groups]

    @property
    def class_token(self) -> Tensor:
        """Class token (B, C)."""
        assert self.class_tokens
        return self.features[:, 0]

    @property
    def mask(self) -> Tensor | None:
        """(B, 1, T, T) bool: which tokens attend to which. Class token and prompts see all and are seen by all."""
        if self.near is None:
            return None
        others = self.features.shape[1] - self.groups
        return F.pad(self.near, (others, 0, others, 0), value=True)[:, None]

    def with_prompts(self, prompts: Tensor, positions: Tensor) -> Self:
        """The sequence with new prompts (B, P, C) right after the class token; older prompts move behind them."""
        features, old, first = self.features, self.positions, self.class_tokens
        return replace(
            self,
            features=torch.cat([features[:, :first], prompts, features[:, first:]], dim=1),
            positions=torch.cat([old[:, :first], positions, old[:, first:]], dim=1),
        )

    def without_prompts(self) -> Self:
        """The sequence [class token, patch tokens]."""
        return replace(self, features=self._drop(self.features), positions=self._drop(self.positions))

    def _drop(self, sequence: Tensor) -> Tensor:
        if sequence.shape[1] == self.class_tokens + self.groups:
            return sequence
        return torch.cat([sequence[:, : self.class_tokens], sequence[:, -self.groups :]], dim=1)


class DropPath(nn.Module):
    """Stochastic depth per sample: a branch is dropped with probability `rate`, else scaled by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) -> (B, ...)."""
        if self.rate == 0 or not self.training:
            return branch
        keep = 1 - self.rate
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        return recomputed(torch.mul, branch, branch.new_empty(shape).bernoulli_(keep).div_(keep))


def without_chance(model: nn.Module) -> None:
    """Shut off dropout and drop path, in training mode too, in place."""
    for part in model.modules():
        if isinstance(part, DropPath):
            part.rate = 0.0
        elif isinstance(part, _DropoutNd):
            part.p = 0.0


def by_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a joint projection gave (B, T, 3 C) -> query, key and value, each (B, H, T, C/H).

    Taken apart on the middle axis, so that the backward pass puts the three gradients where they belong at once.
    """
    query, key, value = (part.transpose(1, 2) for part in qkv.unflatten(2, (3, heads, -1)).unbind(2))
    return query, key, value


class Attention(nn.Module):
    """Multi-head self-attention (B, T, C) -> (B, T, C); the joint projection has no bias, as in ViT of Point-MAE."""

    def __init__(self, *, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv: nn.Module = nn.Linear(dim, 3 * dim, bias=False)
        self.proj: nn.Module = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); `mask` (B, 1, T, T) bool says which tokens (last axis) each one attends to."""
        query, key, value = by_heads(self.qkv(x), self.heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class GELU(nn.GELU):
    """nn.GELU whose output is made again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...)."""
        return recomputed(F.gelu, x)


class MLP(nn.Module):
    """The feed-forward part: Linear, GELU, Linear."""

    def __init__(self, *, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.width = ratio * dim
        self.fc1: nn.Module = nn.Linear(dim, self.width)
        self.activation: nn.Module = GELU()
        self.fc2: nn.Module = nn.Linear(self.width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block. Point-MAE adds the positions again before every block."""

    def __init__(self, *, dim: int, heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.norm1: nn.Module = nn.LayerNorm(dim)
        self.attn = Attention(dim=dim, heads=heads)
        self.norm2: nn.Module = nn.LayerNorm(dim)
        self.mlp = MLP(dim=dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tokens) -> Tokens:
        """One block: attention and feed-forward branches on features plus positions."""
        x = tokens.features + tokens.positions
        x = x + self.drop_path(self.attn(for_products(self.norm1, x), tokens.mask))
        x = x + self.drop_path(self.mlp(for_products(self.norm2, x)))
        return replace(tokens, features=x)
