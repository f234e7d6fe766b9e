"""The mini-PointNet that turns a patch of points into a token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.batchnorm import PointwiseNorm, slices

__all__ = ["PointwiseNorm", "PositionEmbedding", "ProjectedTokenizer", "Tokenizer"]


class Tokenizer(nn.Module):
    """Patches (B, G, M, channels) -> tokens (B, G, C). Point-BERT's `Encoder`: two shared MLPs, each followed by a max.

    The official code writes the shared MLPs as 1x1 convolutions on (B*G, C, M), and the second one sees
    [maximum over the patch, point]. Here they are linear layers on the last axis, and the same function in fewer steps:

    - no layer of 2 * width inputs: its half for the maximum is computed once per patch;
    - its half for the points follows `point2` with nothing in between: one layer, of a product of weights;
    - biases that are the same for all points of a patch are added after the maximum, which is the same number.

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

    def forward(self, neighbourhoods: Tensor) -> Tensor:
        """(B, G, M, channels) -> (B, G, C)."""
        learns = neighbourhoods.requires_grad or any(p.requires_grad for p in self.parameters())
        if torch.is_grad_enabled() and learns:
            return self._learning(neighbourhoods)
        with torch.no_grad():
            return self._frozen(neighbourhoods.flatten(0, 1)).unflatten(0, neighbourhoods.shape[:2])

    def _third(self) -> tuple[Tensor, Tensor, Tensor]:
        """`point3` after `point2`: weights for the patch's maximum (mixed, W) and for points (mixed, hidden), bias."""
        for_whole, for_local = self.point3.weight.chunk(2, dim=1)
        return for_whole, for_local @ self.point2.weight, for_local @ self.point2.bias + self.point3.bias

    def _learning(self, neighbourhoods: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.point1(neighbourhoods)), inplace=True)  # (B, G, M, H)
        whole = F.linear(h, self.point2.weight).amax(2) + self.point2.bias  # (B, G, W)
        for_whole, for_points, bias = self._third()
        mixed = F.linear(h, for_points) + F.linear(whole, for_whole, bias)[:, :, None]
        return F.linear(F.relu(self.norm2(mixed), inplace=True), self.point4.weight).amax(2) + self.point4.bias

    def _frozen(self, patches: Tensor) -> Tensor:
        """(R, M, channels) -> (R, C), some patches at a time: nothing is kept for a backward pass.

        Only what batch norms take their statistics of is there for all patches at once.
        """
        h = self.point1(patches)  # (R, M, H)
        self._norm_relu_(self.norm1, h)
        for_whole, for_points, bias = self._third()
        count, size, _ = h.shape
        mixed = h.new_empty(count, size, len(bias))
        for part in self._parts(mixed):
            whole = F.linear(h[part], self.point2.weight).amax(1) + self.point2.bias
            torch.add(F.linear(h[part], for_points), F.linear(whole, for_whole, bias)[:, None], out=mixed[part])
        del h
        self._norm_relu_(self.norm2, mixed)
        tokens = [F.linear(mixed[part], self.point4.weight).amax(1) for part in self._parts(mixed)]
        return torch.cat(tokens) + self.point4.bias

    def _norm_relu_(self, norm: PointwiseNorm, x: Tensor) -> None:
        scale, shift = norm.coefficients(x)
        for part in self._parts(x):
            torch.addcmul(shift, x[part], scale, out=x[part]).relu_()

    @staticmethod
    def _parts(x: Tensor) -> list[slice]:
        """Patches (R, M, C), some at a time."""
        return list(slices(len(x), x[0].numel() * x.element_size(), x.device))


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
