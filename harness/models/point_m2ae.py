"""Point-M2AE's hierarchical transformer, in any size.

Zhang et al., NeurIPS 2022, arXiv 2205.14401; official `models/Point_M2AE.py`, class Point_M2AE_ScanObjectNN. For
ModelNet40 the official model takes 1024 points, groups of 16, 8 and 8, the single head input `mean_plus_max` and label
smoothing 0.3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import count, pairwise, takewhile
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from harness.models.backbone import Backbone
from harness.models.encoder import HierarchicalEncoder, Renames
from harness.models.head import Pool

Sizes = Annotated[tuple[PositiveInt, ...], Field(min_length=2)]


class PointM2AE(Backbone):
    """Settings of a Point-M2AE encoder, one number per level; the preset gives all that are not named."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "base": {
            "dims": (96, 192, 384),
            "depths": (5, 5, 5),
            "heads": 6,
            "num_groups": (512, 256, 64),
            "group_sizes": (32, 16, 16),
            "local_radius": (0.32, 0.64, 1.28),
            "tokenizer_width": 256,
        },
        "tiny": {
            "dims": (24, 48, 96),
            "depths": (1, 1, 1),
            "heads": 6,
            "num_groups": (64, 32, 16),
            "group_sizes": (16, 8, 8),
            "local_radius": (0.32, 0.64, 1.28),
            "tokenizer_width": 32,
        },
    }
    pool: ClassVar[tuple[Pool, ...]] = ("mean", "max_without_first")
    hierarchical: ClassVar[bool] = True
    untold: ClassVar[tuple[str, ...]] = ("heads",)
    spellings: ClassVar[Renames] = (  # Point-PEFT's copy of the model
        (r"^encoders\.", "h_encoder.token_embed."),
        (r"^pos_embeds\.", "h_encoder.encoder_pos_embeds."),
        (r"^blocks\.(?=\d)", "h_encoder.encoder_blocks."),
    )
    official_settings: ClassVar[dict[str, str | None]] = {
        "encoder_dims": "dims",
        "encoder_depths": "depths",
        "num_heads": "heads",
        "num_group": "num_groups",
        "group_size": "group_sizes",
    }

    preset: Literal["base", "tiny"] = "base"
    """The paper's encoder, or one small enough for a processor."""
    dims: Sizes = (96, 192, 384)
    """Widths of the tokens."""
    depths: Sizes = (5, 5, 5)
    """Blocks."""
    heads: PositiveInt = 6
    """Attention heads of a block."""
    num_groups: Sizes = (512, 256, 64)
    """Patches of a cloud; then patches of the level below."""
    group_sizes: Sizes = (32, 16, 16)
    """Points of a patch; then patches of the level below."""
    local_radius: Annotated[tuple[PositiveFloat, ...], Field(min_length=2)] = (0.32, 0.64, 1.28)
    """Patches attend to each other when their centres are nearer."""
    tokenizer_width: PositiveInt = 256
    """Of the network that makes the first level's tokens."""

    @property
    def default_points(self) -> int:
        """Four points per patch of the first level: 2048 for `base`, 256 for `tiny`."""
        return 4 * self.num_groups[0]

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Widths and depths; heads, patches and radii leave no trace in the tensors."""
        last = "h_encoder.encoder_pos_embeds.{}.2.weight"
        levels = list(takewhile(lambda level: last.format(level) in shapes, count()))
        block = r"h_encoder\.encoder_blocks\.{}\.blocks\.\d+\.norm1\.weight"
        return {
            "dims": tuple(shapes[last.format(level)][0] for level in levels),
            "depths": tuple(sum(bool(re.fullmatch(block.format(level), name)) for name in shapes) for level in levels),
            "tokenizer_width": shapes["h_encoder.token_embed.0.first_conv.3.weight"][0],
        }

    def problems(self, points: int) -> list[str]:
        """Lists of unequal length, heads that do not divide a width, more or larger groups than there are points."""
        per_level = {key: getattr(self, key) for key in ("dims", "depths", "num_groups", "group_sizes", "local_radius")}
        if len({len(values) for values in per_level.values()}) > 1:
            lengths = ", ".join(f"{key} {len(values)}" for key, values in per_level.items())
            return [f"every level needs a number of each: {lengths}"]
        found = [f"dim {dim} is not a multiple of heads {self.heads}" for dim in self.dims if dim % self.heads]
        counts = (points, *self.num_groups)
        for (below, groups), size in zip(pairwise(counts), self.group_sizes, strict=True):
            if groups > below:
                found.append(f"{groups} groups need at least as many members, got {below}")
            if size > below:
                found.append(f"groups of {size} need at least as many members, got {below}")
        if self.tokenizer_width % 2:
            found.append(f"tokenizer_width {self.tokenizer_width} must be even")
        return found

    def build(self, *, drop_path: float) -> HierarchicalEncoder:
        """The encoder with random weights."""
        return HierarchicalEncoder(
            dims=self.dims,
            depths=self.depths,
            heads=self.heads,
            groups=self.num_groups,
            group_sizes=self.group_sizes,
            radii=self.local_radius,
            tokenizer_width=self.tokenizer_width,
            drop_path=drop_path,
        )
