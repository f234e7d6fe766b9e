"""Few-shot folds: the official pickles, and folds drawn from ModelNet40."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.data.fewshot import FEWSHOT_5W10S, draw_folds, load_fold
from harness.data.modelnet40 import FOLDERS, MODELNET40
from harness.errors import UserError
from tests.harness.data.official import clouds, write_dat, write_fold
from tests.harness.data.test_modelnet40 import unit_sphere

POINTS = 8
MODELNET = replace(MODELNET40, points=POINTS)
SMALL = replace(FEWSHOT_5W10S, points=POINTS, modelnet=MODELNET)


def items(count: int, *, points: int = POINTS, seed: int = 0) -> list[tuple[np.ndarray, int, int]]:
    return [
        (np.concatenate([cloud, cloud], axis=1), i % 5, 7 + i % 5)
        for i, cloud in enumerate(clouds(count, points, seed=seed))
    ]


def fill_modelnet(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Six classes with 12 clouds to train and 21 to test on, a seventh with too few."""
    for split, each in (("train", 12), ("test", 21)):
        labels = np.concatenate([np.repeat(np.arange(6), each), [39]])
        points = clouds(len(labels), POINTS, seed=each)
        write_dat(root / FOLDERS[0] / f"modelnet40_{split}_8192pts_fps.dat", points, labels)
    return points, labels


@pytest.mark.parametrize("folder", ["5way_10shot", "5way10shot"])
def test_the_pickles_folds_come_back(folder: str, tmp_path: Path) -> None:
    train, test = items(10), items(4, seed=1)
    write_fold(tmp_path / "ModelNetFewshot" / folder / "3.pkl", train, test)
    fold = SMALL.with_fold(3)
    for split, stored in (("train", train), ("test", test)):
        found = fold.load(split, tmp_path)  # type: ignore[arg-type]
        assert np.allclose(found.points, unit_sphere(np.stack([points[:, :3] for points, _, _ in stored])), atol=1e-6)
        assert found.labels.tolist() == [label for _, label, _ in stored]
    assert "0.pkl" in str(SMALL.missing(tmp_path)), "all ten folds belong to the dataset"
    with pytest.raises(UserError, match=r"lacks .*0\.pkl"):
        SMALL.load("train", tmp_path)


def test_load_fold_gives_both_splits(tmp_path: Path) -> None:
    train, test = items(5, points=8192), items(5, points=8192, seed=1)
    write_fold(tmp_path / "ModelNetFewshot" / "5way_10shot" / "0.pkl", train, test)
    found = load_fold(tmp_path, way=5, shot=10, fold=0)
    assert [len(clouds.labels) for clouds in found] == [5, 5] and found[0].points.shape == (5, 8192, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "expected 'train' items"),
        ({"test": []}, "expected 'train' items"),
        ({"train": [(1, 2)]}, "expected 'train' items"),
        ({"train": items(2, points=POINTS + 1)}, "item 0 has 9 points, expected 8"),
        ({"train": [(points, label + 1, kind) for points, label, kind in items(5)]}, "from 1: subtract 1"),
    ],
)
def test_wrong_folds_are_refused(content: object, words: str, tmp_path: Path) -> None:
    path = write_fold(tmp_path / "ModelNetFewshot" / "5way_10shot" / "0.pkl", [], [])
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=words) as caught:
        SMALL.load("train", tmp_path)
    assert str(path) in str(caught.value)


def test_drawn_folds_follow_the_official_rule_and_the_seed(tmp_path: Path) -> None:
    fill_modelnet(tmp_path)
    paths = draw_folds(tmp_path, way=5, shot=10, seed=0, modelnet=MODELNET)
    assert [path.name for path in paths] == [f"{fold}.json" for fold in range(10)] and SMALL.missing(tmp_path) is None
    first = [path.read_bytes() for path in paths]
    assert [p.read_bytes() for p in draw_folds(tmp_path, way=5, shot=10, seed=0, modelnet=MODELNET)] == first
    assert [p.read_bytes() for p in draw_folds(tmp_path, way=5, shot=10, seed=1, modelnet=MODELNET)] != first

    whole = {split: MODELNET.load(split, tmp_path) for split in ("train", "test")}  # type: ignore[arg-type]
    kinds = set()
    for fold in range(10):
        card = json.loads(paths[fold].read_bytes())
        kinds.add(tuple(sorted(card["classes"])))
        for split, each in (("train", 10), ("test", 20)):
            found = SMALL.with_fold(fold).load(split, tmp_path)  # type: ignore[arg-type]
            assert np.bincount(found.labels).tolist() == [each] * 5
            rows = [row for row, _ in card[split]]
            assert len(set(rows)) == len(rows), "no item twice"
            assert np.array_equal(found.points, whole[split].points[rows])
            assert [card["classes"][label] for label in found.labels] == whole[split].labels[rows].tolist()
    assert len(kinds) > 1 and all(39 not in classes for classes in kinds)


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    fill_modelnet(tmp_path)
    with pytest.raises(UserError, match="6 classes of modelnet40 have 10 clouds"):
        draw_folds(tmp_path, way=10, shot=10, seed=0, modelnet=MODELNET)
    official = write_fold(tmp_path / "ModelNetFewshot" / "5way_10shot" / "4.pkl", [], [])
    with pytest.raises(UserError, match=r"4\.pkl: the official fold is here"):
        draw_folds(tmp_path, way=5, shot=10, seed=0, modelnet=MODELNET)
    assert list(official.parent.iterdir()) == [official]


def test_a_drawn_fold_of_other_clouds_is_refused(tmp_path: Path) -> None:
    fill_modelnet(tmp_path)
    path = draw_folds(tmp_path, way=5, shot=10, seed=0, modelnet=MODELNET)[0]
    write_dat(tmp_path / FOLDERS[0] / "modelnet40_train_8192pts_fps.dat", clouds(9, POINTS), np.arange(9))
    with pytest.raises(UserError, match=r"0\.json: was drawn from other modelnet40 clouds"):
        SMALL.load("train", tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="is no few-shot fold"):
        SMALL.load("test", tmp_path)
