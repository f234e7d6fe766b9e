"""ShapeNet-55: the CAD models that the papers' encoders are pre-trained on; no labels are used.

Yu et al., ICCV 2021 (PoinTr), ShapeNet55-34.zip. `harness data prepare shapenet55` makes one file for `harness
pretrain` of the clouds in both lists, as the papers pre-train on both: of each a random subset of its points, drawn by
its name, at mean zero and radius 1. The papers draw a new subset every epoch.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from harness.atomic import write_atomically
from harness.data.dataset import Declaration, Task
from harness.data.modelnet40 import normalise
from harness.data.sources import AGAIN, is_there, lacking, read_lines, refuse_unreadable
from harness.errors import UserError

FOLDER = "ShapeNet55-34"


@dataclass(frozen=True)
class ShapeNet55(Declaration):
    """Clouds without labels: `classes` is empty."""

    task: ClassVar[Task] = "pre-training"

    def sources(self, root: Path) -> list[Path]:
        """The two lists, and the clouds that they name, train first."""
        lists = [root / FOLDER / "ShapeNet-55" / f"{split}.txt" for split in ("train", "test")]
        if not all(is_there(path) for path in lists):
            return lists
        return lists + [path for listing in lists for path in self._named(listing, root)]

    def missing(self, root: Path) -> str | None:
        """Which files are not there, and where they belong."""
        try:
            return lacking(self.name, self.sources(root), self.source)
        except UserError as problem:  # a damaged list
            return str(problem)

    def read_cloud(self, path: Path) -> npt.NDArray[np.float32]:
        """One cloud (8192, 3) as stored. Raises UserError."""
        refuse_unreadable(path)
        try:
            cloud = np.load(path, allow_pickle=False, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read as .npy ({error}); was the download complete? {AGAIN}") from None
        if cloud.shape != (self.points, 3) or cloud.dtype.kind != "f":
            raise UserError(f"{path}: {cloud.dtype} of shape {cloud.shape}, expected ({self.points}, 3); {AGAIN}")
        if not np.isfinite(cloud).all():
            raise UserError(f"{path}: holds NaN or infinite coordinates; {AGAIN}")
        return np.asarray(cloud, np.float32)

    def prepare(self, *, root: Path, output: Path, points: int) -> list[Path]:
        """Write OUTPUT/shapenet55_POINTS.npy (n, points, 3) float32 and its card; the same bytes every time."""
        if problem := self.missing(root):
            raise UserError(problem)
        if not 1 <= points <= self.points:
            raise UserError(f"--points {points}: clouds hold {self.points}")
        files = self.sources(root)[2:]
        path = output / f"{self.name}_{points}.npy"
        try:
            output.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=output, prefix=".new-") as scratch:
                temporary = Path(scratch) / path.name
                clouds = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(files), points, 3))
                for row, file in enumerate(files):
                    seed = int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:8], "big")
                    chosen = np.random.default_rng(seed).permutation(self.points)[:points]
                    clouds[row] = normalise(self.read_cloud(file)[None, chosen])[0]
                clouds.flush()
                del clouds
                temporary.replace(path)
            about = f"ShapeNet-55, train and test lists, {points} random points of {self.points}; {self.licence}"
            card = {"name": self.name, "version": self.version, "items": len(files), "source": about}
            write_atomically(path.with_suffix(".json"), json.dumps(card, indent=1))
        except OSError as error:
            raise UserError(f"{output}: cannot be written ({error.strerror or error})") from None
        return [path, path.with_suffix(".json")]

    def _named(self, listing: Path, root: Path) -> list[Path]:
        names = read_lines(listing)
        for number, name in enumerate(names, 1):
            if "/" in name or "-" not in name or not name.endswith(".npy"):
                raise UserError(f"{listing}:{number}: '{name[:80]}' is no SYNSET-NAME.npy; {AGAIN}")
        return [root / FOLDER / "shapenet_pc" / name for name in names]


SHAPENET55 = ShapeNet55(
    name="shapenet55",
    version=1,
    classes=(),
    train_items=41952,
    test_items=10518,
    points=8192,
    up="y",
    normalised=False,
    licence="ShapeNet terms of use (non-commercial research)",
    source=f"Get {FOLDER}.zip (links in Point-BERT's and PoinTr's DATASET.md) and unpack it in the data folder "
    "(HARNESS_DATA).",
)
