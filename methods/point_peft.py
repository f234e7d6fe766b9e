"""Point-PEFT: prompts enriched by a memory bank, bottleneck adapters, and local aggregation over neighbouring patches.

Tang et al., AAAI 2024, arXiv 2310.03059; official `MAE/models/Point_MAE.py`, class PointTransformer_best, and `M2AE/`.
The default is the method without the accidents of its published code: there, blocks read rows of other samples of the
batch, interpolate at the wrong centres, and declare parameters that never train. `official_quirks` brings all of that
back (docs/methods.md lists it). The memory bank, whose builder was never released, holds the query feature of every
training cloud. What a block becomes is in methods/point_peft_block.py.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Self

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import UserError
from harness.geometry import Groups, farthest_points, gather_points, group
from harness.method import Adapted, Method, Probability, Task, Trainable
from harness.models.backbone import Backbone
from harness.models.encoder import Encoder, HierarchicalEncoder, PlainEncoder, Renames
from harness.models.head import Pool
from harness.models.transformer import Block, Tokens
from methods.point_peft_block import (
    Bottleneck,
    GatedAdapter,
    LocalAggregation,
    LocalAttention,
    Neighbourhoods,
    PointPEFTBlock,
    PromptedTokens,
    Prompts,
    ScaledAdapter,
    aligned,
    misaligned,
    neighbourhoods,
)

PUBLISHED_PROMPT_LAYERS = 6
"""Blocks with prompts of a plain encoder in the published code, however deep it is."""


class Query(nn.Module):
    """The frozen pre-trained encoder, whose pooled output looks things up in the memory bank.

    It is a copy: the method trains the biases of the encoder itself. It stays in eval mode whatever the model does.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Always evaluation mode."""
        return super().train(False)


class PlainQuery(Query):
    """Patches without class token, blocks, norm, maximum over the patches."""

    encoder: PlainEncoder

    def __init__(self, encoder: PlainEncoder, *, groups: int) -> None:
        super().__init__(encoder)
        self.groups = groups

    @torch.no_grad()
    def forward(self, patches: Groups) -> Tensor:
        """Patches -> (B, C). Farthest point sampling is greedy: fewer patches are the first of more."""
        neighbourhoods, centers, members, picks, _ = patches
        few = slice(self.groups)
        first = Groups(neighbourhoods[:, few], centers[:, few], members[:, few], picks[:, few])
        tokens = self.encoder.embed(first)
        tokens = replace(tokens, features=tokens.features[:, 1:], positions=tokens.positions[:, 1:])
        return self.encoder.transform(tokens).features.amax(1)


class HierarchicalQuery(Query):
    """The last level's tokens: their mean plus their maximum."""

    encoder: HierarchicalEncoder

    @torch.no_grad()
    def forward(self, patches: Groups) -> Tensor:
        """Patches -> (B, C)."""
        features = self.encoder.transform(self.encoder.embed(patches)).features
        return features.mean(1) + features.amax(1)


class PointPEFTEncoder(nn.Module):
    """Encoder, memory bank and second-level groupings: points in, tokens out."""

    def __init__(self, encoder: Encoder, query: Query, *, settings: PointPEFT, bank_items: int) -> None:
        super().__init__()
        self.encoder, self.query, self.neighbours = encoder, query, settings.bank_neighbours
        self.prompt_points: nn.Parameter | None = None
        if settings.official_quirks:
            self.prompt_points = nn.Parameter(nn.init.trunc_normal_(torch.empty(settings.prompts, 3), std=0.02))
        self.bank: Tensor
        self.register_buffer("bank", torch.zeros(encoder.dim, bank_items))

    @torch.no_grad()
    def build_bank(self, clouds: Iterable[Tensor]) -> None:
        """Fill the bank with the unit-length query feature of every training cloud, in index order."""
        if self.bank.shape[1] < self.neighbours:
            raise UserError(
                f"point_peft looks up {self.neighbours} neighbours in its memory bank, and there are only "
                f"{self.bank.shape[1]} training clouds; set method.prompts and method.bank_neighbours lower"
            )
        features = torch.cat([self.query(self.encoder.patches(points)) for points in clouds])
        self.bank.copy_(F.normalize(features, dim=1).T)

    @torch.no_grad()
    def remember(self, patches: Groups) -> Tensor | None:
        """(B, 2 + k, C): query feature, softmax-weighted sum of its k nearest columns of the bank, the columns.

        None of a bank without columns, which is the published code's way without memory: prompts are the learned ones.
        """
        if not self.bank.shape[1]:
            return None
        query = self.query(patches)  # (B, C)
        scores, indices = (F.normalize(query, dim=1) @ self.bank).topk(self.neighbours, dim=1)
        nearest = self.bank.T[indices]  # (B, k, C)
        mixture = (scores.softmax(1)[..., None] * nearest).sum(1)
        return torch.cat([query[:, None], mixture[:, None], nearest], dim=1)

    def prompted(self, points: Tensor) -> Tensor | None:
        """The clouds with the learned points in front, which the published code groups once more; else None."""
        if self.prompt_points is None:
            return None
        return torch.cat([self.prompt_points.expand(len(points), -1, -1), points], dim=1)

    def groupings(self, points: Tensor, patches: Groups) -> tuple[Neighbourhoods, ...]:
        """The second-level groupings that the blocks ask for."""
        raise NotImplementedError

    def forward(self, points: Tensor, keep: Sequence[int] = ()) -> Tokens:
        """Points (B, N, 3) -> Tokens after the final norm."""
        patches = self.encoder.patches(points)
        tokens = self.encoder.embed(patches)
        state: dict[str, Any] = {field.name: getattr(tokens, field.name) for field in fields(Tokens)}
        local, memory = self.groupings(points, patches), self.remember(patches)
        return self.encoder.transform(PromptedTokens(**state, local=local, memory=memory), keep)


