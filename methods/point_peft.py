"""Point-PEFT: prompts enriched by a memory bank, bottleneck adapters, and local aggregation over neighbouring patches.

Tang et al., AAAI 2024, arXiv 2310.03059; official `MAE/models/Point_MAE.py`, class PointTransformer_best. The
default is the method without the accidents of its published code: there, early blocks read rows of other samples
of the batch, interpolate at the wrong centres, and declare parameters that never train. `official_quirks` brings
all of that back (docs/methods.md lists it). The memory bank, whose builder was never released, holds the query
feature of every training cloud.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from harness.geometry import Groups, farthest_points, gather_points, group
from harness.method import Adapted, Method, Probability, Task, Trainable
from harness.models.backbone import Backbone
from harness.models.encoder import Encoder, PlainEncoder
from harness.models.tokenizer import PointwiseNorm
from harness.models.transformer import Block, DropPath, Tokens


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
    """Whether the table's rows are [prompts, patches] (published code, early blocks) or the patches alone."""


@dataclass(frozen=True)
class PromptedTokens(Tokens):
    """Tokens that also carry what Point-PEFT's blocks share."""

    early: Neighbourhoods | None = None
    late: Neighbourhoods | None = None
    memory: Tensor | None = None
    """(B, P, C): query, its mixture of neighbours, and the neighbours themselves, from the memory bank."""


def neighbourhoods(centers: Tensor, members: int, *, prompts_are_rows: bool = False) -> Neighbourhoods:
    """Group patch centres (B, G, 3) into G/2 neighbourhoods of `members` patches, and weigh the way back.

    Rows are offset by G per cloud, as published; where prompts are rows too, the table has more rows per cloud
    than that, and the published code reads across clouds.
    """
    batch, total, _ = centers.shape
    local = group(centers, total // 2, members)
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
    """norm, then attention of small width among the m members of one neighbourhood. One, shared by all blocks."""

    def __init__(self, *, dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5  # of the whole width, not per head, as published
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * width, bias=False)
        self.proj = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(R, m, C) -> (R, m, C)."""
        rows, members, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(rows, members, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.proj(mixed.transpose(1, 2).reshape(rows, members, -1))


class LocalAggregation(nn.Module):
    """The geometry-aware adapter: every patch takes in what its neighbourhoods say, weighted by inverse distance."""

    def __init__(self, attention: LocalAttention, *, dim: int, drop_path: DropPath, center: float) -> None:
        super().__init__()
        self.attention, self.drop_path, self.center = attention, drop_path, center
        self.norm = PointwiseNorm(dim)

    def forward(self, rows: Tensor, local: Neighbourhoods) -> Tensor:
        """Token table rows (B, R, C) -> what each patch receives (B, G, C)."""
        table = rows.flatten(0, 1)
        members = table[local.members.flatten(0, 1)]  # (B * S, m, C)
        members = members + self.drop_path(self.attention(members))
        gathered = members.amax(1).view(*local.centers.shape, -1)  # (B, S, C)
        values = F.gelu(self.norm(gathered)) + self.center * table[local.centers]
        return local.spread @ values


class PointPEFTBlock(nn.Module):
    """A frozen block with its own prompts (early blocks), two adapters and local aggregation."""

    def __init__(
        self,
        block: Block,
        attention: LocalAttention,
        *,
        dim: int,
        settings: PointPEFT,
        prompted: bool,
        spare: bool,
    ) -> None:
        super().__init__()
        self.block, self.prompted = block, prompted
        self.adapter_scale, self.propagate = settings.adapter_scale, settings.propagate
        self.adapter = Bottleneck(dim=dim, rank=settings.adapter_rank, dropout=settings.adapter_dropout)
        self.last_adapter = Bottleneck(dim=dim, rank=settings.adapter_rank, dropout=settings.adapter_dropout)
        self.local = LocalAggregation(attention, dim=dim, drop_path=block.drop_path, center=settings.center)
        self.prompts: nn.Parameter | None = None
        self.bank_adapter: Bottleneck | None = None
        if prompted or spare:
            self.prompts = nn.Parameter(nn.init.trunc_normal_(torch.empty(settings.prompts, dim), std=0.02))
            self.bank_adapter = Bottleneck(dim=dim, rank=settings.bank_adapter_rank, dropout=settings.adapter_dropout)
        self.prompt_dropout = nn.Dropout(settings.prompt_dropout)
        # The published code declares a gate per block that nothing reads.
        self.unused_gate = nn.Parameter(torch.zeros(1)) if settings.official_quirks else None

    @property
    def spare(self) -> list[nn.Parameter]:
        """Declared by the published code, and never trained."""
        found = [] if self.unused_gate is None else [self.unused_gate]
        if not self.prompted and self.prompts is not None and self.bank_adapter is not None:
            found += [self.prompts, *self.bank_adapter.parameters()]
        return found

    @property
    def added(self) -> list[nn.Parameter]:
        """What this block adds, the shared attention aside."""
        frozen = {id(p) for part in (self.block, self.local.attention) for p in part.parameters()}
        return [p for p in self.parameters() if id(p) not in frozen]

    def forward(self, tokens: PromptedTokens) -> PromptedTokens:
        """[class, patches] -> [class, patches]; prompts live inside the block only."""
        block = self.block
        tokens = replace(tokens, features=tokens.features + tokens.positions)
        local = tokens.late
        if self.prompted and self.prompts is not None and self.bank_adapter is not None:
            local = tokens.early
            prompts = self.prompt_dropout(self.prompts.expand(len(tokens.features), -1, -1))
            if tokens.memory is not None:
                prompts = prompts + tokens.memory + self.bank_adapter(tokens.memory)
            tokens = tokens.with_prompts(prompts, torch.zeros_like(prompts))
        assert local is not None

        x = tokens.features
        x = x + block.attn(block.norm1(x))  # no drop path on this branch, as published
        y = block.drop_path(block.mlp(block.norm2(x)))
        x = x + y + self.adapter_scale * self.adapter(y)

        rest, patches = x[:, : -tokens.groups], x[:, -tokens.groups :]
        received = self.local(x[:, 1:] if local.prompts_are_rows else patches, local)
        x = torch.cat([rest, patches + self.propagate * received], dim=1)
        return replace(tokens, features=x + self.last_adapter(x)).without_prompts()


class GlobalFeature(nn.Module):
    """The frozen pre-trained encoder as query: patches without class token, blocks, norm, max over patches.

    It is a copy: the method trains the biases of the encoder itself. It stays in eval mode whatever the model does.
    """

    def __init__(self, encoder: PlainEncoder, *, groups: int) -> None:
        super().__init__()
        self.encoder, self.groups = copy.deepcopy(encoder), groups
        self.train(False)

    def train(self, mode: bool = True) -> GlobalFeature:
        """Always evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, patches: Groups) -> Tensor:
        """Patches -> (B, C). Farthest point sampling is greedy: fewer patches are the first of more."""
        first = Groups(*(part[:, : self.groups] for part in patches))
        tokens = self.encoder.embed(first)
        tokens = replace(tokens, features=tokens.features[:, 1:], positions=tokens.positions[:, 1:])
        return self.encoder.transform(tokens).features.amax(1)


