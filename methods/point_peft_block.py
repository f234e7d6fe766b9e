"""What Point-PEFT puts into a block: prompts, bottleneck adapters, and local aggregation over neighbouring patches.

methods/point_peft.py has the method, its source, and what it builds of these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import getitem

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.geometry import Groups
from harness.models.batchnorm import PointwiseNorm
from harness.models.recompute import for_products, recomputed
from harness.models.transformer import Block, DropPath, Tokens, by_heads


@dataclass(frozen=True)
class Neighbourhoods:
    """Second-level grouping: S groups of m patches, and how groups spread back to patches."""

    members: Tensor
    """(B, S, m) int64 rows of the flattened (B * R, C) token table."""
    centers: Tensor
    """(B, S) int64 rows of the same table."""
    spread: Tensor
    """(B, G, S): weight of each group for each patch, rows sum to one."""
    prompts_are_rows: bool = False
    """Whether the table's rows are [prompts, patches] (published code) or the patches alone."""


@dataclass(frozen=True)
class PromptedTokens(Tokens):
    """Tokens that also carry what Point-PEFT's blocks share."""

    local: tuple[Neighbourhoods, ...] = ()
    """The second-level groupings; every block knows which one is its own."""
    memory: Tensor | None = None
    """(B, P, C): query, its mixture of neighbours, and the neighbours themselves, from the memory bank."""


def neighbourhoods(centers: Tensor, local: Groups, *, prompts_are_rows: bool = False) -> Neighbourhoods:
    """The grouping of patch centres (B, G, 3), and the weights of the way back.

    Rows are offset by G per cloud, as published; where prompts are rows too, the table has more rows per cloud
    than that, and the published code reads across clouds.
    """
    batch, total, _ = centers.shape
    offset = total * torch.arange(batch, device=centers.device)
    distance = (centers[:, :, None] - local.centers[:, None]).square().sum(-1)  # (B, G, S)
    spread = 1 / (distance + 1e-8)
    return Neighbourhoods(
        members=local.members + offset[:, None, None],
        centers=local.picks + offset[:, None],
        spread=spread / spread.sum(-1, keepdim=True),
        prompts_are_rows=prompts_are_rows,
    )


class Bottleneck(nn.Module):
    """up(dropout(quick_gelu(down x))) with quick_gelu(t) = t * sigmoid(1.702 t)."""

    def __init__(self, *, dim: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, rank)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(rank, dim)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        h = self.down(x)
        return self.up(self.dropout(h * torch.sigmoid(1.702 * h)))


class LocalAttention(nn.Module):
    """norm, then attention of small width among the m members of one neighbourhood. One, shared by a level's blocks."""

    def __init__(self, *, dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5  # of the whole width, not per head, as published
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * width, bias=False)
        self.proj = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(R, m, C) -> (R, m, C)."""
        query, key, value = by_heads(self.qkv(for_products(self.norm, x)), self.heads)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return recomputed(self.proj, mixed.transpose(1, 2).flatten(2))


class LocalAggregation(nn.Module):
    """The geometry-aware adapter: every patch takes in what its neighbourhoods say, weighted by inverse distance."""

    def __init__(self, attention: LocalAttention, *, dim: int, drop_path: DropPath, center: float) -> None:
        super().__init__()
        self.attention, self.drop_path, self.center = attention, drop_path, center
        self.norm = PointwiseNorm(dim)

    def forward(self, rows: Tensor, local: Neighbourhoods) -> Tensor:
        """Token table rows (B, R, C) -> what each patch receives (B, G, C)."""
        table = rows.flatten(0, 1)
        members = recomputed(getitem, table, local.members.flatten(0, 1))  # (B * S, m, C)
        members = recomputed(torch.add, members, self.drop_path(self.attention(members)))
        gathered = members.amax(1).view(*local.centers.shape, -1)  # (B, S, C)
        values = F.gelu(self.norm(gathered)) + self.center * table[local.centers]
        return local.spread @ values


def aligned(tokens: Tokens) -> Tensor | None:
    """Which tokens attend to which, (B, 1, T, T) bool, or None for all."""
    return tokens.mask


def misaligned(tokens: Tokens) -> Tensor | None:
    """As published for Point-M2AE: the mask of the patches lies on the first tokens, which are prompts."""
    assert tokens.near is not None
    others = tokens.features.shape[1] - tokens.groups
    return F.pad(tokens.near, (0, others, 0, others), value=True)[:, None]


class ScaledAdapter(nn.Module):
    """x + y + s * adapter(y) of the residual stream x and the feed-forward output y (Point-MAE)."""

    def __init__(self, adapter: Bottleneck, *, scale: float) -> None:
        super().__init__()
        self.adapter, self.scale = adapter, scale

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, T, C), (B, T, C) -> (B, T, C)."""
        return x + y + self.scale * self.adapter(y)