class PlainPointPEFT(PointPEFTEncoder):
    """One grouping of the patches, for all blocks; in the published code the prompted blocks have another."""

    encoder: PlainEncoder

    def groupings(self, points: Tensor, patches: Groups) -> tuple[Neighbourhoods, ...]:
        """(of blocks with prompts, of those without)."""
        late = early = self._grouped(patches.centers)
        if (cloud := self.prompted(points)) is not None:
            centers = gather_points(cloud, farthest_points(cloud, self.encoder.groups))
            early = self._grouped(centers, prompts_are_rows=True)
        return early, late

    def _grouped(self, centers: Tensor, *, prompts_are_rows: bool = False) -> Neighbourhoods:
        local = group(centers, centers.shape[1] // 2, self.encoder.group_size // 2)
        return neighbourhoods(centers, local, prompts_are_rows=prompts_are_rows)


class HierarchicalPointPEFT(PointPEFTEncoder):
    """A level's patches are grouped as for the next level; the last level's in half as many groups."""

    encoder: HierarchicalEncoder

    def groupings(self, points: Tensor, patches: Groups) -> tuple[Neighbourhoods, ...]:
        """One per level."""
        if (cloud := self.prompted(points)) is not None:
            patches = self.encoder.patches(cloud)
        found = []
        while patches.above is not None:
            found.append(neighbourhoods(patches.centers, patches.above, prompts_are_rows=cloud is not None))
            patches = patches.above
        last = group(patches.centers, patches.centers.shape[1] // 2, self.encoder.group_sizes[-1])
        return (*found, neighbourhoods(patches.centers, last, prompts_are_rows=cloud is not None))


def _ranks_by_level(adapter: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Ranks of an adapter in the published code, by what the names of a level's blocks begin with."""
    found = (
        (re.fullmatch(rf"(.+)\.blocks\.\d+\.{adapter}\.ln1\.weight", name), shape) for name, shape in shapes.items()
    )
    return {match[1]: shape[0] for match, shape in found if match}


class PointPEFT(Method):
    """Bank-enriched prompts, two adapters and local aggregation in the blocks; biases train too."""

    official_names: ClassVar[Renames] = (
        (r"^encoder\.", ""),
        (r"^prompt_points$", "prompt_cor"),
        (r"\.block\.", "."),
        (r"\.unused\.1\.", ".prompts."),
        (r"\.prompts\.embeddings$", ".prompt_embeddings"),
        (r"\.prompts\.bank_adapter\.", ".cp_adapter."),
        (r"\.(?:first_adapter\.gate|unused\.0\.0)$", ".ad_gate"),
        (r"\.first_adapter\.adapter\.", ".adapter."),
        (r"\.last_adapter\.", ".adapter1."),
        (r"\.(cp_adapter|adapter1?)\.down\.", r".\1.ln1."),
        (r"\.(cp_adapter|adapter1?)\.up\.", r".\1.ln2."),
        (r"\.local\.norm\.", ".out_transform.0."),
    )
    official_names_after: ClassVar[Renames] = (
        (r"^h_encoder\.token_embed\.", "encoders."),
        (r"^h_encoder\.encoder_pos_embeds\.", "pos_embeds."),
        (r"^h_encoder\.encoder_blocks\.", "blocks."),
        (r"^blocks((?:\.\d+)?)\.blocks\.\d+\.local\.attention\.norm\.", r"blocks\1.norm3."),
        (r"^blocks((?:\.\d+)?)\.blocks\.\d+\.local\.attention\.", r"blocks\1.attn1."),
    )
    official_settings: ClassVar[dict[str, str | None]] = {
        "adapter_dim": "adapter_rank",
        "adapter_drop_path_rate": "adapter_dropout",
        "if_half": None,
        "hd_s1": None,
        "if_maxmean": None,
    }
    hierarchical_defaults: ClassVar[dict[str, Any]] = {"prompts": 16, "bank_neighbours": 14, "propagate": 0.2}

    version: ClassVar[int] = 2

    official_quirks: bool = False
    """Reproduce the published code, leaks across the batch and never-trained parameters included."""
    adapter_rank: PositiveInt | tuple[PositiveInt, ...] = 16
    """One for all blocks, or one per level."""
    adapter_dropout: Probability = 0.1
    adapter_scale: NonNegativeFloat = 0.7
    """Of the first adapter; a hierarchical encoder has a learned gate instead."""
    prompts: PositiveInt = 10
    """Per block; 16 on a hierarchical encoder unless given."""
    prompt_layers: NonNegativeInt | None = None
    """Blocks with prompts, from the first; half of all blocks when not given, all on a hierarchical encoder."""
    prompt_dropout: Probability = 0.1
    bank_neighbours: PositiveInt = 8
    """Columns of the bank that become prompts; two fewer than `prompts`."""
    bank_adapter_rank: PositiveInt = 8
    local_width: PositiveInt = 18
    propagate: NonNegativeFloat = 0.3
    """Weight of what a patch receives from its neighbourhoods; 0.2 on a hierarchical encoder unless given."""
    center: NonNegativeFloat = 0.3
    query_groups: PositiveInt = 64
    """Patches that the frozen query encoder sees, never more than the encoder's own; a hierarchical one sees all."""

    def on(self, backbone: Backbone) -> Self:
        """Published settings differ between the two kinds of encoders."""
        if not backbone.hierarchical:
            return super().on(backbone)
        pool: tuple[Pool, ...] = ("mean", "max")
        left = {k: v for k, v in self.hierarchical_defaults.items() if k not in self.model_fields_set}
        return self.model_copy(update=left | ({} if self.pool else {"pool": pool}))

    def untold(self, backbone: Backbone) -> tuple[str, ...]:
        """Constants of the published code; a hierarchical encoder has gates, and prompts in all blocks."""
        shared = ("propagate", "center")
        return shared if backbone.hierarchical else ("adapter_scale", "prompt_layers", *shared, "query_groups")

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        """Widths and numbers of what is added; that it is the published code, quirks and all."""
        ranks = _ranks_by_level("adapter", shapes)  # one per level, of which a plain encoder has one
        memory = _ranks_by_level("cp_adapter", shapes)
        if "prompt_cor" not in shapes or not ranks:
            return None
        prompts, levels = shapes["prompt_cor"][0], sorted(ranks)
        told: dict[str, Any] = {
            "official_quirks": True,
            "adapter_rank": tuple(ranks[level] for level in levels),
            "prompts": prompts,
            "bank_neighbours": prompts - 2,
            "bank_adapter_rank": memory[levels[-1]],
            "local_width": shapes[f"{levels[0]}.attn1.proj.weight"][1],
        }
        if len(levels) == 1:
            depth = sum(name.endswith(".prompt_embeddings") for name in shapes)
            told |= {"adapter_rank": ranks[levels[0]], "prompt_layers": min(PUBLISHED_PROMPT_LAYERS, depth)}
        return told

    def problems(self, backbone: Backbone) -> list[str]:
        """Widths that do not divide, ranks that are no number per level, prompts unlike the bank's neighbours."""
        found = []
        heads = getattr(backbone, "heads", 1)
        levels = len(getattr(backbone, "dims", (1,)))
        sizes = getattr(backbone, "group_sizes", (getattr(backbone, "group_size", 2),))
        if self.local_width % heads:
            found.append(f"local_width {self.local_width} is not a multiple of the encoder's {heads} heads")
        if isinstance(self.adapter_rank, tuple) and len(self.adapter_rank) != levels:
            found.append(f"adapter_rank has {len(self.adapter_rank)} numbers, the encoder {levels} levels")
        if self.bank_neighbours != self.prompts - 2:
            found.append(
                f"bank_neighbours must be prompts - 2 = {self.prompts - 2} (query, mixture and neighbours become "
                f"the prompts), got {self.bank_neighbours}"
            )
        if backbone.hierarchical and self.prompt_layers is not None:
            found.append("prompt_layers is for plain encoders; here all blocks have prompts")
        if min(sizes) < 2:
            found.append("needs patches of at least 2 points: neighbourhoods have half as many members")
        return found

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Wrap every block and the encoder; unfreeze its biases and the final norm."""
        if isinstance(encoder, HierarchicalEncoder):
            blocks = self._hierarchical_blocks(encoder)
            query: Query = HierarchicalQuery(encoder)
            kind: type[PointPEFTEncoder] = HierarchicalPointPEFT
        else:
            assert isinstance(encoder, PlainEncoder)
            blocks = self._plain_blocks(encoder)
            query = PlainQuery(encoder, groups=min(self.query_groups, encoder.groups))
            kind = PlainPointPEFT
        biases = [
            layer.get_parameter("bias")
            for block in encoder.plain_blocks
            for layer in (block.norm1, block.norm2, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        ]
        adapted = kind(encoder.with_parts(blocks=blocks), query, settings=self, bank_items=task.train_items)
        attentions = {id(block.local.attention): block.local.attention for block in blocks}
        added: list[Trainable] = [*attentions.values(), *(p for block in blocks for p in block.added)]
        if adapted.prompt_points is not None:
            added.append(adapted.prompt_points)
        return Adapted(
            adapted,
            added=added,
            unfrozen=[*encoder.class_parameters, encoder.norm, *biases],
            dead=[p for block in blocks for name, p in block.named_parameters() if name.startswith("unused.")],
            before_training=adapted.build_bank,
        )

    def _plain_blocks(self, encoder: PlainEncoder) -> list[PointPEFTBlock]:
        """Prompts, with the memory, in the first blocks. The published code declares them everywhere, and a gate."""
        attention = LocalAttention(dim=encoder.dim, width=self.local_width, heads=encoder.heads)
        count = encoder.depth // 2 if self.prompt_layers is None else self.prompt_layers
        (rank,) = self._ranks(1)
        blocks = []
        for index, block in enumerate(encoder.plain_blocks):
            prompted = index < count
            blocks.append(
                PointPEFTBlock(
                    block,
                    prompts=self._prompts(block, memory=True) if prompted else None,
                    first_adapter=ScaledAdapter(self._bottleneck(block, rank), scale=self.adapter_scale),
                    last_adapter=self._bottleneck(block, rank),
                    local=self._local(block, attention),
                    propagate=self.propagate,
                    place=0 if prompted else 1,
                    mask=aligned,
                )
            )
            if self.official_quirks:
                spare = [] if prompted else [self._prompts(block, memory=True)]
                blocks[-1].unused = nn.ModuleList([nn.ParameterList([torch.zeros(1)]), *spare])
        return blocks

    def _hierarchical_blocks(self, encoder: HierarchicalEncoder) -> list[PointPEFTBlock]:
        """Prompts in all blocks, with the memory in the last level's; gates."""
        ranks = (
            self.adapter_rank if isinstance(self.adapter_rank, tuple) else (self.adapter_rank,) * len(encoder.widths)
        )
        attentions = [LocalAttention(dim=dim, width=self.local_width, heads=encoder.heads) for dim in encoder.widths]
        levels = [level for level, depth in enumerate(encoder.depths) for _ in range(depth)]
        return [
            PointPEFTBlock(
                block,
                prompts=self._prompts(block, memory=level == levels[-1]),
                first_adapter=GatedAdapter(self._bottleneck(block, ranks[level])),
                last_adapter=self._bottleneck(block, ranks[level]),
                local=self._local(block, attentions[level]),
                propagate=self.propagate,
                place=level,
                mask=misaligned if self.official_quirks else aligned,
            )
            for level, block in zip(levels, encoder.plain_blocks, strict=True)
        ]

    def _ranks(self, levels: int) -> tuple[int, ...]:
        return self.adapter_rank if isinstance(self.adapter_rank, tuple) else (self.adapter_rank,) * levels

    def _prompts(self, block: Block, *, memory: bool) -> Prompts:
        adapter = self._bottleneck(block, self.bank_adapter_rank) if memory else None
        return Prompts(count=self.prompts, dim=block.dim, dropout=self.prompt_dropout, bank_adapter=adapter)

    def _bottleneck(self, block: Block, rank: int) -> Bottleneck:
        return Bottleneck(dim=block.dim, rank=rank, dropout=self.adapter_dropout)

    def _local(self, block: Block, attention: LocalAttention) -> LocalAggregation:
        return LocalAggregation(attention, dim=block.dim, drop_path=block.drop_path, center=self.center)
