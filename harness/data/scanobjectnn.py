"""ScanObjectNN: real scans of 15 classes, in its three official settings (h5 files).

Uy et al., ICCV 2019, https://hkust-vgd.github.io/scanobjectnn/. Clouds are used as stored, not normalised.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from harness.data.dataset import Dataset, PointClouds, Split, check_clouds
from harness.errors import UserError

CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door",
    "shelf", "table", "bed", "pillow", "sink", "sofa", "toilet",
)  # fmt: skip


@dataclass(frozen=True)
class H5Dataset(Dataset):
    """Clouds in h5 files with the keys `data` (n, N, 3) and `label` (n,)."""

    folder: str
    """Below the data root."""
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]

    def files(self, split: Split, root: Path) -> list[Path]:
        """The files of a split."""
        names = self.train_files if split == "train" else self.test_files
        return [root / self.folder / name for name in names]

    def missing(self, root: Path) -> str | None:
        """Which files are not there, and where they belong."""
        wanted = self.files("train", root) + self.files("test", root)
        absent = [str(path) for path in wanted if not path.is_file()]
        if not absent:
            return None
        return f"dataset '{self.name}' lacks {' and '.join(absent)}. {self.source}"

    def load(self, split: Split, root: Path) -> PointClouds:
        """Read one split as stored."""
        problem = self.missing(root)
        if problem:
            raise UserError(problem)
        points, labels, digest = [], [], hashlib.sha256()
        for path in self.files(split, root):
            try:
                with h5py.File(path, "r") as file:
                    absent = [key for key in ("data", "label") if key not in file]
                    if absent:
                        raise UserError(f"{path}: no key '{absent[0]}' (found: {', '.join(sorted(file))})")
                    cloud, label = np.asarray(file["data"], np.float32), np.asarray(file["label"], np.int64)
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: cannot be read as h5 ({error}); was the download complete?") from None
            label = label.reshape(-1)
            check_clouds(cloud, label, classes=len(self.classes), where=str(path))
            if cloud.shape[1] != self.points:
                raise UserError(f"{path}: {cloud.shape[1]} points per cloud, expected {self.points}")
            points.append(cloud)
            labels.append(label)
            digest.update(cloud.tobytes())
            digest.update(label.tobytes())
        return PointClouds(np.concatenate(points), np.concatenate(labels), digest.hexdigest())


def _declare(name: str, folder: str, stem: str, *, train: int, test: int) -> H5Dataset:
    return H5Dataset(
        name=name,
        version=1,
        classes=CLASSES,
        train_items=train,
        test_items=test,
        points=2048,
        up="y",
        normalised=False,
        licence="ScanObjectNN terms of use (research, by agreement)",
        source="Ask for h5_files.zip at https://hkust-vgd.github.io/scanobjectnn/ and unpack it so that "
        "ScanObjectNN/main_split and ScanObjectNN/main_split_nobg lie in the data folder (HARNESS_DATA).",
        folder=folder,
        train_files=(f"training_{stem}.h5",),
        test_files=(f"test_{stem}.h5",),
    )


OBJ_BG = _declare("scanobjectnn_obj_bg", "ScanObjectNN/main_split", "objectdataset", train=2309, test=581)
OBJ_ONLY = _declare("scanobjectnn_obj_only", "ScanObjectNN/main_split_nobg", "objectdataset", train=2309, test=581)
PB_T50_RS = _declare(
    "scanobjectnn_pb_t50_rs",
    "ScanObjectNN/main_split",
    "objectdataset_augmentedrot_scale75",
    train=11416,
    test=2882,
)
