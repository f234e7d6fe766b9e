"""`harness data check` and `harness data list`: what is said of good files and of each kind of bad ones."""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.cli import main
from harness.data.checking import check_data, fingerprints, shared_items
from harness.data.fewshot import FEWSHOT_5W10S, draw_folds
from harness.data.scanobjectnn import OBJ_BG
from harness.data.shapenet55 import SHAPENET55
from harness.data.shapenetpart import PARTS, SHAPENETPART
from harness.errors import SuiteError
from harness.suite import load_suite
from tests.harness.data.official import clouds, write_h5, write_parts, write_shapenet55
from tests.harness.data.test_fewshot import MODELNET, POINTS, fill_modelnet

SMALL = replace(OBJ_BG, points=8, train_items=30, test_items=15)


def files(root: Path) -> tuple[Path, Path]:
    folder = root / "ScanObjectNN" / "main_split"
    return folder / "training_objectdataset.h5", folder / "test_objectdataset.h5"


def fill(root: Path) -> tuple[Path, Path]:
    train, test = files(root)
    write_h5(train, clouds(30, 8, seed=1), np.arange(30) % 15)
    write_h5(test, clouds(15, 8, seed=2), np.arange(15))
    return train, test


def test_good_files_are_usable(tmp_path: Path) -> None:
    train, test = fill(tmp_path)
    report = check_data(SMALL, tmp_path)
    assert (report.problems, report.notes) == ([], [])
    assert report.files == 2 and report.bytes == train.stat().st_size + test.stat().st_size
    assert [(found.split, found.items, found.points) for found in report.splits] == [("train", 30, 8), ("test", 15, 8)]
    assert report.splits[0].labels["chair"] == 2 and report.splits[0].digest == SMALL.load("train", tmp_path).digest
    assert [source["file"] for source in report.sources] == [str(path.relative_to(tmp_path)) for path in (train, test)]
    assert json.dumps(report.as_json())