class GatedAdapter(nn.Module):
    """x + gate * (y + adapter(y)); the gate is 0 at the start, and shuts off the feed-forward part (Point-M2AE)."""

    def __init__(self, adapter: Bottleneck) -> None:
        super().__init__()
        self.adapter = adapter
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, T, C), (B, T, C) -> (B, T, C)."""
        return x + self.gate * (y + self.adapter(y))


class Prompts(nn.Module):
    """Prompts of a block, joined by what the memory bank remembers where an adapter for that is given."""

    def __init__(self, *, count: int, dim: int, dropout: float, bank_adapter: Bottleneck | None) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(nn.init.trunc_normal_(torch.empty(count, dim), std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.bank_adapter = bank_adapter

    def forward(self, batch: int, memory: Tensor | None) -> Tensor:
        """Memory (B, P, C) -> prompts (B, P, C)."""
        prompts = self.dropout(self.embeddings.expand(batch, -1, -1))
        if self.bank_adapter is None or memory is None:
            return prompts
        return prompts + memory + self.bank_adapter(memory)


class PointPEFTBlock(nn.Module):
    """A frozen block with prompts of its own, two adapters and local aggregation; prompts live inside it only.

    `place` says which of the tokens' second-level groupings is the block's own.
    """

    def __init__(
        self,
        block: Block,
        *,
        prompts: Prompts | None,
        first_adapter: ScaledAdapter | GatedAdapter,
        last_adapter: Bottleneck,
        local: LocalAggregation,
        propagate: float,
        place: int,
        mask: Callable[[Tokens], Tensor | None],
    ) -> None:
        super().__init__()
        self.block, self.prompts, self.first_adapter, self.last_adapter = block, prompts, first_adapter, last_adapter
        self.local, self.propagate, self.place, self.mask = local, propagate, place, mask
        self.unused = nn.ModuleList()
        """What the published code declares here, and never trains."""

    @property
    def added(self) -> list[nn.Parameter]:
        """What this block adds, the shared attention aside."""
        frozen = {id(p) for part in (self.block, self.local.attention) for p in part.parameters()}
        return [p for p in self.parameters() if id(p) not in frozen]

    def forward(self, tokens: PromptedTokens) -> PromptedTokens:
        """[class, patches] -> [class, patches]."""
        block, local = self.block, tokens.local[self.place]
        tokens = replace(tokens, features=tokens.features + tokens.positions)
        if self.prompts is not None:
            prompts = self.prompts(len(tokens.features), tokens.memory)
            tokens = tokens.with_prompts(prompts, torch.zeros_like(prompts))

        x = tokens.features
        x = x + block.attn(block.norm1(x), self.mask(tokens))  # no drop path on this branch, as published
        x = self.first_adapter(x, block.drop_path(block.mlp(block.norm2(x))))

        rest, patches = x[:, : -tokens.groups], x[:, -tokens.groups :]
        received = self.local(x[:, tokens.class_tokens :] if local.prompts_are_rows else patches, local)
        x = torch.cat([rest, patches + self.propagate * received], dim=1)
        return replace(tokens, features=x + self.last_adapter(x)).without_prompts()
