"""ShapeNetPart: CAD models of 16 categories whose every point is labelled with one of 50 parts.

Yi et al., SIGGRAPH Asia 2016, in the release with normals that the papers use. They train on `trainval` and test on
`test`, and take 2048 points of a cloud at random, with replacement; files hold different numbers. Clouds are moved to
mean zero and scaled to radius 1, as the official loader does, with all their points.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from harness.data.cache import Converted, converted
from harness.data.dataset import PartClouds, PartDataset
from harness.data.modelnet40 import normalise
from harness.data.sources import AGAIN, is_there, lacking, read_json_list, read_lines, read_table
from harness.errors import UserError

PartSplit = Literal["train", "val", "trainval", "test"]

PARTS = {
    "Airplane": range(0, 4), "Bag": range(4, 6), "Cap": range(6, 8), "Car": range(8, 12), "Chair": range(12, 16),
    "Earphone": range(16, 19), "Guitar": range(19, 22), "Knife": range(22, 24), "Lamp": range(24, 28),
    "Laptop": range(28, 30), "Motorbike": range(30, 36), "Mug": range(36, 38), "Pistol": range(38, 41),
    "Rocket": range(41, 44), "Skateboard": range(44, 47), "Table": range(47, 50),
}  # fmt: skip
"""Parts of each category, in the order of the category labels."""
FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"


@dataclass(frozen=True)
class ShapeNetPart(PartDataset):
    """`classes` are the categories, `train_items` those of train and val, `points` what the papers take of a cloud."""

    def sources(self, root: Path) -> list[Path]:
        """The lists, and the clouds that they name."""
        lists = self._lists(root)
        if not all(is_there(path) for path in lists):
            return lists
        return lists + [path for _, path in self._shapes("trainval", root) + self._shapes("test", root)]

    def missing(self, root: Path) -> str | None:
        """Which files are not there, and where they belong."""
        try:
            return lacking(self.name, self.sources(root), self.source)
        except UserError as problem:  # a damaged list
            return str(problem)

    def load_train(self, root: Path) -> PartClouds:
        """What the papers train on: train and val."""
        return self.load("trainval", root)

    def load_test(self, root: Path) -> PartClouds:
        """The test split."""
        return self.load("test", root)

    def load(self, split: PartSplit, root: Path) -> PartClouds:
        """One split, mapped from the cache. Raises UserError for files that are missing or wrong."""
        found = self.convert(split, root)
        arrays = found.arrays
        return PartClouds(
            points=arrays["points"],
            parts=arrays["parts"],
            offsets=arrays["offsets"],
            categories=arrays["categories"],
            digest=found.digest,
        )

    def convert(self, split: PartSplit, root: Path) -> Converted:
        """One split, and where the cache has it."""
        if problem := lacking(self.name, self._lists(root), self.source):
            raise UserError(problem)
        shapes = self._shapes(split, root)
        files = [path for _, path in shapes]
        if problem := lacking(self.name, files, self.source):
            raise UserError(problem)

        def read() -> dict[str, npt.NDArray[np.generic]]:
            clouds = [_read_cloud(path, category) for category, path in shapes]
            offsets = np.cumsum([0, *(len(parts) for _, parts in clouds)])
            return {
                "points": np.concatenate([points for points, _ in clouds]),
                "parts": np.concatenate([parts for _, parts in clouds]),
                "offsets": offsets.astype(np.int64),
                "categories": np.array([list(PARTS).index(category) for category, _ in shapes], np.int64),
            }

        return converted(
            f"{self.name}/{split}", root=root, reader=str(self.version), sources=self._lists(root) + files, read=read
        )

    def _lists(self, root: Path) -> list[Path]:
        base = root / FOLDER
        names = [base / "train_test_split" / f"shuffled_{part}_file_list.json" for part in ("train", "val", "test")]
        return [base / "synsetoffset2category.txt", *names]

    def _shapes(self, split: PartSplit, root: Path) -> list[tuple[str, Path]]:
        """(category, file) of a split: category after category, then by name, as the official loader goes."""
        names, *lists = self._lists(root)
        synsets: dict[str, str] = {}
        for number, line in enumerate(read_lines(names), 1):
            category, _, synset = line.partition("\t") if "\t" in line else line.partition(" ")
            if category not in PARTS or not synset.strip().isdecimal():
                raise UserError(f"{names}:{number}: '{line[:60]}' is no CATEGORY SYNSET of ShapeNetPart; {AGAIN}")
            synsets[synset.strip()] = category
        wanted = ("train", "val") if split == "trainval" else (split,)
        found = []
        for listing in lists:
            if listing.name.split("_")[1] not in wanted:
                continue
            for entry in read_json_list(listing):
                _, _, rest = entry.partition("/")
                synset, _, name = rest.partition("/")
                if synset not in synsets or not name or "/" in name or name.startswith("."):
                    raise UserError(f"{listing}: '{entry[:80]}' is no shape_data/SYNSET/NAME; {AGAIN}")
                found.append((synsets[synset], root / FOLDER / synset / f"{name}.txt"))
        order = list(PARTS)
        return sorted(found, key=lambda shape: (order.index(shape[0]), shape[1].name))


def _read_cloud(path: Path, category: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Normalised points (N, 3) and parts (N,) of `x y z nx ny nz part` lines."""
    table = read_table(path, columns=7, separator=None)
    parts = table[:, 6].astype(np.int64)
    own = PARTS[category]
    if parts.min() < own.start or parts.max() >= own.stop or not np.array_equal(parts, table[:, 6]):
        raise UserError(
            f"{path}: parts run from {table[:, 6].min():g} to {table[:, 6].max():g}, those of {category} from "
            f"{own.start} to {own.stop - 1}; {AGAIN}"
        )
    return normalise(table[None, :, :3].astype(np.float32))[0], parts


SHAPENETPART = ShapeNetPart(
    name="shapenetpart",
    version=1,
    classes=tuple(PARTS),
    parts=tuple(tuple(own) for own in PARTS.values()),
    train_items=14007,
    test_items=2874,
    points=2048,
    up="y",
    normalised=True,
    licence="ShapeNet terms of use (non-commercial research)",
    source=f"Get {FOLDER}.zip (links in the papers' repositories) and unpack it in the data folder (HARNESS_DATA).",
)
