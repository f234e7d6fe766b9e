"""The contract of a dataset: declared as data, loaded only where a trial needs it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.errors import UserError

Split = Literal["train", "test"]


@dataclass(frozen=True)
class PointClouds:
    """One split in memory."""

    points: npt.NDArray[np.floating]
    """(n, N, 3)"""
    labels: npt.NDArray[np.int64]
    """(n,)"""
    digest: str
    """SHA-256 of the file or files that hold this dataset."""


@dataclass(frozen=True)
class Dataset(ABC):
    """A classification dataset. `validate` and `plan` read the declaration only; files are opened by `load`."""

    name: str
    version: int
    classes: tuple[str, ...]
    train_items: int
    test_items: int
    points: int
    """Points stored per cloud."""
    up: Literal["y", "z"]
    """Vertical axis, about which the rotation augmentation turns."""
    normalised: bool
    """Clouds are moved to mean zero and scaled so that the farthest point has norm 1; a file for `harness predict`
    is treated likewise."""
    licence: str
    source: str
    """Where a user gets it."""

    @abstractmethod
    def missing(self, root: Path) -> str | None:
        """None when the files are there, else what is missing and where to put it."""

    @abstractmethod
    def load(self, split: Split, root: Path) -> PointClouds:
        """Read one split. Raises UserError for files that are missing or wrong."""


def combined_digest(train: PointClouds, test: PointClouds) -> str:
    """One SHA-256 for both splits, as results keep it."""
    return hashlib.sha256(f"{train.digest} {test.digest}".encode()).hexdigest()


def check_clouds(
    points: npt.NDArray[np.floating], labels: npt.NDArray[np.integer], *, classes: int, where: str
) -> None:
    """Refuse what would train on garbage: wrong shapes, NaN, labels out of range. Raises UserError."""
    if points.ndim != 3 or points.shape[-1] != 3 or len(points) == 0:
        raise UserError(f"{where}: expected points of shape (items, points, 3), found {points.shape}")
    if labels.shape != (len(points),):
        raise UserError(f"{where}: {len(points)} clouds but labels of shape {labels.shape}")
    finite = np.isfinite(points).all(axis=(1, 2))
    if not finite.all():
        raise UserError(
            f"{where}: item {int(np.argmin(finite))} holds NaN or infinite coordinates "
            f"({int((~finite).sum())} such items); the file is damaged, get it again"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"{where}: labels run from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}")
