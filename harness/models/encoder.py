"""The point-cloud transformers: points in, tokens out, built of parts that a method can replace."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from harness.geometry import Groups, gather_points, group
from harness.models.checkpointing import checkpointed
from harness.models.recompute import sparing
from harness.models.tokenizer import PositionEmbedding, Tokenizer
from harness.models.transformer import Block, Tokens

Renames = tuple[tuple[str, str], ...]
"""(pattern, replacement) of regular expressions, applied in order."""


class Encoder(nn.Module):
    """What every encoder is to a method: parts that can be taken hold of, and three steps from points to tokens.

    Parts: `tokenizers` (one per level), `class_token` and `class_position` (None where there is none), `blocks` (of
    all levels, in order), `norm`. A method changes parts in place, swaps them with `with_parts`, or wraps the encoder
    and calls `patches`, `embed` and `transform` itself.
    """

    dim: int
    """Width of the tokens that come out."""
    heads: int
    """Attention heads of every block."""
    widths: tuple[int, ...]
    """Width of the tokens of every level."""
    blocks: nn.ModuleList
    norm: nn.Module
    class_token: nn.Parameter | None
    class_position: nn.Parameter | None
    activation_checkpointing = False
    """Whether blocks run again in the backward pass of training, so that hardly anything is kept of them."""

    def initialise(self) -> None:
        """Random weights: Xavier-uniform linears, zero biases; class token and position normal with sd 0.02."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for parameter in self.class_parameters:
            nn.init.trunc_normal_(parameter, std=0.02)

    @property
    def class_parameters(self) -> list[nn.Parameter]:
        """Class token and position, where there are: most pre-training has none, so they train with most methods."""
        return [part for part in (self.class_token, self.class_position) if part is not None]

    @property
    def plain_blocks(self) -> list[Block]:
        """The blocks, before any method has wrapped them."""
        return [block for block in self.blocks if isinstance(block, Block)]

    @property
    @abstractmethod
    def tokenizers(self) -> Sequence[nn.Module]:
        """What makes tokens of patches, one per level."""

    @property
    @abstractmethod
    def no_decay(self) -> list[nn.Parameter]:
        """Parameters without weight decay beside the one-dimensional ones (official rule: `token` in the name)."""

    @property
    def new_at_fine_tuning(self) -> dict[str, str]:
        """Parameters that pre-trained weights may lack, and why: they stay as they are initialised."""
        return {}

    @property
    @abstractmethod
    def official_names(self) -> Renames:
        """Renames from this encoder's parameter names to those of the official fine-tuning code."""

    def with_parts(
        self,
        *,
        tokenizers: Sequence[nn.Module] | None = None,
        blocks: Sequence[nn.Module] | None = None,
        norm: nn.Module | None = None,
    ) -> Self:
        """This encoder with some parts replaced; the parts that stay are shared, not copied."""
        other = copy.copy(self)
        other._modules = dict(self._modules)  # copy.copy would share the table of parts itself
        if tokenizers is not None:
            other._take(tokenizers)
        if blocks is not None:
            other.blocks = nn.ModuleList(blocks)
        if norm is not None:
            other.norm = norm
        return other

    @abstractmethod
    def _take(self, tokenizers: Sequence[nn.Module]) -> None:
        """Put other tokenizers in the place of the own ones."""

    @abstractmethod
    def patches(self, points: Tensor) -> Groups:
        """Cut clouds (B, N, 3) into the encoder's (first) patches."""

    @abstractmethod
    def embed(self, patches: Groups) -> Tokens:
        """Patches -> the sequence before the first block."""

    def transform(self, tokens: Tokens, keep: Sequence[int] = ()) -> Tokens:
        """Run the blocks and the final norm; patch tokens after the blocks in `keep` go into `kept`, normed too."""
        for index, block in enumerate(self.blocks):
            tokens = self._before(index, tokens)
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                tokens = checkpointed(block, tokens)
            else:
                with sparing():
                    tokens = block(tokens)
            if index in keep:
                tokens = replace(tokens, kept=(*tokens.kept, tokens.patches))
        return replace(tokens, features=self.norm(tokens.features), kept=tuple(map(self.norm, tokens.kept)))

    def _before(self, index: int, tokens: Tokens) -> Tokens:
        """The tokens that block `index` gets, from those of the block before."""
        return tokens

    def forward(self, points: Tensor, keep: Sequence[int] = ()) -> Tokens:
        """Points (B, N, 3) -> Tokens after the final norm."""
        return self.transform(self.embed(self.patches(points)), keep)