class PointPEFTEncoder(nn.Module):
    """Encoder, memory bank and second-level grouping: points in, tokens out."""

    def __init__(self, encoder: PlainEncoder, query: nn.Module, *, settings: PointPEFT, bank_items: int) -> None:
        super().__init__()
        self.encoder, self.query = encoder, query
        self.neighbours, self.members = settings.bank_neighbours, encoder.group_size // 2
        self.prompt_points: nn.Parameter | None = None
        if settings.official_quirks:
            self.prompt_points = nn.Parameter(nn.init.trunc_normal_(torch.empty(settings.prompts, 3), std=0.02))
        self.bank: Tensor
        self.register_buffer("bank", torch.zeros(encoder.dim, bank_items))

    @torch.no_grad()
    def build_bank(self, clouds: Iterable[Tensor]) -> None:
        """Fill the bank with the unit-length query feature of every training cloud, in index order."""
        features = torch.cat([self.query(self.encoder.patches(points)) for points in clouds])
        self.bank.copy_(F.normalize(features, dim=1).T)

    @torch.no_grad()
    def remember(self, query: Tensor) -> Tensor:
        """Query features (B, C) -> (B, 2 + k, C): query, softmax-weighted sum of its k nearest columns, the columns."""
        scores, indices = (F.normalize(query, dim=1) @ self.bank).topk(self.neighbours, dim=1)
        nearest = self.bank.T[indices]  # (B, k, C)
        mixture = (scores.softmax(1)[..., None] * nearest).sum(1)
        return torch.cat([query[:, None], mixture[:, None], nearest], dim=1)

    def forward(self, points: Tensor, keep: Sequence[int] = ()) -> Tokens:
        """Points (B, N, 3) -> Tokens after the final norm."""
        patches = self.encoder.patches(points)
        tokens = self.encoder.embed(patches)
        late = early = neighbourhoods(tokens.centers, self.members)
        if self.prompt_points is not None:
            cloud = torch.cat([self.prompt_points.expand(len(points), -1, -1), points], dim=1)
            centers = gather_points(cloud, farthest_points(cloud, tokens.groups))
            early = neighbourhoods(centers, self.members, prompts_are_rows=True)
        state: dict[str, Any] = {field.name: getattr(tokens, field.name) for field in fields(Tokens)}
        memory = self.remember(self.query(patches))
        return self.encoder.transform(PromptedTokens(**state, early=early, late=late, memory=memory), keep)


