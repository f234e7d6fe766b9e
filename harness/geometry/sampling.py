"""Farthest point sampling by the rules of the field's CUDA kernel, without the kernel.

The rules are those of `pointnet2_ops` (`sampling_gpu.cu`), which every official code of the field uses. They
differ from the textbook in two ways that change results: the first pick is always index 0, and a point within
about 0.03 of the origin (squared norm <= 1e-3) is never a candidate.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

NEAR_ORIGIN = 1e-3
"""Squared norm up to which the official kernel skips a point."""


@lru_cache(maxsize=32)
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
    batch, total, _ = points.shape
    order = _scan_order(total, points.device)
    # Separate coordinate planes: twice as fast as (B, N, 3) arithmetic on CPU.
    x, y, z = points[:, order].permute(2, 0, 1).contiguous()
    norm = x * x + y * y + z * z
    distance = torch.where(norm <= NEAR_ORIGIN, -1.0, 1e10)  # -1 stays below every distance: never picked
    if start is None:
        last = torch.zeros(batch, 1, dtype=torch.long, device=points.device)  # order[0] == 0
    else:
        last = torch.argsort(order)[start][:, None]
    picks = torch.empty(batch, count, dtype=torch.long, device=points.device)
    for step in range(count):
        picks[:, step] = last[:, 0]
        if step == count - 1:
            break
        dx, dy, dz = x - x.gather(1, last), y - y.gather(1, last), z - z.gather(1, last)
        distance = torch.minimum(distance, dx * dx + dy * dy + dz * dz)
        last = distance.argmax(1, keepdim=True)
    return order[picks]
