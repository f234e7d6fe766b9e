"""The contract of a dataset: declared as data, loaded only where a trial needs it.

`Dataset` is for classification, `PartDataset` for part segmentation. Data for other tasks is declared likewise
(`Declaration`), so that it is listed and checked with the rest; suites refuse it by its task.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from harness.errors import UserError

Split = Literal["train", "test"]
Task = Literal["classification", "few-shot classification", "part segmentation", "pre-training", "cost"]


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
class PartClouds:
    """One split of a part segmentation dataset; clouds have as many points as their files."""

    points: npt.NDArray[np.float32]
    """(P, 3), the clouds one after the other"""
    parts: npt.NDArray[np.int64]
    """(P,) part of each point, over all categories"""
    offsets: npt.NDArray[np.int64]
    """(n + 1,): cloud i has the points from offsets[i] to offsets[i + 1]"""
    categories: npt.NDArray[np.int64]
    """(n,)"""
    digest: str

    def __len__(self) -> int:
        return len(self.categories)

    def item(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], int]:
        """Points (N, 3), parts (N,) and category of one cloud."""
        rows = slice(self.offsets[index], self.offsets[index + 1])
        return self.points[rows], self.parts[rows], int(self.categories[index])


@dataclass(frozen=True)
class Declaration(ABC):
    """What is known of data without opening it."""

    task: ClassVar[Task]
    """What it is for."""
    folds: ClassVar[int] = 0
    """How many train and test splits it comes in, each an experiment of its own; 0 for the usual single one."""

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

    @property
    def fold(self) -> int | None:
        """Which of its folds this is; None where it has none."""
        return None

    def with_fold(self, fold: int) -> Declaration:
        """Another fold, from 0."""
        raise UserError(f"{self.name} has no folds")

    @abstractmethod
    def missing(self, root: Path) -> str | None:
        """None when the files are there, else what is missing and where to put it."""

    def sources(self, root: Path) -> list[Path]:
        """The files that are read, when none is missing; for sizes only."""
        return []


@dataclass(frozen=True)
class Dataset(Declaration):
    """A classification dataset. `validate` and `plan` read the declaration only; files are opened by `load`."""

    task: ClassVar[Task] = "classification"

    @abstractmethod
    def load(self, split: Split, root: Path) -> PointClouds:
        """Read one split. Raises UserError for files that are missing or wrong."""


@dataclass(frozen=True)
class PartDataset(Declaration):
    """A part segmentation dataset: `classes` are the categories, which are given, and `parts` what is to be told."""

    task: ClassVar[Task] = "part segmentation"

    parts: tuple[tuple[int, ...], ...]
    """The parts of each category, counted from 0 over all of them; no part belongs to two."""

    @abstractmethod
    def load_train(self, root: Path) -> PartClouds:
        """Read what is trained on. Raises UserError for files that are missing or wrong."""

    @abstractmethod
    def load_test(self, root: Path) -> PartClouds:
        """Read the test split. Raises UserError for files that are missing or wrong."""


class Digested(Protocol):
    """What has a digest of its content."""

    @property
    def digest(self) -> str:
        """SHA-256."""


def combined_digest(train: Digested, test: Digested) -> str:
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
        hint = "; they count from 1: subtract 1 from all" if (labels.min(), labels.max()) == (1, classes) else ""
        raise UserError(f"{where}: labels run from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}{hint}")
