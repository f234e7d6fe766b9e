"""From tokens to class scores: what the head sees (pooling) and the papers' three-layer head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.models.transformer import Tokens

Pool = Literal["class", "prompt_mean", "prompt_max", "patch_max", "patch_mean"]


def _prompts(tokens: Tokens) -> Tensor:
    """Prompt tokens (B, P, C), at least one: the mean of none would be NaN, and train on."""
    if tokens.prompts.shape[1] == 0:
        raise UserError("pool asks for prompts, but this method hands none on to the head; use class and patch_max")
    return tokens.prompts


POOLS: dict[Pool, Callable[[Tokens], Tensor]] = {
    "class": lambda tokens: tokens.class_token,
    "prompt_mean": lambda tokens: _prompts(tokens).mean(1),
    "prompt_max": lambda tokens: _prompts(tokens).amax(1),
    "patch_max": lambda tokens: tokens.patches.amax(1),
    "patch_mean": lambda tokens: tokens.patches.mean(1),
}
assert set(POOLS) == set(get_args(Pool))


class ClassificationHead(nn.Sequential):
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


class Classifier(nn.Module):
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
