"""Which points of a stored cloud the encoder sees, in training and at test."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.geometry import farthest_points, gather_points

FPS_FIRST = {1024: 1200, 2048: 2400, 4096: 4800, 8192: 8192}
"""Points kept by farthest point sampling before the random subset, by points used (the papers' runners)."""


def train_points(points: Tensor, count: int, rule: str, generator: torch.Generator) -> Tensor:
    """Training input (B, N, 3) -> (B, count, 3).

    `random`: one random subset of stored positions for the whole batch. `fps`: the papers' rule, farthest points
    first (1200 for 1024 and so on, or all there are), then one random subset of their ranks for the whole batch.
    """
    if rule == "fps":
        keep = min(FPS_FIRST.get(count, count), points.shape[1])
        points = gather_points(points, farthest_points(points, keep))
    elif points.shape[1] == count:
        return points
    chosen = torch.randperm(points.shape[1], generator=generator, device=generator.device)[:count]
    return points[:, chosen.to(points.device)]


def test_points(points: Tensor, count: int, rule: str) -> Tensor:
    """Test input (B, N, 3) -> (B, count, 3): a fixed random subset (`random`) or farthest points (`fps`)."""
    if rule == "fps":
        return gather_points(points, farthest_points(points, count))
    if points.shape[1] == count:
        return points
    fixed = torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(0))[:count]
    return points[:, fixed.to(points.device)]
