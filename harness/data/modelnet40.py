"""ModelNet40: CAD models of 40 classes, as the papers use them (8192 points) and in the release with 2048 points.

Wu et al., CVPR 2015. `modelnet40` is modelnet40_normal_resampled, either as the pickles that Point-BERT and its
successors hand out (modelnet40_{train,test}_8192pts_fps.dat) or as the text files those were made from. The pickles go
first: they are the papers' clouds. From the text files the 8192 farthest of 10,000 points are taken likewise, from
point 0 on instead of a random one: the same items, other points, another digest. Every cloud is then moved to mean zero
and scaled to radius 1, as the official loader does. `modelnet40_2048` is other data: three training shapes fewer, other
points, used as stored.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.data.dataset import Split
from harness.data.official import OfficialDataset
from harness.data.pickles import Stored, read_pickle
from harness.data.scanobjectnn import H5Dataset
from harness.data.sources import AGAIN, is_whole, read_lines, read_table
from harness.errors import UserError
from harness.forking import without_main

CLASSES = (
    "airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain",
    "desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel", "monitor",
    "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool", "table",
    "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox",
)  # fmt: skip
FOLDERS = ("ModelNet/modelnet40_normal_resampled", "modelnet40_normal_resampled")
"""Below the data root: as the papers' repositories lay it out, and as it unpacks."""
LICENCE = "ModelNet terms of use (academic research)"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelNet40(OfficialDataset):
    """The releases with 8192 or more points per cloud."""

    def split_files(self, split: Split, root: Path) -> list[Path]:
        """The first release that is here with both splits; when none is, the pickles."""
        folders = [root / folder for folder in FOLDERS]
        name = "modelnet40_{}_8192pts_fps.dat"
        for folder in folders:
            if is_whole([folder / name.format("train"), folder / name.format("test")]):
                return [folder / name.format(split)]
        for folder in folders:
            lists = [folder / f"modelnet40_{part}.txt" for part in ("shape_names", "train", "test")]
            if is_whole(lists):
                return [lists[0], folder / f"modelnet40_{split}.txt", *_shapes(folder, split)]
        return [folders[0] / name.format(split)]

    def read(self, split: Split, root: Path) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Clouds of the release that is here, normalised."""
        files = self.split_files(split, root)
        if files[0].suffix == ".dat":
            points, labels = self._read_pickle(files[0])
        else:
            points, labels = self._read_text(*files)
        self.check(points, labels, files[0])
        return normalise(points), labels

    def _read_pickle(self, path: Path) -> tuple[Floats, npt.NDArray[np.int64]]:
        content = read_pickle(path)
        if not (isinstance(content, list | tuple) and len(content) == 2 and all(isinstance(c, list) for c in content)):
            raise UserError(f"{path}: expected a list of clouds and a list of labels; {AGAIN}")
        clouds, labels = content
        if len(clouds) != len(labels):
            raise UserError(f"{path}: {len(clouds)} clouds but {len(labels)} labels; {AGAIN}")
        return stack_clouds(clouds, points=self.points, path=path), integer_labels(labels, path)

    def _read_text(self, names: Path, listing: Path, *shapes: Path) -> tuple[Floats, npt.NDArray[np.int64]]:
        if tuple(read_lines(names)) != self.classes:
            raise UserError(f"{names}: does not list ModelNet40's {len(self.classes)} classes in their order; {AGAIN}")
        read = partial(_read_shape, points=self.points)
        labels = np.array([self.classes.index(path.parent.name) for path in shapes], np.int64)
        points = np.empty((len(shapes), self.points, 3), np.float32)
        for row, cloud in enumerate(_in_parallel(read, shapes)):
            points[row] = cloud
        return points, labels


def _shapes(folder: Path, split: Split) -> list[Path]:
    """The text files that a split lists: `chair_0001` is chair/chair_0001.txt."""
    listing, found = folder / f"modelnet40_{split}.txt", []
    for number, line in enumerate(read_lines(listing), 1):
        kind = line.rpartition("_")[0]
        if kind not in CLASSES or "/" in line:
            raise UserError(f"{listing}:{number}: '{line[:80]}' is no CLASS_NUMBER of ModelNet40; {AGAIN}")
        found.append(folder / kind / f"{line}.txt")
    return found


def _read_shape(path: Path, *, points: int) -> Floats:
    """The farthest points (points, 3) of x,y,z,nx,ny,nz lines."""
    table = read_table(path, columns=6, separator=",")[:, :3].astype(np.float32)
    if len(table) < points:
        raise UserError(f"{path}: {len(table)} points, at least {points} are needed; the file is cut off, {AGAIN}")
    return table[farthest_first(table, points)]


def farthest_first(cloud: Floats, count: int) -> npt.NDArray[np.intp]:
    """Indices of `count` points of a cloud (N, 3), from index 0 on each the farthest from those before it.

    Of points equally far the first goes first. Unlike the field's CUDA kernel, which chooses what the encoder sees,
    this takes points near the origin too, as the official preparation of the data does.
    """
    picks, last = np.zeros(count, np.intp), 0
    left, planes = np.arange(len(cloud)), np.ascontiguousarray(cloud.T)
    distance = np.full(len(cloud), np.inf, np.float32)
    for step in range(count):
        if step % 512 == 511:  # nearly all points are picked in the end: leave out those that are
            kept = distance >= 0
            kept[last] = True
            last = int(np.count_nonzero(kept[:last]))
            left, planes, distance = left[kept], np.ascontiguousarray(planes[:, kept]), distance[kept]
        picks[step] = left[last]
        x, y, z = planes
        squared = (x - x[last]) ** 2 + (y - y[last]) ** 2 + (z - z[last]) ** 2
        np.minimum(distance, squared, out=distance)
        distance[last] = -1.0  # picked; an equal point, at distance 0, still can be
        last = int(distance.argmax())
    return picks


def normalise(points: Floats) -> Floats:
    """Clouds (n, N, 3) at mean zero, the farthest point at 1."""
    out = np.empty_like(points)
    for row, cloud in enumerate(points):
        centred = cloud - cloud.mean(axis=0)
        radius = np.sqrt((centred**2).sum(axis=1)).max()
        out[row] = centred / (radius or 1.0)
    return out


def stack_clouds(clouds: list[object], *, points: int, path: Path) -> Floats:
    """Arrays (points, 3 or 6) of a pickle as one (n, points, 3); normals are left out. Raises UserError."""
    if not clouds:
        raise UserError(f"{path}: holds no clouds; {AGAIN}")
    stacked = np.empty((len(clouds), points, 3), np.float32)
    for row, cloud in enumerate(clouds):
        values = cloud.values if isinstance(cloud, Stored) else np.empty(0)
        if values.ndim != 2 or values.shape[1] not in (3, 6) or values.dtype.kind != "f":
            raise UserError(f"{path}: item {row} is no cloud of 3 coordinates (and 3 of normals) per point; {AGAIN}")
        if len(values) != points:
            raise UserError(f"{path}: item {row} has {len(values)} points, expected {points}; {AGAIN}")
        stacked[row] = values[:, :3]
    return stacked


def integer_labels(labels: list[object], path: Path) -> npt.NDArray[np.int64]:
    """Labels of a pickle, each an integer or an array of one. Raises UserError."""
    found = []
    for row, label in enumerate(labels):
        value = label.values if isinstance(label, Stored) else np.asarray(label)
        if value.size != 1 or value.dtype.kind not in "iu":
            raise UserError(f"{path}: the label of item {row} is no integer; {AGAIN}")
        found.append(int(value.reshape(-1)[0]))
    return np.array(found, np.int64)


def _in_parallel(read: Callable[[Path], Floats], paths: Sequence[Path]) -> Iterator[Floats]:
    """What `read` makes of every file, in their order; by all cores where this process may have children.

    A trial's process may not (it is tied to its parent's life): `harness data check` beforehand is then an hour faster.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if multiprocessing.current_process().daemon or workers == 1 or len(paths) < 4 * workers:
        yield from map(read, paths)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("forkserver"))
    try:
        with without_main():
            clouds = pool.map(read, paths, chunksize=4)
        yield from clouds
    finally:
        pool.shutdown(cancel_futures=True)  # after an error, what nobody waits for


