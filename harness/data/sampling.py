"""Which points of a stored cloud the encoder sees, in training and at test.

`random` takes a random subset of the stored points. `fps` is the papers' rule (their runners' `validate` and
`train`): farthest points first, then a random subset of their ranks. Where farthest point sampling takes all points
there are (2048 of ScanObjectNN's 2048), nothing is chosen but which near-origin points and copies give way to which
other point, and `all_points` says that without the loop. The kept points then stand in the order of the (shuffled)
cloud instead of that of their ranks. In training the random subset that follows makes every order of them equally
likely either way; at test the encoder looks at the order through the point at position 0 alone, which is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.geometry import all_points, farthest_points, gather_points

FPS_FIRST = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}
"""Points kept by farthest point sampling before the random subset, by points used (the papers' runners)."""


def train_points(points: Tensor, count: int, rule: str, generator: torch.Generator) -> Tensor:
    """Training input (B, N, 3) -> (B, count, 3): one random subset of the candidates' positions for the whole batch.

    Under `fps` each cloud's points are shuffled first, as the papers' datasets do, so that farthest point sampling
    starts at another point in each epoch.
    """
    if rule == "fps":
        keys = torch.rand(points.shape[:2], generator=generator, device=generator.device)
        points = gather_points(points, keys.argsort(1).to(points.device))
    elif points.shape[1] == count:
        return points
    return random_subset(candidates(points, count, rule), count, generator)


def test_points(points: Tensor, count: int, rule: str) -> Tensor:
    """Test input (B, N, 3) -> (B, count, 3): a fixed random subset (`random`) or farthest points (`fps`)."""
    if rule == "fps":
        return _farthest(points, count)
    if points.shape[1] == count:
        return points
    return random_subset(points, count, torch.Generator().manual_seed(0))


def candidates(points: Tensor, count: int, rule: str) -> Tensor:
    """What a random subset of `count` is taken from: all points, or the farthest (1200 for 1024 and so on)."""
    return _farthest(points, min(FPS_FIRST.get(count, count), points.shape[1])) if rule == "fps" else points


def random_subset(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The same `count` random positions of every cloud: (B, N, 3) -> (B, count, 3)."""
    chosen = torch.randperm(points.shape[1], generator=generator, device=generator.device)[:count]
    return points[:, chosen.to(points.device)]


def _farthest(points: Tensor, count: int) -> Tensor:
    picks = all_points(points) if count == points.shape[1] else farthest_points(points, count)
    return gather_points(points, picks)
