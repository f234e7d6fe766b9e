"""Small files in every official layout, written as their authors' code writes them."""

import json
import pickle
from pathlib import Path

import h5py
import numpy as np

from harness.data.shapenetpart import PARTS

Floats = np.ndarray


def clouds(items: int, points: int, *, seed: int = 0, columns: int = 3) -> Floats:
    """Random clouds (items, points, columns) float32, away from the origin and of different sizes."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(items, points, columns)) * rng.uniform(0.5, 2, (items, 1, 1)) + 1).astype(np.float32)


def write_h5(path: Path, points: Floats, labels: Floats) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = points.astype(np.float32), labels.astype(np.int32)
    return path


def numpy1(content: bytes) -> bytes:
    """A pickle of protocol 2 as numpy 1 would write it: only module names differ."""
    return content.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


def write_dat(path: Path, points: Floats, labels: Floats, *, protocol: int = 4, old: bool = False) -> Path:
    """modelnet40_*_8192pts_fps.dat: [clouds with normals, arrays of one int32]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with_normals = [np.concatenate([cloud, -cloud], axis=1).astype(np.float32) for cloud in points]
    content = pickle.dumps([with_normals, [np.array([label], np.int32) for label in labels]], protocol)
    path.write_bytes(numpy1(content) if old else content)
    return path


def write_shape(path: Path, points: Floats) -> Path:
    """x,y,z,nx,ny,nz lines of ModelNet40."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.concatenate([points, -points], axis=1), fmt="%.6f", delimiter=",")
    return path


def write_fold(path: Path, train: list[tuple[Floats, int, int]], test: list[tuple[Floats, int, int]]) -> Path:
    """A fold's pickle: items of (points with normals, label within the fold, class of ModelNet40)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"train": train, "test": test}, 4))
    return path


def write_parts(root: Path, shapes: dict[tuple[str, str, str], tuple[Floats, Floats]], synsets: dict[str, str]) -> Path:
    """ShapeNetPart: (split, category, name) -> points (N, 3) and parts (N,)."""
    folder = root / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    (folder / "train_test_split").mkdir(parents=True)
    (folder / "synsetoffset2category.txt").write_text("".join(f"{k}\t{v}\n" for k, v in synsets.items()))
    for split in ("train", "val", "test"):
        names = [f"shape_data/{synsets[kind]}/{name}" for part, kind, name in shapes if part == split]
        (folder / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(names[::-1]))
    for (_, kind, name), (points, parts) in shapes.items():
        path = folder / synsets[kind] / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        table = np.concatenate([points, -points, parts[:, None]], axis=1)
        np.savetxt(path, table, fmt="%.6f", delimiter=" ")
    return folder


def write_shapenet55(root: Path, train: dict[str, Floats], test: dict[str, Floats]) -> Path:
    """ShapeNet-55: lists of `synset-id.npy`, and those files."""
    base = root / "ShapeNet55-34"
    for folder in ("ShapeNet-55", "shapenet_pc"):
        (base / folder).mkdir(parents=True)
    for split, shapes in (("train", train), ("test", test)):
        (base / "ShapeNet-55" / f"{split}.txt").write_text("".join(f"{name}\n" for name in shapes))
        for name, cloud in shapes.items():
            np.save(base / "shapenet_pc" / name, cloud)
    return base


def write_small_shapenetpart(root: Path, *, categories: dict[str, str], items: dict[str, int], seed: int = 0) -> Path:
    """ShapeNetPart in small: clouds of 60 to 200 points, whose parts are slices along x, so that they can be learnt.

    `categories` are names with their synsets, `items` clouds of the first category by split; each has one more than
    the category before it.
    """
    rng, shapes = np.random.default_rng(seed), {}
    for more, kind in enumerate(categories):
        own = PARTS[kind]
        for split, count in items.items():
            for index in range(count + more):
                points = rng.normal(size=(rng.integers(60, 200), 3)).astype(np.float32) * (1, 0.5, 0.8)
                slices = np.clip(((points[:, 0] + 2) / 4 * len(own)).astype(int), 0, len(own) - 1)
                shapes[split, kind, f"{split}{index}"] = (points, own.start + slices)
    return write_parts(root, shapes, categories)