MODELNET40 = ModelNet40(
    name="modelnet40",
    version=2,
    classes=CLASSES,
    train_items=9843,
    test_items=2468,
    points=8192,
    up="y",
    normalised=True,
    licence=LICENCE,
    source="Get modelnet40_train_8192pts_fps.dat and modelnet40_test_8192pts_fps.dat (Point-BERT's DATASET.md has "
    f"links), or unpack modelnet40_normal_resampled.zip, so that they lie in {FOLDERS[0]} in the data folder "
    "(HARNESS_DATA). "
    "The release modelnet40_ply_hdf5_2048 is the dataset modelnet40_2048.",
)

MODELNET40_2048 = H5Dataset(
    name="modelnet40_2048",
    version=1,
    classes=CLASSES,
    train_items=9840,
    test_items=2468,
    points=2048,
    up="y",
    normalised=True,  # in the release; they are used as stored
    licence=LICENCE,
    source="Get modelnet40_ply_hdf5_2048.zip and unpack it so that modelnet40_ply_hdf5_2048/ lies in the data "
    "folder (HARNESS_DATA).",
    folder="modelnet40_ply_hdf5_2048",
    train_files=tuple(f"ply_data_train{index}.h5" for index in range(5)),
    test_files=tuple(f"ply_data_test{index}.h5" for index in range(2)),
)
