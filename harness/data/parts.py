"""Clouds with a part per point, of as many points as their files have, on a trial's device; and which of them are seen.

`resample` draws every point anew, so that some come twice and others not: the official loaders' way (Point-BERT's and
Point-MAE's `segmentation/dataset.py`: `np.random.choice(..., replace=True)`, of small and large clouds alike, in
training and at test). `random` takes no point twice; where a cloud has fewer points than are wanted it takes all, and
draws the rest anew. Both are fixed at test: row i of one stream belongs to item i, whatever the method and the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.data.dataset import PartClouds

BATCH = 16
"""Clouds that are evaluated together: what lies between head's layers takes 13 MB a cloud."""


@dataclass(frozen=True)
class PartSplit:
    """Clouds one after the other on the device."""

    points: Tensor
    """(P, 3) float32"""
    parts: Tensor
    """(P,) uint8, or int16 where there are more than 256"""
    starts: Tensor
    """(n,) int64: where each cloud begins"""
    lengths: Tensor
    """(n,) int64"""
    categories: Tensor
    """(n,) int64"""
    longest: int
    """Points of the largest cloud."""
    sampled: bool = False
    """All clouds have the points that the encoder sees at test (`at_test`)."""

    def __len__(self) -> int:
        return len(self.categories)

    def rows(self, chosen: Tensor) -> PartSplit:
        """Some of the clouds, by index or mask (n,); their points stay where they are."""
        chosen = chosen.to(self.starts.device)
        columns = {name: getattr(self, name)[chosen] for name in ("starts", "lengths", "categories")}
        return replace(self, **columns)

    def take(self, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Points (B, count, 3) and parts (B, count) int64 of clouds (B,) at positions (B, count) in them."""
        places = self.starts[rows][:, None] + positions
        return self.points[places], self.parts[places].long()


def on_device(clouds: PartClouds, device: torch.device) -> PartSplit:
    """Clouds as they are stored, on the device."""
    offsets = torch.from_numpy(clouds.offsets.copy())
    lengths = offsets.diff()
    parts = torch.from_numpy(clouds.parts)
    return PartSplit(
        points=torch.from_numpy(clouds.points).float().to(device),
        parts=parts.to(torch.uint8 if int(parts.max()) < 256 else torch.int16).to(device),
        starts=offsets[:-1].to(device),
        lengths=lengths.to(device),
        categories=torch.from_numpy(clouds.categories.copy()).to(device),
        longest=int(lengths.max()),
    )


def positions(lengths: Tensor, count: int, rule: str, generator: torch.Generator, *, longest: int) -> Tensor:
    """Which points are seen of clouds of so many: (B,) int64 -> (B, count) int64, in random order.

    `rule` is `random` or `resample`. How much is drawn depends on the shapes and `longest` alone.
    """

    def uniform(width: int) -> Tensor:
        drawn = torch.rand(len(lengths), width, generator=generator, device=generator.device)
        return drawn.to(lengths.device)

    sizes = lengths[:, None]
    anew = (uniform(count) * sizes).long().minimum(sizes - 1)
    if rule == "resample":
        return anew
    keys = uniform(max(longest, count))
    places = torch.arange(keys.shape[1], device=lengths.device)
    order = keys.masked_fill(places >= sizes, 2.0).argsort(1)[:, :count]  # the cloud's own points come first
    return torch.where(places[:count] < sizes, order, anew)


def at_test(split: PartSplit, count: int, rule: str) -> PartSplit:
    """The split with `count` points per cloud, chosen once."""
    if split.sampled:
        return split
    seen = [(points, parts) for _, points, parts in test_batches(split, count, rule)]
    sizes = torch.full_like(split.lengths, count)
    return PartSplit(
        points=torch.cat([points.flatten(0, 1) for points, _ in seen]),
        parts=torch.cat([parts.flatten() for _, parts in seen]).to(split.parts.dtype),
        starts=sizes.cumsum(0) - sizes,
        lengths=sizes,
        categories=split.categories,
        longest=count,
        sampled=True,
    )


def test_batches(split: PartSplit, count: int, rule: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(indices, points (B, count, 3), parts (B, count)) as they are seen at test, in index order."""
    generator = torch.Generator().manual_seed(0)
    device = split.starts.device
    for begin in range(0, len(split), BATCH):
        rows = torch.arange(begin, min(begin + BATCH, len(split)), device=device)
        if split.sampled:
            places = torch.arange(count, device=device).expand(len(rows), -1)
        else:
            places = positions(split.lengths[rows], count, rule, generator, longest=split.longest)
        yield rows, *split.take(rows, places)
