"""The mini-PointNet that turns a patch of points into a token."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PointwiseNorm(nn.BatchNorm1d):
    """Batch normalisation of (..., M, C) over all but the last axis.

    On a CPU, torch's kernel for (N, C) takes batch statistics ten times less exactly than the one for the official
    code's (R, C, M): enough to flip near-ties of the maximum over a patch. Training takes the slower layout there.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel over all points of the batch."""
        if self.training and not x.is_cuda:
            return super().forward(x.flatten(0, -3).transpose(1, 2)).transpose(1, 2).view_as(x)
        return super().forward(x.flatten(0, -2)).view_as(x)


class Tokenizer(nn.Module):
    """Patches (B, G, M, channels) -> tokens (B, G, C). Point-BERT's `Encoder`: two shared MLPs, each followed by a max.

    The official code writes the shared MLPs as 1x1 convolutions on (B*G, C, M); here they are linear layers on
    the last axis, which is the same function. `width` is the width after the first MLP, 256 in the papers; `hidden`
    and `mixed`, the widths inside the two, are half and twice that unless given.
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
        local = self.point2(F.relu(self.norm1(self.point1(neighbourhoods))))  # (B, G, M, W)
        whole = local.amax(2)  # (B, G, W)
        # Linear on concat([whole, local]) without the concatenation: the half that sees the patch's maximum
        # is the same for all its points, so it is computed once per patch.
        for_whole, for_local = self.point3.weight.split(whole.shape[-1], dim=1)
        mixed = F.linear(local, for_local, self.point3.bias) + F.linear(whole, for_whole)[:, :, None]
        return self.point4(F.relu(self.norm2(mixed))).amax(2)


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
