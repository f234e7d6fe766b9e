"""The h5 reader, on small files in the official layout."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from harness.data.scanobjectnn import OBJ_BG, PB_T50_RS
from harness.errors import UserError

SMALL = replace(OBJ_BG, points=8)


def write(path: Path, points: np.ndarray, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = points.astype(np.float32), labels.astype(np.int32)


def fill(root: Path, items: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    points, labels = generator.normal(size=(items, 8, 3)), generator.integers(0, 15, items)
    for name in ("training_objectdataset.h5", "test_objectdataset.h5"):
        write(root / "ScanObjectNN" / "main_split" / name, points, labels)
    return points, labels


def test_items_come_back_as_stored(tmp_path: Path) -> None:
    points, labels = fill(tmp_path)
    clouds = SMALL.load("test", tmp_path)
    assert np.allclose(clouds.points, points) and np.array_equal(clouds.labels, labels)
    assert SMALL.missing(tmp_path) is None


def test_missing_files_are_named(tmp_path: Path) -> None:
    message = PB_T50_RS.missing(tmp_path)
    assert (
        message is not None
        and "training_objectdataset_augmentedrot_scale75.h5" in message
        and "HARNESS_DATA" in message
    )
    with pytest.raises(UserError, match="lacks"):
        PB_T50_RS.load("train", tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_bytes(p.read_bytes()[:700]), "cannot be read as h5"),
        (lambda p: write(p, np.zeros((2, 8, 2)), np.zeros(2)), "shape"),
        (lambda p: write(p, np.zeros((2, 9, 3)), np.zeros(2)), "9 points per cloud"),
        (lambda p: write(p, np.zeros((2, 8, 3)), np.array([1, 15])), "labels run from 1 to 15"),
        (lambda p: write(p, np.full((2, 8, 3), np.nan), np.zeros(2)), "NaN"),
        (lambda p: write(p, np.zeros((2, 8, 3)), np.zeros(3)), "2 clouds but labels"),
    ],
    ids=["empty", "cut", "two coordinates", "wrong point count", "labels from 1", "NaN", "label count"],
)
def test_wrong_files_are_refused(damage, words: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fill(tmp_path)
    damage(tmp_path / "ScanObjectNN" / "main_split" / "training_objectdataset.h5")
    with pytest.raises(UserError, match=words):
        SMALL.load("train", tmp_path)