def _drop_path_rates(last: float, depth: int) -> list[float]:
    return [last * index / max(1, depth - 1) for index in range(depth)]


def _tokenizer_names(before: str) -> Renames:
    """The tokenizer's layers are counted in the official code."""
    places = {"point1": "first_conv.0", "norm1": "first_conv.1", "point2": "first_conv.3"}
    places |= {"point3": "second_conv.0", "norm2": "second_conv.1", "point4": "second_conv.3"}
    return tuple((rf"^({before}){ours}\.", rf"\1{official}.") for ours, official in places.items())


class PlainEncoder(Encoder):
    """Patches -> tokens -> blocks -> norm, with a class token: Point-MAE and all that share its shape.

    Source: Pang et al., ECCV 2022, arXiv 2203.06604; official `models/Point_MAE.py`, class PointTransformer.
    """

    def __init__(
        self,
        tokenizer: nn.Module,
        *,
        dim: int,
        depth: int,
        heads: int,
        groups: int,
        group_size: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.depth, self.heads, self.widths = dim, depth, heads, (dim,)
        self.groups, self.group_size = groups, group_size
        self.tokenizer = tokenizer
        self.position: nn.Module = PositionEmbedding(dim=dim)
        self.class_token: nn.Parameter = nn.Parameter(torch.empty(1, 1, dim))
        self.class_position: nn.Parameter = nn.Parameter(torch.empty(1, 1, dim))
        rates = _drop_path_rates(drop_path, depth)
        self.blocks = nn.ModuleList(Block(dim=dim, heads=heads, drop_path=rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.initialise()

    @property
    def tokenizers(self) -> Sequence[nn.Module]:
        """The one tokenizer."""
        return [self.tokenizer]

    def _take(self, tokenizers: Sequence[nn.Module]) -> None:
        (self.tokenizer,) = tokenizers

    @property
    def no_decay(self) -> list[nn.Parameter]:
        """The class token."""
        return [self.class_token]

    @property
    def new_at_fine_tuning(self) -> dict[str, str]:
        """Class token and position: masked pre-training of patches has none."""
        return dict.fromkeys(("class_token", "class_position"), "new at fine-tuning, drawn at random")

    @property
    def official_names(self) -> Renames:
        """Point-MAE's, with Point-BERT's `reduce_dim`."""
        return (
            (r"^class_token$", "cls_token"),
            (r"^class_position$", "cls_pos"),
            (r"^tokenizer\.reduce\.", "reduce_dim."),
            (r"^tokenizer\.(?:network\.)?", "encoder."),
            *_tokenizer_names(r"encoder\."),
            (r"^position\.fc1\.", "pos_embed.0."),
            (r"^position\.fc2\.", "pos_embed.2."),
            (r"^blocks\.(?=\d)", "blocks.blocks."),
        )

    def patches(self, points: Tensor) -> Groups:
        """Cut clouds (B, N, 3) into `groups` patches of `group_size` points."""
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


class HierarchicalEncoder(Encoder):
    """Patches of patches, without a class token: every level's tokens are grouped into the tokens of the next.

    Attention is local: patches see each other when their centres are nearer than the level's radius.

    Source: Zhang et al., NeurIPS 2022, arXiv 2205.14401; official `models/Point_M2AE.py`, class H_Encoder.
    """

    def __init__(
        self,
        *,
        dims: Sequence[int],
        depths: Sequence[int],
        heads: int,
        groups: Sequence[int],
        group_sizes: Sequence[int],
        radii: Sequence[float],
        tokenizer_width: int = 256,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.heads, self.widths = dims[-1], heads, tuple(dims)
        self.depths, self.groups, self.group_sizes, self.radii = depths, groups, group_sizes, radii
        self.class_token = self.class_position = None
        first = Tokenizer(dim=dims[0], width=tokenizer_width)
        later = [
            Tokenizer(channels=below, hidden=below, width=below, mixed=dim, dim=dim) for below, dim in pairwise(dims)
        ]
        self.embeddings = nn.ModuleList([first, *later])
        self.positions = nn.ModuleList(PositionEmbedding(dim=dim, width=dim) for dim in dims)
        widths = [dim for dim, depth in zip(dims, depths, strict=True) for _ in range(depth)]
        rates = _drop_path_rates(drop_path, sum(depths))
        self.blocks = nn.ModuleList(
            Block(dim=dim, heads=heads, drop_path=rate) for dim, rate in zip(widths, rates, strict=True)
        )
        self.norm = nn.LayerNorm(self.dim)
        self.initialise()

    @property
    def starts(self) -> list[int]:
        """Index of every level's first block."""
        return [0, *accumulate(self.depths[:-1])]

    @property
    def tokenizers(self) -> Sequence[nn.Module]:
        """One per level."""
        return list(self.embeddings)

    def _take(self, tokenizers: Sequence[nn.Module]) -> None:
        self.embeddings = nn.ModuleList(tokenizers)

    @property
    def no_decay(self) -> list[nn.Parameter]:
        """The tokenizers: their official name, `token_embed`, has the word in it."""
        return list(self.embeddings.parameters())

    @property
    def new_at_fine_tuning(self) -> dict[str, str]:
        """The final norm: in pre-training every level has a norm of its own, on its way to the decoder."""
        return dict.fromkeys(("norm.weight", "norm.bias"), "new at fine-tuning, begins as one and zero")

    @property
    def official_names(self) -> Renames:
        """Point-M2AE's fine-tuning model: blocks are counted anew in every level."""
        places = [
            (rf"^blocks\.{start + index}\.", f"h_encoder.encoder_blocks.{level}.blocks.{index}.")
            for level, (start, depth) in enumerate(zip(self.starts, self.depths, strict=True))
            for index in range(depth)
        ]
        return (
            *places,
            (r"^embeddings\.", "h_encoder.token_embed."),
            *_tokenizer_names(r"h_encoder\.token_embed\.\d+\."),
            (r"^positions\.(\d+)\.fc1\.", r"h_encoder.encoder_pos_embeds.\1.0."),
            (r"^positions\.(\d+)\.fc2\.", r"h_encoder.encoder_pos_embeds.\1.2."),
        )

    def patches(self, points: Tensor) -> Groups:
        """Cut clouds (B, N, 3) into the first level's patches; their centres are grouped up to the last level."""
        return self._pyramid(points, 0)

    def _pyramid(self, points: Tensor, level: int) -> Groups:
        patches = group(points, self.groups[level], self.group_sizes[level])
        if level == len(self.groups) - 1:
            return patches
        return patches._replace(above=self._pyramid(patches.centers, level + 1))

    def embed(self, patches: Groups) -> Tokens:
        """Patches -> the first level's tokens."""
        features = self.embeddings[0](patches.neighbourhoods)
        return Tokens(features=features, class_tokens=0, **self._places(0, patches))

    def _places(self, level: int, patches: Groups) -> dict[str, Any]:
        """What tokens know of where they are."""
        centers = patches.centers
        distance = torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
        return {
            "positions": self.positions[level](centers),
            "centers": centers,
            "near": distance < self.radii[level],
            "above": patches.above,
        }

    def _before(self, index: int, tokens: Tokens) -> Tokens:
        """At the start of a level its tokens, made of those of the level below; prompts stay behind."""
        level = self.starts.index(index) if index in self.starts else 0
        if not level:
            return tokens
        patches = tokens.above
        assert patches is not None
        members = gather_points(tokens.patches, patches.members)  # (B, G, M, C of the level below)
        return replace(tokens, features=self.embeddings[level](members), **self._places(level, patches))