def _leak(root: Path) -> None:
    leaked = clouds(30, 8, seed=1)[:15, ::-1]  # the same points in another order
    write_h5(files(root)[1], leaked, np.arange(15))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: files(root)[1].unlink(), "lacks .*test_objectdataset.h5.*Ask for h5_files.zip"),
        (lambda root: files(root)[0].write_bytes(b""), r"training_objectdataset\.h5: is empty \(0 bytes\)"),
        (lambda root: os.truncate(files(root)[0], 1500), r"training.*cannot be read as h5 .*download complete"),
        (lambda root: write_h5(files(root)[0], clouds(30, 9), np.arange(30) % 15), r"training.*9 points per cloud"),
        (lambda root: write_h5(files(root)[0], clouds(30, 8), 1 + np.arange(30) % 15), "from 1: subtract 1"),
        (
            lambda root: write_h5(files(root)[0], clouds(30, 8) * np.nan, np.arange(30) % 15),
            r"training.*item 0 holds NaN",
        ),
        (
            lambda root: write_h5(files(root)[0], clouds(29, 8), np.arange(29) % 15),
            "29 items, the official split has 30",
        ),
        (lambda root: write_h5(files(root)[0], clouds(30, 8), np.arange(30) % 14), "no item of class toilet"),
        (_leak, r"test_objectdataset\.h5: 15 of 15 test items lie in train as well \(test items 0, 1, 2, 3, 4, …\)"),
    ],
    ids=["missing", "empty", "half", "points", "labels from 1", "NaN", "items", "class", "test inside train"],
)
def test_what_is_wrong_is_said_once(damage, words: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fill(tmp_path)
    damage(tmp_path)
    report = check_data(SMALL, tmp_path)
    assert len(report.problems) == 1
    assert re.search(words, report.problems[0]), report.problems[0]


def test_a_few_shared_items_are_noted_only(tmp_path: Path) -> None:
    train, test = files(tmp_path)
    stored = clouds(200, 8, seed=1)
    write_h5(train, clouds(30, 8, seed=2), np.arange(30) % 15)
    stored[7] = clouds(30, 8, seed=2)[3]
    write_h5(test, stored, np.arange(200) % 15)
    report = check_data(replace(SMALL, test_items=200), tmp_path)
    assert report.problems == [] and "1 of 200 test items lie in train as well (test items 7)" in report.notes[0]


def test_a_damaged_copy_is_found(tmp_path: Path) -> None:
    fill(tmp_path)
    entry = SMALL.convert("train", tmp_path).entry
    assert entry is not None
    content = bytearray((entry / "points.npy").read_bytes())
    content[-1] ^= 1
    (entry / "points.npy").write_bytes(content)
    problems = check_data(SMALL, tmp_path).problems
    assert len(problems) == 1 and "copy is damaged; delete this folder" in problems[0] and str(entry) in problems[0]


@contextmanager
def nobody() -> Iterator[None]:
    """As a user without rights; root may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_folder_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        root.chmod(0o755)
        monkeypatch.setenv("XDG_CACHE_HOME", str(root / "none"))
        train, _ = fill(root)
        train.chmod(0)
        with nobody():
            problems = check_data(SMALL, root).problems
        assert len(problems) == 1 and str(train) in problems[0] and "right to read it (chmod)" in problems[0]
        train.parent.chmod(0)
        with nobody():
            problems = check_data(SMALL, root).problems
        assert len(problems) == 1 and "Permission denied; give this user the right" in problems[0]
        train.parent.chmod(0o755)


def test_fingerprints_know_clouds_whatever_the_order_of_points() -> None:
    points = clouds(50, 8)
    shuffled = points[:, np.random.default_rng(0).permutation(8)]
    assert np.array_equal(fingerprints(points), fingerprints(shuffled)) and len(set(fingerprints(points))) == 50
    moved = points.copy()
    moved[3, 2, 1] = np.nextafter(moved[3, 2, 1], np.float32(9))
    assert shared_items(points, moved[2:5]) == [(0, 2), (2, 4)]
    swapped = points[..., ::-1].copy()
    assert shared_items(points, swapped) == []
    assert shared_items(points, points[:, :7]) == []


def test_every_fold_is_checked(tmp_path: Path) -> None:
    fill_modelnet(tmp_path)
    dataset = replace(FEWSHOT_5W10S, points=POINTS, modelnet=MODELNET)
    paths = draw_folds(tmp_path, way=5, shot=10, seed=0, modelnet=MODELNET)
    report = check_data(dataset, tmp_path)
    assert report.problems == [] and len(report.splits) == 20
    paths[6].unlink()
    assert "6.pkl" in check_data(dataset, tmp_path).problems[0]


def test_parts_and_collections_are_checked(tmp_path: Path) -> None:
    synsets = {kind: f"{index:08d}" for index, kind in enumerate(PARTS)}
    shapes = {}
    for split, seed in (("train", 0), ("val", 100), ("test", 200)):
        for index, (kind, parts) in enumerate(PARTS.items()):
            shapes[split, kind, f"{split}{index}"] = (clouds(1, len(parts), seed=seed + index)[0], np.array(parts))
    write_parts(tmp_path, shapes, synsets)
    declared = replace(SHAPENETPART, train_items=32, test_items=16)
    report = check_data(declared, tmp_path)
    assert report.problems == [] and [found.items for found in report.splits] == [16, 16, 16]
    assert "16 items, the official split has 2874" in " ".join(check_data(SHAPENETPART, tmp_path).problems)

    base = write_shapenet55(tmp_path, {"1-a.npy": clouds(1, 8)[0]}, {"1-b.npy": clouds(1, 8)[0]})
    collection = replace(SHAPENET55, points=8, train_items=1, test_items=1)
    assert check_data(collection, tmp_path).problems == []
    (base / "shapenet_pc" / "1-b.npy").write_bytes(b"")
    assert "1-b.npy: is empty" in check_data(collection, tmp_path).problems[0]


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_DATA", "elsewhere")  # --data changes it; restored in the end

    def command(*arguments: str) -> tuple[object, str, str]:
        """Exit code, stdout, stderr."""
        monkeypatch.setattr(sys, "argv", ["harness", "data", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        return left.value.code, *capsys.readouterr()

    train, test = files(tmp_path / "here")
    write_h5(train, clouds(2309, 2048, seed=1), np.arange(2309) % 15)
    write_h5(test, clouds(581, 2048, seed=2), np.arange(581) % 15)
    code, out, err = command("check", "scanobjectnn_obj_bg", "--data", "here")
    assert (code, err) == (0, "") and "usable, in here" in out
    report = json.loads(command("check", OBJ_BG.name, "--data", "here", "--json")[1])
    assert report["usable"] and report["splits"][0]["labels"]["bag"] == 154
    listed = {entry["name"]: entry for entry in json.loads(command("list", "--data", "here", "--json")[1])}
    assert listed["scanobjectnn_obj_bg"]["bytes"] == train.stat().st_size + test.stat().st_size
    assert listed["modelnet40"]["bytes"] is None and listed["shapenetpart"]["task"] == "part segmentation"
    assert command("check", OBJ_BG.name, "--data", "nowhere")[2].startswith(
        "error: dataset 'scanobjectnn_obj_bg' lacks"
    )
    os.truncate(test, 5000)
    monkeypatch.setenv("HARNESS_DATA", "here")
    code, out, err = command("check", OBJ_BG.name)
    assert code == 2 and "test_objectdataset.h5: cannot be read as h5" in err and out.endswith("unusable, in here\n")
    code, out, err = command("check", "scanobjectn")
    assert (code, out) == (2, "") and "did you mean 'scanobjectnn" in err


def test_suites_take_no_pre_training_data(tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "format: 1\nname: x\nseeds: 1\ndatasets: [shapenet55]\n"
        "backbones: {point_mae: {preset: tiny}}\nmethods: {lora: {}}\n"
    )
    with pytest.raises(SuiteError) as caught:
        load_suite(str(suite))
    assert "suite.yaml:4: datasets.0: 'shapenet55' is for pre-training; " in str(caught.value)
    assert len(caught.value.problems) == 1
