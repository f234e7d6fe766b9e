"""Datasets whose files are read once and then mapped from the cache (harness.data.cache)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.data.cache import Converted, converted
from harness.data.dataset import Dataset, PointClouds, Split, check_clouds
from harness.data.sources import lacking
from harness.errors import UserError


@dataclass(frozen=True)
class OfficialDataset(Dataset):
    """Clouds of one size in official files."""

    @abstractmethod
    def split_files(self, split: Split, root: Path) -> list[Path]:
        """The files of a split: of the release that is here, or, when none is, of the one to get."""

    @abstractmethod
    def read(self, split: Split, root: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Points (n, N, 3) and labels (n,) from the files. Raises UserError for what is wrong with them."""

    def sources(self, root: Path) -> list[Path]:
        """The files of both splits."""
        return self.split_files("train", root) + self.split_files("test", root)

    def missing(self, root: Path) -> str | None:
        """Which files are not there, and where they belong."""
        try:
            return lacking(self.name, self.sources(root), self.source)
        except UserError as problem:  # a list of files that is itself damaged
            return str(problem)

    def load(self, split: Split, root: Path) -> PointClouds:
        """One split, mapped from the cache; its digest is that of what the files hold."""
        found = self.convert(split, root)
        return PointClouds(found.arrays["points"], found.arrays["labels"], found.digest)

    def convert(self, split: Split, root: Path) -> Converted:
        """One split, and where the cache has it."""
        if problem := lacking(self.name, self.split_files(split, root), self.source):
            raise UserError(problem)

        def read() -> dict[str, npt.NDArray[np.generic]]:
            points, labels = self.read(split, root)
            return {"points": points, "labels": labels}

        return converted(
            self.entry_name(split),
            root=root,
            reader=f"{self.version} {self.points} {len(self.classes)}",
            sources=self.split_files(split, root),
            read=read,
        )

    def entry_name(self, split: Split) -> str:
        """The split's folder below the cache."""
        return f"{self.name}/{split}"

    def check(self, points: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], where: Path) -> None:
        """Refuse clouds of a file that are not as declared."""
        check_clouds(points, labels, classes=len(self.classes), where=str(where))
        if points.shape[1] != self.points:
            raise UserError(f"{where}: {points.shape[1]} points per cloud, expected {self.points}; get the file again")
