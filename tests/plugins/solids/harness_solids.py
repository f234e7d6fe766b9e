"""solids: spheres, cubes, cylinders and cones of random proportions, drawn on demand from fixed seeds."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.data.dataset import Dataset, PointClouds, Split, check_clouds

Floats = npt.NDArray[np.float64]


def _surface(solid: str, count: int, rng: np.random.Generator) -> Floats:
    """Points (count, 3) on a solid of height 2 about the z axis."""
    angle, height = rng.uniform(0, 2 * np.pi, count), rng.uniform(-1, 1, count)
    round_section = np.stack([np.cos(angle), np.sin(angle), height], axis=1)
    if solid == "cube":
        points = rng.uniform(-1, 1, (count, 3))
        side, axis = rng.choice([-1.0, 1.0], count), rng.integers(3, size=count)
        points[np.arange(count), axis] = side
        return points
    radius = {"sphere": np.sqrt(1 - height**2), "cylinder": np.ones(count), "cone": (1 - height) / 2}[solid]
    return round_section * np.stack([radius, radius, np.ones(count)], axis=1)


@dataclass(frozen=True)
class Solids(Dataset):
    """As many clouds of each class in turn, stretched at random; mean zero, farthest point at 1."""

    def missing(self, root: Path) -> str | None:
        """Nothing is ever missing: there are no files."""
        return None

    def load(self, split: Split, root: Path) -> PointClouds:
        """Draw one split, the same every time."""
        items, seed = (self.train_items, 0) if split == "train" else (self.test_items, 1)
        rng = np.random.default_rng([self.version, seed])
        labels = np.arange(items, dtype=np.int64) % len(self.classes)
        clouds = np.stack([self._cloud(self.classes[label], rng) for label in labels])
        check_clouds(clouds, labels, classes=len(self.classes), where=f"{self.name}, {split}")
        digest = hashlib.sha256(clouds.tobytes() + labels.tobytes()).hexdigest()
        return PointClouds(points=clouds, labels=labels, digest=digest)

    def _cloud(self, solid: str, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        cloud = _surface(solid, self.points, rng) * rng.uniform(0.5, 1, 3)
        cloud -= cloud.mean(axis=0)
        return (cloud / np.linalg.norm(cloud, axis=1).max()).astype(np.float32)


SOLIDS = Solids(
    name="solids",
    version=1,
    classes=("cone", "cube", "cylinder", "sphere"),
    train_items=64,
    test_items=32,
    points=256,
    up="z",
    normalised=True,
    licence="none needed: drawn by this package",
    source="comes with the package harness-solids",
)
