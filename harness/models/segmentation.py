"""Parts of points: the segmentation head of Point-MAE, and the model that puts it on an encoder.

Pang et al., ECCV 2022; official `segmentation/models/pt.py` (class get_model) and `pointnet2_utils.py`
(PointNetFeaturePropagation, Qi et al., NeurIPS 2017, arXiv 1706.02413, section 3.4). The official code has its layers
as 1x1 convolutions of (B, C, N), and repeats, interpolates and concatenates their inputs for every point. Here they
are linear layers, and what is the same for a whole patch or cloud goes through its share of the weights once: the same
function, without tensors of (B, N, 1155) and (B, N, 3392).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.geometry import gather_points, nearest
from harness.models.batchnorm import PointwiseNorm
from harness.models.head import Headed
from harness.models.transformer import Tokens

NEIGHBOURS = 3
LABEL_WIDTH = 64


def thirds(depth: int) -> tuple[int, int, int]:
    """The blocks, from 0, that end the first, second and last third of `depth`: 3, 7 and 11 of 12."""
    first, second, last = (-(-depth * third // 3) - 1 for third in (1, 2, 3))
    return first, second, last


@torch.no_grad()
def spread(points: Tensor, centers: Tensor) -> Tensor:
    """How centres (B, G, 3) spread to points (B, N, 3): weights (B, N, G), rows of which sum to one.

    By inverse squared distance, to the three nearest centres.
    """
    members = nearest(centers, points, min(NEIGHBOURS, centers.shape[1]))  # (B, N, 3)
    distance = (points[:, :, None] - gather_points(centers, members)).square().sum(-1)
    weights = 1 / (distance + 1e-8)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights.new_zeros(*points.shape[:2], centers.shape[1]).scatter_(2, members, weights)


class Propagation(nn.Module):
    """Features of patches, brought to the points: two layers, BatchNorm and ReLU on [xyz, interpolated features]."""

    def __init__(self, *, inputs: int, hidden: int, width: int) -> None:
        super().__init__()
        self.point1 = nn.Linear(3 + inputs, hidden)
        self.norm1 = PointwiseNorm(hidden)
        self.point2 = nn.Linear(hidden, width)
        self.norm2 = PointwiseNorm(width)

    def forward(self, points: Tensor, centers: Tensor, features: Tensor) -> Tensor:
        """Points (B, N, 3), centres (B, G, 3) with features (B, G, inputs) -> (B, N, width)."""
        for_xyz, for_features = self.point1.weight.split([3, features.shape[-1]], dim=1)
        # Interpolation is linear, so the layer may come before it: G rows go through its weights instead of N.
        x = spread(points, centers) @ F.linear(features, for_features) + F.linear(points, for_xyz, self.point1.bias)
        return F.relu(self.norm2(self.point2(F.relu(self.norm1(x)))))


class LabelEmbedding(nn.Module):
    """A cloud's category as features: one-hot, linear without bias, BatchNorm, LeakyReLU 0.2."""

    def __init__(self, *, categories: int, width: int) -> None:
        super().__init__()
        self.categories = categories
        self.linear = nn.Linear(categories, width, bias=False)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, categories: Tensor) -> Tensor:
        """(B,) int64 -> (B, width)."""
        one_hot = F.one_hot(categories, self.categories).to(self.linear.weight.dtype)
        return F.leaky_relu(self.norm(self.linear(one_hot)), 0.2)


class PartHead(nn.Module):
    """Tokens of three depths and the category -> scores of parts for every point.

    A point sees what propagates to it; all points of a cloud see the maximum and mean over its patches and the
    category's embedding. Then 512, dropout, 256, parts, with BatchNorm and ReLU.
    """

    def __init__(self, *, dim: int, categories: int, parts: int, dropout: float = 0.5) -> None:
        super().__init__()
        width = 3 * dim
        self.label = LabelEmbedding(categories=categories, width=LABEL_WIDTH)
        self.propagation = Propagation(inputs=width, hidden=4 * dim, width=1024)
        self.point1 = nn.Linear(1024 + 2 * width + LABEL_WIDTH, 512)
        self.norm1 = PointwiseNorm(512)
        self.dropout = nn.Dropout(dropout)
        self.point2 = nn.Linear(512, 256)
        self.norm2 = PointwiseNorm(256)
        self.point3 = nn.Linear(256, parts)

    def forward(self, points: Tensor, categories: Tensor, tokens: Tokens) -> Tensor:
        """Points (B, N, 3), categories (B,) int64, tokens with three kept -> (B, N, parts)."""
        features = torch.cat(tokens.kept, dim=-1)  # (B, G, 3C)
        whole = torch.cat([features.amax(1), features.mean(1), self.label(categories)], dim=-1)  # (B, 6C + 64)
        local = self.propagation(points, tokens.centers, features)  # (B, N, 1024)
        for_local, for_whole = self.point1.weight.split([local.shape[-1], whole.shape[-1]], dim=1)
        x = F.linear(local, for_local, self.point1.bias) + F.linear(whole, for_whole)[:, None]
        x = self.dropout(F.relu(self.norm1(x)))
        return self.point3(F.relu(self.norm2(self.point2(x))))


class Segmenter(Headed):
    """Encoder and head: points (B, N, 3) and categories (B,) -> scores (B, N, parts).

    The head reads patch tokens alone, each through the encoder's final norm: what a method would pool is not asked.
    """

    def __init__(self, *, encoder: nn.Module, blocks: tuple[int, ...], head: PartHead) -> None:
        super().__init__()
        self.encoder, self.blocks, self.head = encoder, blocks, head

    def forward(self, points: Tensor, categories: Tensor) -> Tensor:
        """(B, N, 3), (B,) int64 -> (B, N, parts)."""
        return self.head(points, categories, self.encoder(points, keep=self.blocks))
