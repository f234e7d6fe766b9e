"""Point-MAE's transformer in any size, and the pre-trained models that share its shape.

Point-MAE: Pang et al., ECCV 2022, arXiv 2203.06604. ACT: Dong et al., ICLR 2023, arXiv 2212.08320. ReCon: Qi et al.,
ICML 2023, arXiv 2302.02318. Point-BERT: Yu et al., CVPR 2022, arXiv 2111.14819. `base` is the encoder of the papers;
`tiny` is small enough to fine-tune in seconds on one core.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from harness.models.backbone import Backbone
from harness.models.encoder import PlainEncoder
from harness.models.head import HeadKind
from harness.models.tokenizer import ProjectedTokenizer, Tokenizer

Preset = Literal["base", "tiny"]


class PointMAE(Backbone):
    """Settings of a Point-MAE encoder; the preset gives every number that is not named."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "base": {"dim": 384, "depth": 12, "heads": 6, "groups": 128, "group_size": 32, "tokenizer_width": 256},
        "tiny": {"dim": 96, "depth": 4, "heads": 6, "groups": 32, "group_size": 16, "tokenizer_width": 32},
    }

    untold: ClassVar[tuple[str, ...]] = ("heads",)
    official_settings: ClassVar[dict[str, str | None]] = {
        "trans_dim": "dim",
        "embed_dim": "dim",
        "encoder_dims": "dim",
        "num_heads": "heads",
        "num_group": "groups",
        "num_groups": "groups",
    }

    preset: Preset = "base"
    """The papers' encoder, or one small enough for a processor."""
    dim: PositiveInt = 384
    """Width of a token; 96 in `tiny`."""
    depth: PositiveInt = 12
    """Blocks; 4 in `tiny`."""
    heads: PositiveInt = 6
    """Attention heads of a block."""
    groups: PositiveInt = 128
    """Patches of a cloud; 32 in `tiny`."""
    group_size: PositiveInt = 32
    """Points of a patch; 16 in `tiny`."""
    tokenizer_width: PositiveInt = 256
    """Of the network that makes tokens of patches; 32 in `tiny`."""

    @property
    def default_points(self) -> int:
        """16 points per group: 2048 for `base`, 1024 with 64 groups, 512 for `tiny`."""
        return 16 * self.groups

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """All but the number of heads; patches leave no trace in the tensors."""
        blocks = [name for name in shapes if re.fullmatch(r"blocks\.blocks\.\d+\.norm1\.weight", name)]
        return {
            "dim": shapes["norm.weight"][0],
            "depth": len(blocks),
            "tokenizer_width": shapes["encoder.first_conv.3.weight"][0],
        }

    def problems(self, points: int) -> list[str]:
        """Heads that do not divide the width, more groups or larger groups than points, an odd tokenizer."""
        found = []
        if self.dim % self.heads:
            found.append(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if self.groups > points:
            found.append(f"{self.groups} groups need at least as many points, got {points}")
        if self.group_size > points:
            found.append(f"groups of {self.group_size} points need at least as many points, got {points}")
        if self.tokenizer_width % 2:
            found.append(f"tokenizer_width {self.tokenizer_width} must be even")
        return found

    def build(self, *, drop_path: float) -> PlainEncoder:
        """The encoder with random weights."""
        return PlainEncoder(
            self._tokenizer(),
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            groups=self.groups,
            group_size=self.group_size,
            drop_path=drop_path,
        )

    def _tokenizer(self) -> Tokenizer | ProjectedTokenizer:
        return Tokenizer(dim=self.dim, width=self.tokenizer_width)


class ACT(PointMAE):
    """Settings of an ACT encoder: Point-MAE's shape, pre-trained with a cross-modal teacher."""


class ReCon(PointMAE):
    """Settings of a ReCon encoder: Point-MAE's shape, pre-trained with reconstruction and contrast."""


class PointBERT(PointMAE):
    """Settings of a Point-BERT encoder: Point-MAE's shape, but tokens of another width are brought to its own."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "base": PointMAE.presets["base"] | {"tokenizer_dim": 256},
        "tiny": PointMAE.presets["tiny"] | {"tokenizer_dim": 64},
    }

    official_settings: ClassVar[dict[str, str | None]] = PointMAE.official_settings | dict.fromkeys(
        ("encoder_dims", "encoder_dim", "encoder_channel", "token_dim"), "tokenizer_dim"
    )

    tokenizer_dim: PositiveInt = 256
    """Width of the tokenizer's own tokens; 64 in `tiny`."""
    head: HeadKind = "two_layer"
    """Point-BERT's own two layers; `three_layer` is what the PEFT papers put on it."""

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """All but the number of heads; patches leave no trace in the tensors."""
        return super().sizes(shapes) | {"tokenizer_dim": shapes["reduce_dim.weight"][1]}

    def _tokenizer(self) -> ProjectedTokenizer:
        network = Tokenizer(dim=self.tokenizer_dim, width=self.tokenizer_width)
        return ProjectedTokenizer(network, width=self.tokenizer_dim, dim=self.dim)
