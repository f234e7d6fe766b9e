"""Batch normalisation of points, exact and lean, with the statistics of this process or of all of a trial's.

Torch's own has two kernels on a CPU: the one for (N, C) adds up in 32 bits and is inexact enough to flip near-ties of a
maximum over points; the one for the official code's (R, C, M) is exact and slow. Here sums are taken
slice by slice, so that they stay exact and in the processor's cache. And torch's SyncBatchNorm
(`protocol.batchnorm: global`) is for CUDA alone; this one runs wherever processes can add tensors up, gloo included.

Where a norm follows a linear layer, `PointwiseNorm.after` makes one layer of the two: mean and variance of the layer's
output follow from mean and covariance of its input, which is narrower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from harness.errors import UserError
from harness.models.uncounted import uncounted

SLICE_BYTES = {"cpu": 2**22}
"""What is worked on at a time: on a processor what its cache holds, elsewhere `LARGE_SLICE`, for fewer launches."""
LARGE_SLICE = 2**26


_stand_in: ContextVar[str | None] = ContextVar("stand_in", default=None)


@contextmanager
def sliced_as_on(device: str) -> Iterator[None]:
    """Slices within are those of another type of device: for tensors without values that stand for its tensors."""
    before = _stand_in.set(device)
    try:
        yield
    finally:
        _stand_in.reset(before)


def slices(rows: int, bytes_per_row: int, device: torch.device) -> Iterator[slice]:
    """Rows 0 to `rows`, some at a time."""
    step = max(1, SLICE_BYTES.get(_stand_in.get() or device.type, LARGE_SLICE) // bytes_per_row)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def _slices(x: Tensor) -> Iterator[slice]:
    return slices(len(x), x.shape[1] * x.element_size(), x.device)


def _sum(values: Tensor, *, everywhere: bool) -> Tensor:
    """Over all processes, if asked for."""
    if everywhere:
        distributed.all_reduce(values)
    return values


@torch.no_grad()
def moments(x: Tensor, *, everywhere: bool = False) -> tuple[Tensor, Tensor, int]:
    """Mean and (biased) variance (C,) of x (N, C), of 32 bits at least, and the number of points.

    `everywhere`: over the points of all processes, each of which must hold as many.
    """
    points = len(x) * (distributed.get_world_size() if everywhere else 1)
    total = x.new_zeros(x.shape[1], dtype=torch.float64)
    for part in _slices(x):
        total += x[part].sum(0, dtype=torch.promote_types(x.dtype, torch.float32))
    mean = (_sum(total, everywhere=everywhere) / points).to(torch.promote_types(x.dtype, torch.float32))
    total = torch.zeros_like(total)
    for part in _slices(x):
        total += (x[part] - mean).square_().sum(0)
    return mean, (_sum(total, everywhere=everywhere) / points).to(mean.dtype), points


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias per channel of x (N, C), with the statistics of x itself.

    Keeps x alone. Where statistics are those of all processes, the backward pass is that of the losses of all of them
    together, of which DDP then takes the mean.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, everywhere: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, var, points = moments(x, everywhere=everywhere)
        ctx.save_for_backward(x, mean, (var + eps).rsqrt(), weight)
        ctx.everywhere, ctx.points = everywhere, points
        ctx.mark_non_differentiable(mean, var)
        return _scaled(x, *coefficients(mean, var, weight, bias, eps)), mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, slope, weight = ctx.saved_tensors
        gradient, channels = gradients[0], x.shape[1]
        sums = torch.zeros(2, channels, dtype=torch.float64, device=x.device)
        for part in _slices(x):
            sums[0] += gradient[part].sum(0, dtype=mean.dtype)
            sums[1] += (x[part] - mean).mul_(gradient[part]).sum(0)
        sums[1] *= slope
        of_bias, of_weight = sums.to(mean.dtype).clone()
        of_x = None
        if ctx.needs_input_grad[0]:
            # weight * slope * (g - mean(g) - y * mean(g y)), with y = (x - mean) * slope
            shift, along = (_sum(sums, everywhere=ctx.everywhere) / ctx.points).to(mean.dtype)
            scale = weight * slope
            along = -along * slope * scale
            shift = -shift * scale - mean * along
            of_x = torch.empty_like(x)
            for part in _slices(x):
                of_x[part] = torch.addcmul(shift, x[part], along).addcmul_(gradient[part], scale)
        return of_x, of_weight.to(weight.dtype), of_bias.to(weight.dtype), None, None


def coefficients(mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Batch normalisation as x * scale + shift: both (C,)."""
    scale = weight * (var + eps).rsqrt()
    return scale, bias - mean * scale


