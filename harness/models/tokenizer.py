"""The mini-PointNet that turns a patch of points into a token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from harness.models.batchnorm import PointwiseNorm, slices
from harness.models.recompute import product_type
from harness.models.uncounted import uncounted


class Tokenizer(nn.Module):
    """Patches (B, G, M, channels) -> tokens (B, G, C). Point-BERT's `Encoder`: two shared MLPs, each followed by a max.

    The official code writes the shared MLPs as 1x1 convolutions on (B*G, C, M), and the second one sees
    [maximum over the patch, point]. Here they are linear layers on the last axis, and the same function in fewer steps:

    - no layer of 2 * width inputs: its half for the maximum is computed once per patch;
    - its half for the points follows `point2` with nothing in between: one layer, of a product of weights;
    - a batch norm after a layer is part of the layer (`PointwiseNorm.after`);
    - biases that are the same for all points of a patch are added after the maximum, which is the same number;
    - what is wide is there for some patches at a time (`patch_max`).

    `width` is the width after the first MLP, 256 in the papers; `hidden` and `mixed`, the widths inside the two, are
    half and twice that unless given.
    """

    def __init__(
        self, *, dim: int, width: int = 256, channels: int = 3, hidden: int | None = None, mixed: int | None = None
    ) -> None:
        super().__init__()
        hidden, mixed = hidden or width // 2, mixed or 2 * width
        self.point1 = nn.Linear(channels, hidden)
        self.norm1 = PointwiseNorm(hidden)
        self.point2 = nn.Linear(hidden, width)
        self.point3 = nn.Linear(2 * width, mixed)
        self.norm2 = PointwiseNorm(mixed)
        self.point4 = nn.Linear(mixed, dim)

    def taken_out(self) -> list[nn.Parameter]:
        """Biases that a batch norm takes out again while it has the batch's statistics: their gradient is zero.

        In torch's own batch norms it is rounding noise, of which AdamW makes steps that change no output.
        """
        return [self.point1.bias, self.point2.bias, self.point3.bias]

    def forward(self, neighbourhoods: Tensor) -> Tensor:
        """(B, G, M, channels) -> (B, G, C)."""
        points = neighbourhoods.flatten(0, 1)  # (R, M, channels)
        h = F.relu(F.linear(points, *self.norm1.after(self.point1.weight, self.point1.bias, points)), inplace=True)
        whole = patch_max(h, self.point2.weight) + self.point2.bias  # (R, W)
        for_whole, for_local = self.point3.weight.chunk(2, dim=1)
        both = torch.cat([for_whole, for_local @ self.point2.weight], dim=1)  # (mixed, W + H)
        both, bias = self.norm2.after(both, for_local @ self.point2.bias + self.point3.bias, h, whole)
        for_whole, for_point = both.split((whole.shape[1], h.shape[2]), dim=1)
        tokens = patch_max(h, self.point4.weight, inner=for_point, shift=F.linear(whole, for_whole, bias))
        return (tokens + self.point4.bias).unflatten(0, neighbourhoods.shape[:2])


def patch_max(points: Tensor, outer: Tensor, *, inner: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """Maximum over each patch of `outer` of its points, or of `outer` of relu(`inner` of its points + `shift`).

    Points (R, M, C), outer (D, C) -> (R, D); or inner (H, C), shift (R, H), outer (D, H). Some patches at a time, in
    the backward pass again: nothing of R * M * H or R * M * D is ever kept or made whole.
    """
    dtype = product_type(points)  # of the backward pass too
    points, outer = points.to(dtype), outer.to(dtype)
    inner, shift = (None if each is None else each.to(dtype) for each in (inner, shift))
    best: Tensor = _PatchMax.apply(points, outer, inner, shift)
    return best


class _PatchMax(torch.autograd.Function):
    """`patch_max`. Keeps its inputs and which point of a patch had the maximum; as in torch, one of equals is it."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, outer: Tensor, inner: Tensor | None, shift: Tensor | None) -> Tensor:
        learns = any(ctx.needs_input_grad)
        best = points.new_empty(len(points), len(outer))
        where = torch.empty_like(best, dtype=torch.int32) if learns else None
        for part in _parts(points, outer):
            values = F.linear(_inside(points, inner, shift, part), outer)
            if where is None:
                torch.amax(values, 1, out=best[part])
            else:
                best[part], where[part] = values.max(1)
        ctx.save_for_backward(points, outer, inner, shift, where)
        return best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        points, outer, inner, shift, where = ctx.saved_tensors
        for_points, for_outer, for_inner, for_shift = ctx.needs_input_grad
        of_points = torch.empty_like(points) if for_points else None
        of_shift = torch.empty_like(shift) if for_shift else None
        sums = torch.promote_types(points.dtype, torch.float32)
        of_outer = torch.zeros_like(outer, dtype=sums) if for_outer else None
        of_inner = torch.zeros_like(inner, dtype=sums) if for_inner else None
        for part in _parts(points, outer):
            with uncounted():  # made again
                inside = _inside(points, inner, shift, part)
            gradient = gradients[0].new_zeros(*inside.shape[:2], len(outer))
            gradient.scatter_(1, where[part][:, None].long(), gradients[0][part][:, None])
            if of_outer is not None:
                of_outer += gradient.flatten(0, 1).T @ inside.flatten(0, 1)
            if not (for_points or for_inner or for_shift):
                continue
            gradient = gradient @ outer
            if inner is not None:
                gradient *= inside.sign_()  # 1 where the ReLU lets through
                if of_shift is not None:
                    torch.sum(gradient, 1, out=of_shift[part])
                if of_inner is not None:
                    of_inner += gradient.flatten(0, 1).T @ points[part].flatten(0, 1)
                gradient = gradient @ inner if for_points else gradient
            if of_points is not None:
                of_points[part] = gradient
        return (
            of_points,
            None if of_outer is None else of_outer.to(outer.dtype),
            None if of_inner is None else of_inner.to(inner.dtype),
            of_shift,
        )


def _inside(points: Tensor, inner: Tensor | None, shift: Tensor | None, part: slice) -> Tensor:
    """What `outer` sees of some patches."""
    if inner is None or shift is None:
        return points[part]
    return F.linear(points[part], inner).add_(shift[part][:, None]).relu_()


def _parts(points: Tensor, outer: Tensor) -> list[slice]:
    """Patches (R, M, C), some at a time: by the wider side of what `outer` sees and makes of them."""
    return list(slices(len(points), points.shape[1] * max(outer.shape) * points.element_size(), points.device))


class ProjectedTokenizer(nn.Module):
    """A tokenizer and a linear layer that brings its tokens to the encoder's width (Point-BERT's `reduce_dim`)."""

    def __init__(self, network: Tokenizer, *, width: int, dim: int) -> None:
        super().__init__()
        self.network = network
        self.reduce = nn.Linear(width, dim)

    def forward(self, neighbourhoods: Tensor) -> Tensor:
        """(B, G, M, 3) -> (B, G, C)."""
        return self.reduce(self.network(neighbourhoods))


class PositionEmbedding(nn.Module):
    """Patch centres (B, G, 3) -> positions (B, G, C): Linear, GELU, Linear."""

    def __init__(self, *, dim: int, width: int = 128) -> None:
        super().__init__()
        self.fc1 = nn.Linear(3, width)
        self.fc2 = nn.Linear(width, dim)

    def forward(self, centers: Tensor) -> Tensor:
        """(B, G, 3) -> (B, G, C)."""
        return self.fc2(F.gelu(self.fc1(centers)))
