"""Farthest point sampling on a GPU in one launch: a Triton kernel, one program per cloud.

In plain torch every pick is a dozen launches that do next to nothing. Nothing is compiled when the harness is
installed: Triton comes with torch's CUDA builds and compiles at the first use. `sampler` hands the kernel out only
after it has given the same indices as plain torch, and nothing where it cannot: no Triton, no compiler, another answer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

MOST_POINTS = 8192
"""Of a cloud, which stays in a program's registers."""
OUTSIDE = -2.0
"""Distance of places behind a cloud's last point: below every candidate's and everyone's."""
OPTIONS = {
    "num_warps": 8,
    "enable_fp_fusion": False,  # a fused product and sum rounds once, torch's two operations twice: other picks
}
"""What the kernel is compiled with."""
Sampler = Callable[[Tensor, Tensor, Tensor, int], Tensor]


@triton.jit
def _farthest(planes, start, first, picks, batch, total, count, BLOCK: tl.constexpr, OUTSIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    cloud = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    inside = index < total
    xs = planes + cloud * total
    ys = xs + batch * total
    zs = ys + batch * total
    x = tl.load(xs + index, mask=inside, other=0.0)
    y = tl.load(ys + index, mask=inside, other=0.0)
    z = tl.load(zs + index, mask=inside, other=0.0)
    distance = tl.load(start + cloud * total + index, mask=inside, other=OUTSIDE)
    last = tl.load(first + cloud)
    for step in range(count):
        tl.store(picks + cloud * count + step, last)
        dx = x - tl.load(xs + last)
        dy = y - tl.load(ys + last)
        dz = z - tl.load(zs + last)
        distance = tl.minimum(distance, dx * dx + dy * dy + dz * dz)
        last = tl.argmax(distance, axis=0, tie_break_left=True).to(tl.int64)


def farthest(planes: Tensor, distance: Tensor, first: Tensor, count: int) -> Tensor:
    """Picks (B, count) int64 of clouds as planes (3, B, N) float32, the first of each being first (B,) int64.

    distance (B, N) is where distances begin: below zero for points that are no candidates.
    """
    _, batch, total = planes.shape
    picks = torch.empty(batch, count, dtype=torch.long, device=planes.device)
    with torch.cuda.device_of(planes):
        _farthest[(batch,)](
            planes,
            distance,
            first,
            picks,
            batch,
            total,
            count,
            BLOCK=triton.next_power_of_2(total),
            OUTSIDE=OUTSIDE,
            **OPTIONS,
        )
    return picks


@cache
def sampler(device: torch.device, plain: Sampler) -> Sampler | None:
    """The kernel for a device, if it gives what `plain` gives on clouds with ties, copies and no candidates.

    And on spheres seen from their centre, where rounding alone says who is farthest of the first: there are compilers
    that fuse all the same (Triton 3.6 for compute capability 12.0).
    """
    generator = torch.Generator().manual_seed(0)
    planes = torch.randint(-3, 4, (3, 10, 300), generator=generator).div(4)
    planes[:, 2:4] = torch.rand(3, 2, 300, generator=generator) - 0.5
    centre = torch.tensor([0.3, -0.4, 0.2])[:, None, None]
    planes[:, 4:] = centre + F.normalize(torch.randn(3, 6, 300, generator=generator), dim=0)
    first = torch.arange(10)
    planes[:, first[4:], first[4:]] = centre[:, 0]
    distance = torch.where(planes.square().sum(0) < 0.1, -1.0, 1e10)
    given = (planes.to(device), distance.to(device), first.to(device), 64)
    try:
        same = torch.equal(farthest(*given), plain(*given))
    except Exception:  # whatever a compiler or a driver may say: plain torch does it too
        return None
    return farthest if same else None