class PointPEFT(Method):
    """Bank-enriched prompts in the early blocks, two adapters and local aggregation in all; biases train too."""

    official_names = (
        (r"^encoder\.", ""),
        (r"^prompt_points$", "prompt_cor"),
        (r"^blocks\.\d+\.local\.attention\.norm\.", "blocks.norm3."),
        (r"^blocks\.\d+\.local\.attention\.", "blocks.attn1."),
        (r"\.block\.", "."),
        (r"\.bank_adapter\.", ".cp_adapter."),
        (r"\.last_adapter\.", ".adapter1."),
        (r"\.(cp_adapter|adapter1?)\.down\.", r".\1.ln1."),
        (r"\.(cp_adapter|adapter1?)\.up\.", r".\1.ln2."),
        (r"\.prompts$", ".prompt_embeddings"),
        (r"\.unused_gate$", ".ad_gate"),
        (r"\.local\.norm\.", ".out_transform.0."),
    )
    official_quirks: bool = False
    """Reproduce the published code, leaks across the batch and never-trained parameters included."""
    adapter_rank: PositiveInt = 16
    adapter_dropout: Probability = 0.1
    adapter_scale: NonNegativeFloat = 0.7
    prompts: PositiveInt = 10
    prompt_layers: NonNegativeInt | None = None
    """Blocks with prompts, from the first; half of all blocks when not given."""
    prompt_dropout: Probability = 0.1
    bank_neighbours: PositiveInt = 8
    """Columns of the bank that become prompts; two fewer than `prompts`."""
    bank_adapter_rank: PositiveInt = 8
    local_width: PositiveInt = 18
    propagate: NonNegativeFloat = 0.3
    center: NonNegativeFloat = 0.3
    query_groups: PositiveInt = 64
    """Patches that the frozen query encoder sees; never more than the encoder's own."""

    untold = ("adapter_scale", "prompt_layers", "propagate", "center", "query_groups")

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        """Widths and numbers of what is added; that it is the published code, quirks and all."""
        block = "blocks.blocks.0."
        if "prompt_cor" not in shapes or f"{block}prompt_embeddings" not in shapes:
            return None
        prompts = shapes["prompt_cor"][0]
        return {
            "official_quirks": True,
            "adapter_rank": shapes[f"{block}adapter.ln1.weight"][0],
            "prompts": prompts,
            "bank_neighbours": prompts - 2,
            "bank_adapter_rank": shapes[f"{block}cp_adapter.ln1.weight"][0],
            "local_width": shapes["blocks.attn1.proj.weight"][1],
        }

    def problems(self, backbone: Backbone) -> list[str]:
        """Widths that do not divide, prompts that do not match the bank's neighbours."""
        if backbone.hierarchical:
            return ["not built for hierarchical encoders yet"]
        found = []
        heads, group_size = getattr(backbone, "heads", 1), getattr(backbone, "group_size", 2)
        if self.local_width % heads:
            found.append(f"local_width {self.local_width} is not a multiple of the encoder's {heads} heads")
        if self.bank_neighbours != self.prompts - 2:
            found.append(
                f"bank_neighbours must be prompts - 2 = {self.prompts - 2} (query, mixture and neighbours become "
                f"the prompts), got {self.bank_neighbours}"
            )
        if group_size < 2:
            found.append("needs patches of at least 2 points: neighbourhoods have half as many members")
        return found

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Wrap every block and the encoder; unfreeze its biases and the final norm."""
        assert isinstance(encoder, PlainEncoder)
        query = GlobalFeature(encoder, groups=min(self.query_groups, encoder.groups))
        attention = LocalAttention(dim=encoder.dim, width=self.local_width, heads=encoder.heads)
        prompted = encoder.depth // 2 if self.prompt_layers is None else self.prompt_layers
        blocks = [
            PointPEFTBlock(
                block,
                attention,
                dim=encoder.dim,
                settings=self,
                prompted=index < prompted,
                spare=self.official_quirks,
            )
            for index, block in enumerate(encoder.plain_blocks)
        ]
        biases = [
            layer.get_parameter("bias")
            for block in encoder.plain_blocks
            for layer in (block.norm1, block.norm2, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        ]
        adapted = PointPEFTEncoder(encoder.with_parts(blocks=blocks), query, settings=self, bank_items=task.train_items)
        added: list[Trainable] = [attention, *(p for block in blocks for p in block.added)]
        if adapted.prompt_points is not None:
            added.append(adapted.prompt_points)
        return Adapted(
            adapted,
            added=added,
            unfrozen=[*encoder.class_parameters, encoder.norm, *biases],
            dead=[p for block in blocks for p in block.spare],
            before_training=adapted.build_bank,
        )
