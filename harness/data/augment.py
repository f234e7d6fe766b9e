"""Random transformations of training clouds, whole batches at a time, on the device.

The generator is the trial's own and does not depend on the method, so all methods see the same clouds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
UP_AXIS: dict[str, int] = {"x": 0, "y": 1, "z": 2}


def _uniform(shape: tuple[int, ...], low: float, high: float, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty(shape, device=like.device, dtype=like.dtype).uniform_(low, high, generator=generator)


def scale_translate(points: Tensor, generator: torch.Generator) -> Tensor:
    """Per cloud and axis: scale by U(2/3, 3/2), then shift by U(-0.2, 0.2) (PointcloudScaleAndTranslate).

    (B, N, 3) -> (B, N, 3).
    """
    shape = (len(points), 1, 3)
    scale = _uniform(shape, 2 / 3, 3 / 2, points, generator)
    shift = _uniform(shape, -0.2, 0.2, points, generator)
    return points * scale + shift


def scale_shift(points: Tensor, generator: torch.Generator) -> Tensor:
    """Per cloud: scale by U(0.8, 1.25), then shift by U(-0.1, 0.1) per axis.

    For part segmentation (Point-MAE's `segmentation/provider.py`). (B, N, 3) -> (B, N, 3).
    """
    scale = _uniform((len(points), 1, 1), 0.8, 1.25, points, generator)
    shift = _uniform((len(points), 1, 3), -0.1, 0.1, points, generator)
    return points * scale + shift


def rotate(points: Tensor, generator: torch.Generator, *, up: Literal["y", "z"]) -> Tensor:
    """Per cloud: turn about the vertical axis by U(0, 2 pi). (B, N, 3) -> (B, N, 3)."""
    return _turned(points, _uniform((len(points),), 0, 2 * math.pi, points, generator), up=up)


def scale_rotate(points: Tensor, generator: torch.Generator, *, up: Literal["y", "z"]) -> Tensor:
    """Per cloud and axis: scale by U(0.9, 1.1); then one turn of all clouds about the vertical by U(-pi, pi).

    Point-PEFT's for PB_T50_RS (`train_transforms_scan`, its "-aug" rows). (B, N, 3) -> (B, N, 3).
    """
    scale = _uniform((len(points), 1, 3), 0.9, 1.1, points, generator)
    angle = _uniform((1,), -math.pi, math.pi, points, generator)
    return _turned(points * scale, angle.expand(len(points)), up=up)


def _turned(points: Tensor, angle: Tensor, *, up: Literal["y", "z"]) -> Tensor:
    """Clouds (B, N, 3) turned about the vertical by angles (B,)."""
    axis = UP_AXIS[up]
    first, second = (index for index in range(3) if index != axis)
    rotation = torch.zeros(len(points), 3, 3, device=points.device, dtype=points.dtype)
    rotation[:, axis, axis].fill_(1)  # an assigned number would be copied to the device, step by step
    rotation[:, first, first] = rotation[:, second, second] = angle.cos()
    rotation[:, first, second] = angle.sin()
    rotation[:, second, first] = -angle.sin()
    return points @ rotation


def augmentation(name: str, *, up: Literal["y", "z"]) -> Augmentation:
    """The transformation that a suite calls `name` (train.augment)."""
    table: dict[str, Augmentation] = {
        "none": lambda points, _: points,
        "scale_translate": scale_translate,
        "scale_shift": scale_shift,
        "rotate": lambda points, generator: rotate(points, generator, up=up),
        "scale_rotate": lambda points, generator: scale_rotate(points, generator, up=up),
    }
    return table[name]
