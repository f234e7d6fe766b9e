"""Scale and shift of every channel, as several methods have it behind every layer of a frozen encoder."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from harness.models.batchnorm import slices
from harness.models.recompute import recomputed


class ScaleShift(nn.Module):
    """x * gamma + beta on the last axis; gamma ~ N(1, 0.02), beta ~ N(0, 0.02), so not the identity at start.

    As in SSF (arXiv 2210.08823, equation 2) and DAPT (arXiv 2403.01439, TFTS), and in the official code of both.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim).normal_(1, 0.02))
        self.beta = nn.Parameter(torch.empty(dim).normal_(0, 0.02))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return scale_shift(x, self.gamma, self.beta)

    def after(self, bias: Tensor | None) -> Tensor:
        """The shift with a bias (C,) in it that x has got already: bias * gamma + beta."""
        return self.beta if bias is None else torch.addcmul(self.beta, bias, self.gamma)


class ShiftedGELU(ScaleShift):
    """gelu(x * gamma + beta), in one step."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return recomputed(partial(_ScaleShift.apply, True), x, self.gamma, self.beta)


class ShiftedNorm(nn.Sequential):
    """A layer norm and a scale-shift, as one norm: its gain is g * gamma, its bias b * gamma + beta."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        norm, shift = self
        assert isinstance(norm, nn.LayerNorm) and isinstance(shift, ScaleShift)
        return F.layer_norm(x, norm.normalized_shape, norm.weight * shift.gamma, shift.after(norm.bias), norm.eps)


class ShiftedLinear(nn.Sequential):
    """A linear layer and a scale-shift, whose shift takes in the layer's bias: b * gamma + beta."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., D)."""
        layer, shift = self
        assert isinstance(layer, nn.Linear) and isinstance(shift, ScaleShift)
        return scale_shift(F.linear(x, layer.weight), shift.gamma, shift.after(layer.bias))


FUSED: dict[type[nn.Module], type[nn.Sequential]] = {nn.LayerNorm: ShiftedNorm, nn.Linear: ShiftedLinear}


def shifted(operation: nn.Module, width: int) -> nn.Sequential:
    """The operation and a new scale-shift of its `width` outputs behind it, in fewer steps where there is a way."""
    return FUSED.get(type(operation), nn.Sequential)(operation, ScaleShift(width))


def scale_shift(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """x * gamma + beta: x (..., C), gamma and beta (C,) -> (..., C) in the type of x.

    Made anew in the backward pass instead of being kept (`recomputed`).
    """
    return recomputed(partial(_ScaleShift.apply, False), x, gamma, beta)


class _ScaleShift(torch.autograd.Function):
    """`scale_shift`, with or without a GELU behind it.

    Both passes go through their tensors once, slice by slice in the cache; of the GELU nothing is kept.
    """

    @staticmethod
    def forward(ctx: Any, gelu: bool, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(x, gamma, beta if gelu else None)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        if not gelu:
            return torch.addcmul(beta, x, gamma, out=out)
        inputs, outputs = x.flatten(0, -2), out.flatten(0, -2)
        in_place = out.dtype == torch.promote_types(x.dtype, gamma.dtype)  # else rounded once, in the end
        for part in _rows(inputs):
            shifted = torch.addcmul(beta, inputs[part], gamma, out=outputs[part] if in_place else None)
            torch.ops.aten.gelu.out(shifted, out=shifted)
            if not in_place:
                outputs[part] = shifted
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, gamma, beta), gradient = ctx.saved_tensors, gradients[0].flatten(0, -2)
        of_x = x.new_empty(x.shape) if ctx.needs_input_grad[1] else None
        inputs, wide = x.flatten(0, -2), torch.promote_types(gamma.dtype, torch.float32)
        of_gamma, of_beta = torch.zeros(2, len(gamma), dtype=wide, device=gamma.device)
        of_inputs = of_x.view_as(inputs) if of_x is not None else None
        for part in _rows(inputs):
            slope = gradient[part].to(wide)
            if beta is not None:
                slope = torch.ops.aten.gelu_backward(slope, torch.addcmul(beta, inputs[part], gamma))
            of_gamma += (slope * inputs[part]).sum(0)
            of_beta += slope.sum(0)
            if of_inputs is not None:
                torch.mul(slope, gamma, out=of_inputs[part])
        return None, of_x, of_gamma.to(gamma.dtype), of_beta.to(gamma.dtype)


def _rows(x: Tensor) -> Iterator[slice]:
    """Rows of x (N, C), some at a time."""
    return slices(len(x), x.shape[1] * x.element_size(), x.device)
