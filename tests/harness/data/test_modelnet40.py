"""ModelNet40 in its three releases."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.data.modelnet40 import CLASSES, FOLDERS, MODELNET40, MODELNET40_2048, farthest_first
from harness.errors import UserError
from tests.harness.data.official import clouds, write_dat, write_h5, write_shape

POINTS = 16
SMALL = replace(MODELNET40, points=POINTS)


def unit_sphere(points: np.ndarray) -> np.ndarray:
    """The official loader's pc_normalize, cloud by cloud."""
    centred = points - points.mean(axis=1, keepdims=True)
    return centred / np.sqrt((centred**2).sum(-1)).max(axis=1)[:, None, None]


def fill_dat(root: Path, *, protocol: int = 4, old: bool = False) -> tuple[np.ndarray, np.ndarray]:
    points, labels = clouds(5, POINTS), np.array([0, 39, 8, 8, 1])
    for split in ("train", "test"):
        path = root / FOLDERS[0] / f"modelnet40_{split}_8192pts_fps.dat"
        write_dat(path, points, labels, protocol=protocol, old=old)
    return points, labels


def fill_text(root: Path, *, points: int = POINTS + 4) -> dict[str, np.ndarray]:
    folder = root / FOLDERS[1]
    names = {"train": ["chair_0001", "night_stand_0002", "airplane_0003"], "test": ["xbox_0001"]}
    stored = dict(zip([*names["train"], *names["test"]], clouds(4, points), strict=True))
    for name, cloud in stored.items():
        write_shape(folder / name.rpartition("_")[0] / f"{name}.txt", cloud)
    (folder / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    for split, lines in names.items():
        (folder / f"modelnet40_{split}.txt").write_text("\n".join(lines) + "\n")
    return stored


@pytest.mark.parametrize(("protocol", "old"), [(2, True), (2, False), (4, False), (5, False)])
def test_the_pickles_come_back_without_normals_in_the_unit_sphere(protocol: int, old: bool, tmp_path: Path) -> None:
    points, labels = fill_dat(tmp_path, protocol=protocol, old=old)
    for _ in range(2):  # from the pickle, then from the cache
        found = SMALL.load("train", tmp_path)
        assert np.array_equal(found.labels, labels) and found.points.dtype == np.float32
        assert np.allclose(found.points, unit_sphere(points), atol=1e-6)


def test_text_files_come_back_farthest_points_first(tmp_path: Path) -> None:
    stored = fill_text(tmp_path)
    found = SMALL.load("train", tmp_path)
    assert found.labels.tolist() == [CLASSES.index(name) for name in ("chair", "night_stand", "airplane")]
    written = np.round(stored["night_stand_0002"], 6)
    chosen = written[farthest_first(written, POINTS)]
    assert np.allclose(found.points[1], unit_sphere(chosen[None])[0], atol=1e-5)
    assert SMALL.load("test", tmp_path).labels.tolist() == [39]


def test_farthest_points_by_the_definition() -> None:
    cloud = clouds(1, 1400)[0]
    distance, picks = np.full(len(cloud), np.inf, np.float32), [0]
    while len(picks) < 1300:
        distance = np.minimum(distance, ((cloud - cloud[picks[-1]]) ** 2).sum(axis=1))
        picks.append(int(np.where(np.isin(np.arange(len(cloud)), picks), -1, distance).argmax()))
    assert farthest_first(cloud, 1300).tolist() == picks
    twins = np.zeros((4, 3), np.float32)
    assert sorted(farthest_first(twins, 4)) == [0, 1, 2, 3]


def test_pickles_go_before_text_and_h5_is_another_dataset(tmp_path: Path) -> None:
    fill_text(tmp_path)
    points, _ = fill_dat(tmp_path)
    assert len(SMALL.load("train", tmp_path).points) == len(points)
    (tmp_path / FOLDERS[0] / "modelnet40_test_8192pts_fps.dat").unlink()  # half a release is none
    assert len(SMALL.load("train", tmp_path).points) == 3

    h5 = replace(MODELNET40_2048, points=POINTS)
    files = [*h5.train_files, *h5.test_files]
    for index, name in enumerate(files):
        write_h5(tmp_path / h5.folder / name, clouds(2, POINTS, seed=index), np.array([[index], [39]]))
    found = h5.load("train", tmp_path)
    assert found.labels.tolist() == [0, 39, 1, 39, 2, 39, 3, 39, 4, 39]
    assert np.array_equal(found.points[6:8], clouds(2, POINTS, seed=3)), "as stored"
    message = MODELNET40.missing(tmp_path / "elsewhere")
    assert message is not None and "8192pts_fps.dat" in message and "modelnet40_2048" in message


class Runs:
    """What a hostile pickle holds."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_runs_code_does_not(tmp_path: Path) -> None:
    fill_dat(tmp_path)
    path, marker = tmp_path / FOLDERS[0] / "modelnet40_train_8192pts_fps.dat", tmp_path / "ran"
    hidden = np.array([Runs(marker)], dtype=object)
    for content in ([[Runs(marker)], [0]], [[hidden], [0]]):
        for protocol in (0, 2, 4):
            path.write_bytes(pickle.dumps(content, protocol))
            with pytest.raises(UserError, match=r"train_8192pts_fps\.dat: asks for .*nothing was run"):
                SMALL.load("train", tmp_path)
    assert not marker.exists()
    assert not list(tmp_path.glob(".cache/**/*.npy")), "something was kept"


def test_a_pickle_changes_nothing_of_the_reader(tmp_path: Path) -> None:
    """State set on a name, and an array class that is called."""
    _, labels = fill_dat(tmp_path)
    path = tmp_path / FOLDERS[0] / "modelnet40_train_8192pts_fps.dat"
    good = path.read_bytes()
    named = b"cnumpy.core.multiarray\n_reconstruct\n"
    for hostile in (named + b"(N(dV__name__\nVx\nstb.", b"cnumpy\nndarray\n((I99999999999\nttR."):
        path.write_bytes(hostile)
        with pytest.raises(UserError, match=r"train_8192pts_fps\.dat"):
            SMALL.load("train", tmp_path)
    path.write_bytes(good)
    assert np.array_equal(SMALL.load("train", tmp_path).labels, labels)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\x80\x04}.", "expected a list of clouds"),
        (pickle.dumps([[np.zeros((POINTS, 6), np.float32)] * 2, [np.array([0])]]), "2 clouds but 1 labels"),
        (pickle.dumps([[np.zeros((9, 6), np.float32)], [np.array([0])]]), "item 0 has 9 points, expected 16"),
        (pickle.dumps([[np.zeros((POINTS, 6), np.float32)], [np.array([0.5])]]), "label of item 0 is no integer"),
        (pickle.dumps([[np.full((POINTS, 6), np.nan, np.float32)], [np.array([0])]]), "NaN"),
        (pickle.dumps([[np.ones((POINTS, 6), np.float32)] * 2, [np.array([1]), np.array([40])]]), "from 1: subtract 1"),
        (pickle.dumps([[np.ones((POINTS, 6), np.float32)], [np.array([0])]])[:200], "download complete"),
        (b"\x80\x04B\xff\xff\xff\x7f.", "download complete"),
    ],
    ids=["empty", "no lists", "lengths", "point count", "label", "NaN", "labels from 1", "cut", "claims 2 GB"],
)
def test_wrong_pickles_are_refused(content: bytes, words: str, tmp_path: Path) -> None:
    fill_dat(tmp_path)
    path = tmp_path / FOLDERS[0] / "modelnet40_test_8192pts_fps.dat"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        SMALL.load("test", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0.1,0.2,0.3,0.4,0.5", "chair_0001.txt:3: 5 values, expected 6"),
        ("0.1,0.2,0.3,0.4,0.5,zero", "chair_0001.txt:3: holds what is no finite number"),
        ("0.1,0.2,nan,0.4,0.5,0", "chair_0001.txt:3: holds what is no finite number"),
    ],
)
def test_a_wrong_line_is_named(line: str, words: str, tmp_path: Path) -> None:
    fill_text(tmp_path)
    path = tmp_path / FOLDERS[1] / "chair" / "chair_0001.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(UserError, match=words):
        SMALL.load("train", tmp_path)


def test_wrong_text_releases_are_refused(tmp_path: Path) -> None:
    fill_text(tmp_path, points=POINTS - 1)
    with pytest.raises(UserError, match=r"chair_0001\.txt: 15 points, at least 16"):
        SMALL.load("train", tmp_path)
    folder = tmp_path / FOLDERS[1]
    (folder / "airplane" / "airplane_0003.txt").unlink()
    assert "airplane_0003.txt" in str(SMALL.missing(tmp_path))
    (folder / "modelnet40_train.txt").write_text("chair_0001\n../../etc_0001\n")
    with pytest.raises(UserError, match=r"modelnet40_train\.txt:2: '../../etc_0001'"):
        SMALL.load("train", tmp_path)
    assert "modelnet40_train.txt:2" in str(SMALL.missing(tmp_path))
    (folder / "modelnet40_train.txt").write_text("")
    with pytest.raises(UserError, match="is empty"):
        SMALL.load("train", tmp_path)
