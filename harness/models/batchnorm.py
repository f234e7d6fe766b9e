"""Batch normalisation with the statistics of all processes of a trial (`protocol.batchnorm: global`).

torch's SyncBatchNorm is for CUDA alone; this one runs wherever processes can add tensors up, gloo included. A norm
stays the object that it is, with its parameters and buffers, and only takes its statistics elsewhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) per channel of x (N, C) or (N, C, L), over the points of all processes.

    Every process must hold as many points. The backward pass is that of the losses of all processes together, of which
    DDP then takes the mean.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        points = x.numel() // x.shape[1] * distributed.get_world_size()
        mean = _sum_over_processes(x.sum(axes)) / points
        centred = x - mean.view(shape)
        var = _sum_over_processes(centred.square().sum(axes)) / points
        scale = (var + eps).rsqrt()
        y = centred.mul_(scale.view(shape))
        ctx.save_for_backward(y, scale)
        ctx.axes, ctx.shape, ctx.points = axes, shape, points
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        gradient, channels = gradients[0], len(scale)
        sums = torch.cat([gradient.sum(ctx.axes), (gradient * y).sum(ctx.axes)])
        of_gradient, of_product = (_sum_over_processes(sums) / ctx.points).split(channels)
        slope = gradient - of_gradient.view(ctx.shape) - y * of_product.view(ctx.shape)
        return slope.mul_(scale.view(ctx.shape)), None


def _sum_over_processes(values: Tensor) -> Tensor:
    distributed.all_reduce(values)
    return values


class GlobalBatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d whose statistics in training are those of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) or (N, C, L), as many on every process -> the same shape and type."""
        if not self.training:
            return super().forward(x)
        # Sums over all points lose their digits in half precision: statistics are of 32 bits at least, as torch's are.
        y, mean, var = _Normalise.apply(x.to(torch.promote_types(x.dtype, torch.float32)), self.eps)
        if self.track_running_stats:
            self._keep(mean, var, points=x.numel() // x.shape[1] * distributed.get_world_size())
        if self.affine:
            shape = [1, -1] + [1] * (x.ndim - 2)
            y = torch.addcmul(self.bias.view(shape), y, self.weight.view(shape))
        return y.to(x.dtype)

    @torch.no_grad()
    def _keep(self, mean: Tensor, var: Tensor, *, points: int) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((var * (points / max(1, points - 1))).to(self.running_var.dtype), momentum)


def make_global(model: nn.Module) -> None:
    """Let every batch norm of a model take the statistics of all processes, in place."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d) and not isinstance(module, GlobalBatchNorm):
            own = type(module)
            # A subclass that brings its input into shape calls the forward of what comes next: the global one.
            bases = (GlobalBatchNorm,) if own is nn.BatchNorm1d else (own, GlobalBatchNorm)
            module.__class__ = type(f"Global{own.__name__}", bases, {})
