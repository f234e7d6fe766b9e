"""ShapeNetPart and ShapeNet-55 in their official layouts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.data.shapenet55 import SHAPENET55
from harness.data.shapenetpart import PARTS, SHAPENETPART
from harness.errors import UserError
from harness.pretrain import read_points
from tests.harness.data.official import clouds, write_parts, write_shapenet55
from tests.harness.data.test_modelnet40 import unit_sphere

SYNSETS = {"Airplane": "02691156", "Chair": "03001627", "Table": "04379243"}
SHAPES = {
    ("train", "Table", "t2"): (clouds(1, 7, seed=1)[0], np.array([47, 48, 49, 47, 47, 48, 48])),
    ("train", "Airplane", "a9"): (clouds(1, 5, seed=2)[0], np.array([0, 1, 2, 3, 0])),
    ("train", "Airplane", "a1"): (clouds(1, 6, seed=3)[0], np.array([3, 3, 3, 0, 0, 0])),
    ("val", "Chair", "c1"): (clouds(1, 4, seed=4)[0], np.array([12, 13, 14, 15])),
    ("test", "Chair", "c2"): (clouds(1, 9, seed=5)[0], np.array([12] * 9)),
}


def test_parts_tile_the_fifty() -> None:
    assert [part for own in PARTS.values() for part in own] == list(range(50)) and len(PARTS) == 16


def test_part_clouds_come_back(tmp_path: Path) -> None:
    write_parts(tmp_path, SHAPES, SYNSETS)
    assert SHAPENETPART.missing(tmp_path) is None
    order = {"train": ["a1", "a9", "t2"], "val": ["c1"], "trainval": ["a1", "a9", "c1", "t2"], "test": ["c2"]}
    stored = {name: (points, parts, kind) for (_, kind, name), (points, parts) in SHAPES.items()}
    for split, names in order.items():
        for _ in range(2):  # from the files, then from the cache
            found = SHAPENETPART.load(split, tmp_path)  # type: ignore[arg-type]
            assert len(found) == len(names)
            for index, name in enumerate(names):
                points, parts, category = found.item(index)
                assert np.allclose(points, unit_sphere(stored[name][0][None])[0], atol=1e-5)
                assert np.array_equal(parts, stored[name][1])
                assert SHAPENETPART.classes[category] == stored[name][2]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda base: (base / "02691156" / "a1.txt").unlink(), r"a1\.txt"),
        (lambda base: (base / "02691156" / "a1.txt").write_text(""), r"a1\.txt: is empty"),
        (
            lambda base: (base / "02691156" / "a1.txt").write_text("1 2 3 4 5 6 0\n1 2\n"),
            r"a1\.txt:2: 2 values, expected 7",
        ),
        (
            lambda base: (base / "02691156" / "a1.txt").write_text("1 2 3 4 5 6 4\n"),
            "parts run from 4 to 4, those of Airplane from 0 to 3",
        ),
        (lambda base: (base / "synsetoffset2category.txt").write_text("Dragon\t1\n"), r"category\.txt:1: 'Dragon"),
        (lambda base: listing(base).write_text("[1]"), "must be a list of texts"),
        (lambda base: listing(base).write_text("["), "is no JSON"),
        (
            lambda base: listing(base).write_text(json.dumps(["shape_data/02691156/../x"])),
            "is no shape_data/SYNSET/NAME",
        ),
    ],
    ids=["missing", "empty", "short line", "part", "category", "not texts", "no JSON", "path"],
)
def test_wrong_part_files_are_refused(damage, words: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    damage(write_parts(tmp_path, SHAPES, SYNSETS))
    with pytest.raises(UserError, match=words):
        SHAPENETPART.load("train", tmp_path)


def listing(base: Path) -> Path:
    return base / "train_test_split" / "shuffled_train_file_list.json"


def test_shapenet55_becomes_a_file_to_pretrain_on(tmp_path: Path) -> None:
    small = replace(SHAPENET55, points=12)
    stored = clouds(3, 12)
    names = [f"02691156-{index}a.npy" for index in range(3)]
    base = write_shapenet55(tmp_path, dict(zip(names[:2], stored[:2], strict=True)), {names[2]: stored[2]})
    paths = [small.prepare(root=tmp_path, output=tmp_path / f"out{run}", points=10)[0] for run in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes() and paths[0].name == "shapenet55_10.npy"
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["shapenet55_10.json", "shapenet55_10.npy"]
    found = read_points(paths[0]).numpy()
    assert found.shape == (3, 10, 3)
    assert np.allclose(np.linalg.norm(found, axis=2).max(axis=1), 1) and np.abs(found.mean(axis=1)).max() < 1e-6
    all_points = small.prepare(root=tmp_path, output=tmp_path / "all", points=12)[0]
    whole = np.load(all_points)[2]
    assert np.allclose(np.sort(whole, axis=0), np.sort(unit_sphere(stored[2][None])[0], axis=0), atol=1e-5)

    with pytest.raises(UserError, match="--points 13: clouds hold 12"):
        small.prepare(root=tmp_path, output=tmp_path / "no", points=13)
    np.save(base / "shapenet_pc" / names[2], stored[2][:7])
    with pytest.raises(UserError, match=r"2a\.npy: float32 of shape \(7, 3\)"):
        small.prepare(root=tmp_path, output=tmp_path / "no", points=10)
    np.save(base / "shapenet_pc" / names[2], np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"2a\.npy: cannot be read as \.npy"):
        small.prepare(root=tmp_path, output=tmp_path / "no", points=10)
    assert not list((tmp_path / "no").iterdir())
    (base / "shapenet_pc" / names[0]).unlink()
    assert names[0] in str(small.missing(tmp_path))