def _scaled(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """x * scale + shift, in the type of x."""
    return torch.addcmul(shift, x, scale).to(x.dtype)


class _OutputMoments(torch.autograd.Function):
    """Mean and (biased) variance (D,), of 64 bits, of weight [whole, point] + bias over all points of all patches.

    Weight (D, W + C), bias (D,), points (R, M, C), whole (R, W), as many on every process where statistics are those of
    all. By mean and covariance of [whole, point], and those by the law of total covariance: within patches, which
    concerns points alone, and between them. Keeps its inputs alone.
    """

    @staticmethod
    @uncounted()
    def forward(
        ctx: Any, weight: Tensor, bias: Tensor, points: Tensor, whole: Tensor, everywhere: bool
    ) -> tuple[Tensor, Tensor]:
        patches, size, channels = points.shape
        centres = points.mean(1, dtype=torch.promote_types(points.dtype, torch.float32))  # (R, C)
        within = points.new_zeros(channels, channels, dtype=torch.float64)
        for part in _patches(points):
            apart = (points[part] - centres[part][:, None]).flatten(0, 1).double()
            within.addmm_(apart.T, apart)
        ctx.patches = patches * (distributed.get_world_size() if everywhere else 1)
        ctx.everywhere, ctx.size = everywhere, size
        seen = torch.cat([whole, centres], 1).double()  # (R, W + C)
        mean = _sum(seen.sum(0), everywhere=everywhere) / ctx.patches
        covariance = (seen - mean).T @ (seen - mean)
        width = whole.shape[1]
        covariance[width:, width:] += within / size
        covariance = _sum(covariance, everywhere=everywhere) / ctx.patches
        ctx.save_for_backward(weight, points, whole, centres, mean, covariance)
        exact = weight.double()
        return exact @ mean + bias.double(), ((exact @ covariance) * exact).sum(1).clamp(min=0)

    @staticmethod
    @once_differentiable
    @uncounted()
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight, points, whole, centres, mean, covariance = ctx.saved_tensors
        exact, (of_bias, slope) = weight.double(), gradients
        of_weight = torch.outer(of_bias, mean) + 2 * slope[:, None] * (exact @ covariance)
        of_mean = _sum(of_bias @ exact, everywhere=ctx.everywhere) / ctx.patches
        along = _sum(exact.T @ (2 * slope[:, None] * exact), everywhere=ctx.everywhere) / ctx.patches
        seen = torch.cat([whole, centres], 1).double()
        of_seen = torch.addmm(of_mean, seen - mean, along)  # (R, W + C)
        width = whole.shape[1]
        of_points = None
        if ctx.needs_input_grad[2]:
            along = along[width:, width:].div(ctx.size).to(centres.dtype)  # (C, C)
            shift = of_seen[:, width:].div(ctx.size).to(centres.dtype) - centres @ along  # (R, C)
            of_points = torch.empty_like(points)
            for part in _patches(points):
                torch.add(points[part].to(along.dtype) @ along, shift[part][:, None], out=of_points[part])
        return of_weight.to(weight.dtype), of_bias.to(weight.dtype), of_points, of_seen[:, :width].to(whole.dtype), None


def _patches(points: Tensor) -> Iterator[slice]:
    """Patches (R, M, C), some at a time."""
    return slices(len(points), points[0].numel() * points.element_size(), points.device)


class PointwiseNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d of (..., C) over all but the last axis."""

    weight: nn.Parameter
    bias: nn.Parameter
    everywhere = False
    """Whether statistics are those of all processes (`make_global`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over all points of the batch."""
        flat = x.flatten(0, -2)
        if not self.training or (x.is_cuda and not self.everywhere):
            return super().forward(flat).view_as(x)
        y, mean, var = _Normalise.apply(flat, self.weight, self.bias, self.eps, self.everywhere)
        self._keep(mean, var, points=len(flat))
        return y.view_as(x)

    def after(self, weight: Tensor, bias: Tensor, points: Tensor, whole: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """A linear layer and this norm on its output as one layer: weight (D, W + C) and bias (D,) -> the same shapes.

        The layer sees [whole, point] for every point (C) of patches (R, M, C) and what its patch has in common (R, W),
        if anything. In training it notes the statistics, as `forward` does.
        """
        if self.training:
            common = whole if whole is not None else points.new_zeros(len(points), 0)
            mean, var = _OutputMoments.apply(weight, bias, points, common, self.everywhere)
            self._keep(mean, var, points=points.shape[0] * points.shape[1])
        else:
            assert self.running_mean is not None and self.running_var is not None
            mean, var = self.running_mean.double(), self.running_var.double()
        scale = self.weight * (var + self.eps).rsqrt()
        bias = (bias - mean) * scale + self.bias
        return (weight * scale[:, None]).to(weight.dtype), bias.to(weight.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, var: Tensor, *, points: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        points *= distributed.get_world_size() if self.everywhere else 1
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((var * (points / max(1, points - 1))).to(self.running_var.dtype), momentum)


class GlobalBatchNorm(PointwiseNorm):
    """nn.BatchNorm1d of (N, C) or (N, C, L) whose statistics in training are those of all processes."""

    everywhere = True

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) or (N, C, L), as many on every process -> the same shape and type."""
        if not self.training:
            return nn.BatchNorm1d.forward(self, x)
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def make_global(model: nn.Module) -> None:
    """Let every batch norm of a model take the statistics of all processes, in place.

    Raises UserError for a kind of batch norm that it does not know: its statistics would stay local without a word.
    """
    for module in model.modules():
        if isinstance(module, PointwiseNorm):
            module.everywhere = True
        elif type(module) is nn.BatchNorm1d and module.affine:
            module.__class__ = GlobalBatchNorm
        elif isinstance(module, _BatchNorm):
            raise UserError(
                f"protocol.batchnorm: global is built for BatchNorm1d, and the model has {type(module).__name__}"
            )
