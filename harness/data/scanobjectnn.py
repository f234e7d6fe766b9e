"""ScanObjectNN: real scans of 15 classes, in its three official settings (h5 files).

Uy et al., ICCV 2019, https://hkust-vgd.github.io/scanobjectnn/. Clouds are used as stored, not normalised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt

from harness.data.dataset import Split
from harness.data.official import OfficialDataset
from harness.data.sources import AGAIN, refuse_unreadable
from harness.errors import UserError

CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door",
    "shelf", "table", "bed", "pillow", "sink", "sofa", "toilet",
)  # fmt: skip

LIMIT = 2**28
"""Numbers in an array of a file; the largest official one has 0.07e9."""


@dataclass(frozen=True)
class H5Dataset(OfficialDataset):
    """Clouds in h5 files with the keys `data` (n, N, 3) and `label` (n,)."""

    folder: str
    """Below the data root."""
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]

    def split_files(self, split: Split, root: Path) -> list[Path]:
        """The h5 files of a split."""
        names = self.train_files if split == "train" else self.test_files
        return [root / self.folder / name for name in names]

    def read(self, split: Split, root: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The clouds as stored, file after file."""
        clouds = [self._read_file(path) for path in self.split_files(split, root)]
        points, labels = zip(*clouds, strict=True)
        return np.concatenate(points), np.concatenate(labels)

    def _read_file(self, path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        refuse_unreadable(path)
        try:
            with h5py.File(path, "r") as file:
                absent = [key for key in ("data", "label") if key not in file]
                if absent:
                    raise UserError(f"{path}: no key '{absent[0]}' (found: {', '.join(sorted(file))})")
                for shape in (file["data"].shape, file["label"].shape):
                    if math.prod(shape) > LIMIT:  # a few bytes can unpack to any size
                        raise UserError(
                            f"{path}: holds an array of shape {shape}, more than any official file; {AGAIN}"
                        )
                points, labels = np.asarray(file["data"], np.float32), np.asarray(file["label"], np.int64)
        except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: cannot be read as h5 ({error}); was the download complete? {AGAIN}") from None
        labels = labels.reshape(-1)
        self.check(points, labels, path)
        return points, labels


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
