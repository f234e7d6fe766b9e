"""Point-MAE's transformer, in any size.

Pang et al., ECCV 2022, arXiv 2203.06604. `base` is the encoder of both papers; `tiny` is small enough to fine-tune
in seconds on one core and has pre-trained weights inside this package.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, model_validator

from harness.models.backbone import Backbone
from harness.models.encoder import Encoder

PRESETS: dict[str, dict[str, int]] = {
    "base": {"dim": 384, "depth": 12, "heads": 6, "groups": 128, "group_size": 32, "tokenizer_width": 256},
    "tiny": {"dim": 96, "depth": 4, "heads": 6, "groups": 32, "group_size": 16, "tokenizer_width": 32},
}


class PointMAE(Backbone):
    """Settings of a Point-MAE encoder; the preset gives every number that is not named."""

    preset: Literal["base", "tiny"] = "base"
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

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return PRESETS.get(str(given.get("preset", "base")), {}) | given

    @property
    def default_points(self) -> int:
        """16 points per group: 2048 for `base`, 1024 with 64 groups, 512 for `tiny`."""
        return 16 * self.groups

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

    def build(self, *, drop_path: float) -> Encoder:
        """The encoder with random weights."""
        return Encoder(
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            groups=self.groups,
            group_size=self.group_size,
            tokenizer_width=self.tokenizer_width,
            drop_path=drop_path,
        )
