"""Clouds without a shape, for what training costs: nothing is learnt of them, and nothing must be installed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from harness.data.dataset import Dataset, PointClouds, Split, Task


@dataclass(frozen=True)
class Synthetic(Dataset):
    """Points uniform in the unit ball's cube, and labels, by a fixed seed."""

    task: ClassVar[Task] = "cost"

    def missing(self, root: Path) -> str | None:
        """It is made when it is asked for."""
        return None

    def load(self, split: Split, root: Path) -> PointClouds:
        """The same clouds every time."""
        items = self.train_items if split == "train" else self.test_items
        random = np.random.default_rng([self.version, split == "train"])
        points = 2 * random.random((items, self.points, 3), dtype=np.float32) - 1
        labels = random.integers(len(self.classes), size=items)
        return PointClouds(points, labels, self.digest)

    @property
    def digest(self) -> str:
        """Of what the clouds follow from: they need not be made to know it."""
        shape = (self.version, self.train_items, self.test_items, self.points, len(self.classes))
        return hashlib.sha256(f"{self.name} {shape}".encode()).hexdigest()


SYNTHETIC = Synthetic(
    name="synthetic",
    version=1,
    classes=tuple(f"class {number}" for number in range(15)),
    train_items=5120,
    test_items=512,
    points=2048,
    up="y",
    normalised=True,
    licence="none needed",
    source="made when it is asked for",
)
