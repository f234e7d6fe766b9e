"""The cache of converted files: the same clouds, whole or not there, anew when a source changes."""

import errno
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from harness.data import cache
from harness.data.dataset import PointClouds
from harness.data.scanobjectnn import OBJ_BG
from harness.data.splits import load_splits
from harness.errors import UserError
from harness.settings import Protocol
from tests.harness.data.official import clouds, write_h5

SMALL = replace(OBJ_BG, points=8)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return fill(tmp_path / "data")


def fill(root: Path, *, seed: int = 0) -> Path:
    for split in ("training", "test"):
        path = root / "ScanObjectNN" / "main_split" / f"{split}_objectdataset.h5"
        write_h5(path, clouds(4, 8, seed=seed), np.arange(4))
    return root


def refuse(number: int) -> Callable[..., Iterator[None]]:
    def fail(*arguments: object, **settings: object) -> Iterator[None]:
        raise OSError(number, os.strerror(number))

    return fail


def test_the_second_start_maps_what_the_first_kept(root: Path) -> None:
    first, second = SMALL.load("train", root), SMALL.load("train", root)
    entry = SMALL.convert("train", root).entry
    assert entry is not None and entry.parent == root / ".cache" / SMALL.name / "train"
    assert isinstance(second.points, np.memmap) and np.array_equal(first.points, clouds(4, 8))
    plain = cache.digest_of({"points": clouds(4, 8), "labels": np.arange(4)})
    assert first.digest == second.digest == plain
    stored = cache.entry_sources(entry)
    assert [source["file"] for source in stored] == ["ScanObjectNN/main_split/training_objectdataset.h5"]
    second.points[0, 0, 0] = 7.0  # this process's copy only
    assert np.array_equal(SMALL.load("train", root).points, clouds(4, 8))


def test_changed_sources_are_read_anew(root: Path) -> None:
    old = SMALL.load("train", root)
    fill(root, seed=1)
    new = SMALL.load("train", root)
    assert np.array_equal(new.points, clouds(4, 8, seed=1)) and new.digest != old.digest
    assert np.array_equal(old.points, clouds(4, 8)), "who has the old ones open keeps them"
    assert len(list((root / ".cache" / SMALL.name / "train").glob("*/"))) == 1


@pytest.mark.parametrize("damage", ["cut", "pickled", "no array", "card"])
def test_a_damaged_entry_is_made_anew(damage: str, root: Path) -> None:
    digest = SMALL.load("train", root).digest
    entry = SMALL.convert("train", root).entry
    assert entry is not None
    points = entry / "points.npy"
    if damage == "cut":
        points.write_bytes(points.read_bytes()[:-4])
    elif damage == "pickled":
        np.save(points, np.array([{}], dtype=object), allow_pickle=True)
    elif damage == "no array":
        points.unlink()
    else:
        (entry / "card.json").write_text("{")
    again = SMALL.load("train", root)
    assert again.digest == digest and np.array_equal(again.points, clouds(4, 8))
    assert isinstance(SMALL.load("train", root).points, np.memmap)


def test_a_full_disk_leaves_nothing_and_the_clouds_are_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = SMALL.load("train", root).digest
    shutil.rmtree(root / ".cache")
    monkeypatch.setattr(cache.np, "save", refuse(errno.ENOSPC))
    with pytest.warns(UserWarning, match="No space left on device.*free some space"):
        found = SMALL.load("train", root)
    assert found.digest == digest and np.array_equal(found.points, clouds(4, 8))
    assert [path.name for path in (root / ".cache").rglob("*") if not path.is_dir()] == [".lock"]
    assert not list((root / ".cache").rglob(".new-*"))


def test_a_data_folder_that_cannot_be_written_uses_the_users_cache(root: Path, tmp_path: Path) -> None:
    (root / ".cache").write_text("in the way: root may write anywhere, but not below a file")
    assert isinstance(SMALL.load("train", root).points, np.memmap)
    assert len(list((tmp_path / "user" / "pointpeft-harness").rglob("points.npy"))) == 1


def test_many_that_start_at_once_convert_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = type(SMALL).read
    monkeypatch.setattr(type(SMALL), "read", lambda self, *rest: reads.append("") or read(self, *rest))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(SMALL.load("train", root).digest)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reads) == 1 and len(found) == 6 and len(set(found)) == 1


def test_a_trial_on_a_cpu_trains_on_the_mapped_pages(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(root))
    loaded: list[PointClouds] = []
    load = type(SMALL).load
    monkeypatch.setattr(type(SMALL), "load", lambda *arguments: loaded.append(load(*arguments)) or loaded[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch complains of arrays that it may not write
        train, test, held, _ = load_splits(
            SimpleNamespace(dataset=SMALL, split_name="small", protocol=Protocol()), torch.device("cpu")
        )  # type: ignore[arg-type]
    assert held is None
    assert [split.points.data_ptr() for split in (train, test)] == [found.points.ctypes.data for found in loaded]


def test_files_that_change_while_they_are_read_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = type(SMALL).read

    def meddle(self, *rest):  # type: ignore[no-untyped-def]
        found = read(self, *rest)
        fill(root, seed=2)
        return found

    monkeypatch.setattr(type(SMALL), "read", meddle)
    with pytest.raises(UserError, match="changed while they were read"):
        SMALL.load("train", root)
    assert not list((root / ".cache").rglob("*.npy"))
