"""From tokens to class scores: what the head sees (pooling), the field's three heads, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.errors import UserError
from harness.models.transformer import Tokens

Pool = Literal[
    "class",
    "prompt_mean",
    "prompt_max",
    "patch_max",
    "patch_mean",
    "mean",
    "max",
    "max_without_first",
    "mean_plus_max",
]
HeadKind = Literal["three_layer", "two_layer", "linear"]


def _prompts(tokens: Tokens) -> Tensor:
    """Prompt tokens (B, P, C), at least one: the mean of none would be NaN, and train on."""
    if tokens.prompts.shape[1] == 0:
        raise UserError("pool asks for prompts, but this method hands none on to the head; use class and patch_max")
    return tokens.prompts


def _all(tokens: Tokens) -> Tensor:
    """Every token but prompts (B, T, C)."""
    return tokens.without_prompts().features


POOLS: dict[Pool, Callable[[Tokens], Tensor]] = {
    "class": lambda tokens: tokens.class_token,
    "prompt_mean": lambda tokens: _prompts(tokens).mean(1),
    "prompt_max": lambda tokens: _prompts(tokens).amax(1),
    "patch_max": lambda tokens: tokens.patches.amax(1),
    "patch_mean": lambda tokens: tokens.patches.mean(1),
    # Point-M2AE's official heads: over all tokens, and for ScanObjectNN a maximum that leaves out the first one.
    "mean": lambda tokens: _all(tokens).mean(1),
    "max": lambda tokens: _all(tokens).amax(1),
    "max_without_first": lambda tokens: _all(tokens)[:, 1:].amax(1),
    "mean_plus_max": lambda tokens: _all(tokens).mean(1) + _all(tokens).amax(1),
}
assert set(POOLS) == set(get_args(Pool))


class ThreeLayerHead(nn.Sequential):
    """Linear, BatchNorm, ReLU, Dropout twice, then Linear: `cls_head_finetune` of Point-MAE and both papers."""

    def __init__(self, *, inputs: int, classes: int, dropout: float = 0.5, width: int = 256) -> None:
        super().__init__(
            nn.Linear(inputs, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, classes),
        )


class TwoLayerHead(nn.Sequential):
    """Linear, ReLU, Dropout, Linear: `cls_head_finetune` of Point-BERT."""

    def __init__(self, *, inputs: int, classes: int, dropout: float = 0.5, width: int = 256) -> None:
        super().__init__(nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, classes))


class LinearHead(nn.Sequential):
    """One linear layer, where nothing drops out: `cls_head_finetune` of ACT and ReCon when they probe linearly."""

    def __init__(self, *, inputs: int, classes: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(inputs, classes))


HEADS: dict[HeadKind, type[ThreeLayerHead | TwoLayerHead | LinearHead]] = {
    "three_layer": ThreeLayerHead,
    "two_layer": TwoLayerHead,
    "linear": LinearHead,
}


class Headed(nn.Module):
    """An encoder with a head on it; what it is called with and what it says is the task's."""

    encoder: nn.Module
    head: nn.Module


class Classifier(Headed):
    """Encoder, pooling and head in one: points (B, N, 3) -> scores (B, K)."""

    def __init__(self, *, encoder: nn.Module, pool: tuple[Pool, ...], head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.pool, self.head = encoder, pool, head

    def features(self, points: Tensor) -> Tensor:
        """What the head sees: (B, N, 3) -> (B, F)."""
        tokens = self.encoder(points)
        return torch.cat([POOLS[name](tokens) for name in self.pool], dim=1)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, K)."""
        return self.head(self.features(points))


def classification_loss(scores: Tensor, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of scores (B, K) and labels (B,) int64.

    The smoothing is the field's (Point-BERT, Point-M2AE: `smooth_loss`): the true class gets 1 - s, and each of the
    K - 1 others s / (K - 1). Torch's own gives s / K to every class, the true one too.
    """
    if not label_smoothing:
        return F.cross_entropy(scores, labels)
    surprise = -scores.log_softmax(1)  # (B, K)
    true = surprise.gather(1, labels[:, None])[:, 0]
    others = (surprise.sum(1) - true) / (scores.shape[1] - 1)
    return ((1 - label_smoothing) * true + label_smoothing * others).mean()
