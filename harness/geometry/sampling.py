"""Farthest point sampling by the rules of the field's CUDA kernel, without the kernel.

The rules are those of `pointnet2_ops` (`sampling_gpu.cu`), which every official code of the field uses. They
differ from the textbook in two ways that change results: the first pick is always index 0, and a point within
about 0.03 of the origin (squared norm <= 1e-3) is never a candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

NEAR_ORIGIN = 1e-3
"""Squared norm up to which the official kernel skips a point."""


def _scan_order(count: int, device: torch.device) -> Tensor:
    """The order in which the kernel's threads compare points, which decides ties: k mod block, then k."""
    block = min(1 << (count.bit_length() - 1), 512)
    return torch.argsort(torch.arange(count, device=device) % block, stable=True)


@torch.no_grad()
def farthest_points(points: Tensor, count: int, *, start: Tensor | None = None) -> Tensor:
    """Indices of `count` points, each the farthest from those picked before it.

    points (B, N, 3) float; start (B,) int64 is the first pick, index 0 when omitted. Returns (B, count) int64.
    When `count` exceeds the eligible points, the remaining picks repeat one index, as the official kernel does.
    """
    order = _scan_order(points.shape[1], points.device)
    # Separate coordinate planes: twice as fast as (B, N, 3) arithmetic on CPU.
    planes = points[:, order].permute(2, 0, 1).contiguous()
    x, y, z = planes
    norm = x * x + y * y + z * z
    distance = torch.where(norm <= NEAR_ORIGIN, -1.0, 1e10)  # -1 stays below every distance: never picked
    first = points.new_zeros(len(points), dtype=torch.long) if start is None else torch.argsort(order)[start]
    return order[_sampler(planes)(planes, distance, first, count)]  # order[0] == 0


def _plain(planes: Tensor, distance: Tensor, first: Tensor, count: int) -> Tensor:
    """Picks (B, count) from planes (3, B, N) and the distances (B, N) to begin with, beginning at first (B,)."""
    x, y, z = planes
    last = first[:, None]
    picks = torch.empty(len(first), count, dtype=torch.long, device=planes.device)
    for step in range(count):
        picks[:, step] = last[:, 0]
        if step == count - 1:
            break
        dx, dy, dz = x - x.gather(1, last), y - y.gather(1, last), z - z.gather(1, last)
        distance = torch.minimum(distance, dx * dx + dy * dy + dz * dz)
        last = distance.argmax(1, keepdim=True)
    return picks


def _sampler(planes: Tensor) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """The quickest way to the same indices: a kernel on a GPU where there is one, else plain torch."""
    if not planes.is_cuda or planes.dtype != torch.float32:
        return _plain
    kernels = _kernels()
    if kernels is None or planes.shape[2] > kernels.MOST_POINTS:
        return _plain
    return kernels.sampler(planes.device, _plain) or _plain


@cache
def _kernels() -> ModuleType | None:
    """The module of kernels; None without Triton, which is looked for once."""
    try:
        return import_module("harness.geometry.kernels")
    except ImportError:
        return None


@torch.no_grad()
def all_points(points: Tensor) -> Tensor:
    """What `farthest_points` keeps when it takes as many points as there are, without its loop: sorting is enough.

    points (B, N, 3) float -> (B, N) int64, for each cloud the same indices as `farthest_points(points, N)`, equally
    often, each kept point at its own position. Taking every point leaves nothing to choose but three things: index 0
    is kept; of points at one place the kernel's first is; and all others, copies and those near the origin, give way
    to the one index that the kernel repeats when nothing is left, the first candidate in its order. (Two places whose
    squared distance is not above 0 in float32 count as two here and as one there: they would be 1e-22 apart.)
    """
    order = _scan_order(points.shape[1], points.device)
    planes = points[:, order].permute(2, 0, 1).contiguous() + 0.0  # (3, B, N), in the kernel's order, without -0.0
    candidate = planes[0] * planes[0] + planes[1] * planes[1] + planes[2] * planes[2] > NEAR_ORIGIN
    # Sorted by x, y and z, copies are neighbours; sorts are stable, so the kernel's first of them comes first.
    rank = torch.arange(points.shape[1], device=points.device).expand(len(points), -1)
    for plane in reversed(planes.unbind()):
        rank = rank.gather(1, plane.gather(1, rank).argsort(dim=1, stable=True))
    place = planes.gather(2, rank.expand(3, -1, -1))
    copy = torch.zeros_like(candidate)
    copy.scatter_(1, rank[:, 1:], (place[..., 1:] == place[..., :-1]).all(0))
    kept = candidate & ~copy
    kept[:, 0] = True  # order[0] == 0
    indices = torch.where(kept, order, order[candidate.to(torch.uint8).argmax(1, keepdim=True)])
    return indices[:, torch.argsort(order)]
