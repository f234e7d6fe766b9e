"""ldraw16 and ldraw16_scanlike: 16 classes of toy-brick parts, sampled from the LDraw library.

Which parts, and which side of the split each is on, follows from `harness.data.prepare.ldraw`: of every class the
`SHAPES_PER_CLASS` distinct shapes that come first by a hash of their part number, and on the test side those whose
number is in `harness/data/assets/ldraw16_test_parts.txt`, which the shipped encoder was never shown. The training side
then loses what would give a test item away: assemblies that contain a test part, and near-duplicates of test items.

Parts are sampled in worker processes, some at a time, and what is done is kept below the data folder until the sets are
written: a preparation that was cut off goes on from there. Every part has its own random numbers, so neither that nor
the number of processes changes a byte.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from harness.atomic import write_atomically, write_in_order
from harness.data.ldraw16 import FOLDER, NAMES, VERSION
from harness.data.prepare.ldraw import (
    INSTALL,
    LDRAW16,
    SOURCE,
    MeshError,
    Part,
    PartLibrary,
    in_test_split,
    ldraw16_parts,
)
from harness.data.prepare.meshes import near_duplicates, signature, spacing
from harness.data.prepare.scanlike import scan_like
from harness.data.reading import worker_pool
from harness.errors import UserError
from harness.forking import without_main

ASSETS = Path(__file__).parent.parent / "assets"
TEST_PARTS = ASSETS / "ldraw16_test_parts.txt"
RECORDED = ASSETS / "ldraw16_items.csv"
"""The items as they come out of `SOURCE`: file, class, side, digest of the points."""
KEPT = 1024
"""Points per cloud."""
NEAR = 1.2
"""Chamfer-L1 distance to a test item, in point spacings, below which a training item is left out. Two samplings of one
surface measure 1, whatever its area; 1.2 is reached when the surfaces are about half a spacing apart."""
CHUNK = 32
"""Parts that are sampled, and kept, together."""
FORMAT = 1
"""Of the kept chunks; raise it when sampling changes."""
ATTRIBUTION = (
    "Made from the LDraw Parts Library (https://www.ldraw.org), (C) the authors named with the items, redistributable "
    "under CCAL version 2.0 = CC BY 2.0 (https://creativecommons.org/licenses/by/2.0/); sampled to points, centred and "
    "scaled; the scan-like set also rotated, seen from one side, stretched and mixed with noise and floor points."
)

Progress = Callable[[str, int, int], None]
"""Called with what is done, and how much of how much."""


@dataclass(frozen=True)
class Sample:
    """A part of one of the 16 classes, as clouds."""

    part: Part
    ingredients: frozenset[str]
    """Base numbers of all the parts that it is assembled from, its own included."""
    points: NDArray[np.float32]
    """(2048, 3), to compare shapes"""
    clean: NDArray[np.float16]
    """(1024, 3)"""
    scan: NDArray[np.float16]
    """(1024, 3)"""


@dataclass(frozen=True)
class Differences:
    """Items against those recorded with `SOURCE`."""

    absent: int
    """Recorded, and not here."""
    new: int
    changed: int
    """Other points, class or side."""

    def __bool__(self) -> bool:
        return bool(self.absent or self.new or self.changed)


@dataclass(frozen=True)
class Prepared:
    """What a preparation came to."""

    written: list[Path]
    train_items: int
    test_items: int
    left_out: dict[str, int]
    """Parts of the 16 classes by why they are in neither split."""
    differences: Differences


def prepare_ldraw16(
    *,
    source: Path,
    root: Path,
    processes: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Prepared:
    """Write ldraw16 and ldraw16_scanlike, each a .safetensors and a .json, into ROOT/ldraw16.

    source is the root of an LDraw library. The tensors are `points` (n, 1024, 3) float16 in random order, mean zero,
    farthest point of 2048 at norm 1, z up; `labels` (n,) uint8, indices of `LDRAW16`; `test` (n,) uint8, 1 on the test
    side. Both sets hold the same items in the same order with the same split, and equal bytes every time. Raises
    UserError when the source is missing or lacks a class on one side, when another preparation is at work, and when
    nothing can be written; then no file of a set is there that was not before.
    """
    library = PartLibrary(source)
    with _read_errors(source):
        parts, state = library.parts(), library.state()
    if not any(part.category in LDRAW16 for part in parts):
        raise UserError(f"'{source}' holds no part of the classes of ldraw16: {INSTALL}")
    count = processes or len(os.sched_getaffinity(0))
    folder = root / FOLDER
    with _write_errors(folder), _alone(folder):
        scratch = _scratch(folder, state)
        samples, left_out = _distinct(source, parts, scratch, count, progress)
        items, test = _split(samples, left_out, count, progress)
        _check_classes(items, test, source)
        differences = _differences(items, test)
        files = _files(folder, items, test, library, left_out, differences)
        write_in_order(files)
        shutil.rmtree(scratch, ignore_errors=True)
    train_items, test_items = (int((test == flag).sum()) for flag in (0, 1))
    return Prepared([path for path, _ in files], train_items, test_items, _sorted(left_out), differences)


def listed_numbers(path: Path = TEST_PARTS) -> frozenset[str]:
    """Part numbers of the test side, as recorded when the shipped encoder was pre-trained."""
    return frozenset(line for line in path.read_text().splitlines() if line and not line.startswith("#"))


def items_table(items: Sequence[Sample], test: NDArray[np.uint8]) -> list[dict[str, str]]:
    """The rows of `RECORDED` for these items."""
    return [
        {
            "file": item.part.file,
            "class": item.part.category,
            "side": "test" if flag else "train",
            "points": hashlib.sha256(item.clean.tobytes()).hexdigest()[:12],
        }
        for item, flag in zip(items, test, strict=True)
    ]


# Sampling


def _distinct(
    source: Path, parts: Sequence[Part], scratch: Path, processes: int, progress: Progress
) -> tuple[list[Sample], Counter[str]]:
    """The parts of ldraw16's classes that are no copy of an earlier part of the library, in file order."""
    chunks = [parts[begin : begin + CHUNK] for begin in range(0, len(parts), CHUNK)]
    files = [scratch / f"{number:05d}.safetensors" for number in range(len(chunks))]
    open_chunks = [number for number, chunk in enumerate(chunks) if _read_chunk(files[number], chunk) is None]
    done = len(chunks) - len(open_chunks)
    progress("sampling parts", done * CHUNK, len(parts))
    for number, content in _in_workers(sample_parts, [(source, chunks[n]) for n in open_chunks], processes):
        write_atomically(files[open_chunks[number]], content)
        done += 1
        progress("sampling parts", min(done * CHUNK, len(parts)), len(parts))

    seen: set[tuple[float, ...]] = set()
    samples, left_out = [], Counter[str]()
    for path, chunk in zip(files, chunks, strict=True):
        outcomes = _read_chunk(path, chunk)
        if outcomes is None:
            raise UserError(f"{path}: changed while it was in use; run the same command again")
        for part, (mark, sample) in zip(chunk, outcomes, strict=True):
            wanted = part.category in LDRAW16
            if mark is None:
                left_out["no usable surface"] += wanted
            elif mark in seen:
                left_out["geometric copy of another part"] += wanted
            elif sample is not None:
                samples.append(sample)
            seen |= {mark} if mark is not None else set()
    return samples, left_out


def sample_parts(source: Path, parts: Sequence[Part]) -> bytes:
    """A chunk: the signatures of parts, and the clouds of those that are of ldraw16's classes; safetensors."""
    library = _opened(source)
    about: list[dict[str, Any]] = []
    clouds: dict[str, list[NDArray[Any]]] = {"points": [], "clean": [], "scan": []}
    for part in parts:
        entry: dict[str, Any] = {"file": part.file, "mark": None, "ingredients": None}
        about.append(entry)
        try:
            if part.category in LDRAW16:
                shape, mark = library.shape(part)
                scan = scan_like(points=shape.points, identity=f"ldraw/{part.file.lower()}")
                clouds["points"].append(shape.points.astype(np.float32))
                clouds["clean"].append(shape.points[:KEPT].astype(np.float16))
                clouds["scan"].append(scan[:KEPT].astype(np.float16))
                entry |= {"mark": mark, "ingredients": sorted(shape.ingredients)}
            else:
                entry["mark"] = signature(triangles=library.surface(part)[0])
        except MeshError:
            continue
        except MemoryError:
            raise UserError(f"{source}/parts/{part.file}: needs more memory than there is; remove this file") from None
    tensors = {name: np.stack(arrays) for name, arrays in clouds.items() if arrays}
    return save(tensors | {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)})


@lru_cache(maxsize=1)
def _opened(source: Path) -> PartLibrary:
    """A worker's library; finding its files takes a second."""
    return PartLibrary(source)


Outcome = tuple[tuple[float, ...] | None, Sample | None]
"""The signature of a part, None when it has no usable surface; its clouds, if it is of one of the classes."""


def _read_chunk(path: Path, parts: Sequence[Part]) -> list[Outcome] | None:
    """What a kept chunk says of `parts`; None when it is not there, or not whole."""
    try:
        tensors = load(path.read_bytes())
        about = json.loads(tensors["about"].tobytes())
        rows = iter(zip(*(tensors.get(name, ()) for name in ("points", "clean", "scan")), strict=True))
        if [entry["file"] for entry in about] != [part.file for part in parts]:
            return None
        outcomes: list[Outcome] = []
        for part, entry in zip(parts, about, strict=True):
            mark = None if entry["mark"] is None else tuple(entry["mark"])
            ingredients = entry["ingredients"]
            sample = None if ingredients is None else Sample(part, frozenset(ingredients), *next(rows))
            outcomes.append((mark, sample))
        return outcomes
    except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError, StopIteration):
        return None


# Splitting


def _split(
    samples: Sequence[Sample], left_out: Counter[str], processes: int, progress: Progress
) -> tuple[list[Sample], NDArray[np.uint8]]:
    """The items, by class and file, and their test flags (n,)."""
    chosen = {part.file for part in ldraw16_parts(shapes=[sample.part for sample in samples])}
    left_out["beyond the first of their class"] = len(samples) - len(chosen)
    listed = listed_numbers()
    test, train = [], []
    for sample in samples:
        if sample.part.file not in chosen:
            continue
        if sample.part.base in listed:
            test.append(sample)
        elif in_test_split(sample.part.base):
            left_out["on the test side, but not among the parts recorded as unseen"] += 1
        elif sample.ingredients & listed:
            left_out["contains a test part"] += 1
        else:
            train.append(sample)
    close = _close_to_test(train, test, processes, progress)
    left_out["near-duplicate of a test item"] = len(close)
    sides = {sample.part.file: 1 for sample in test}
    sides |= {sample.part.file: 0 for index, sample in enumerate(train) if index not in close}
    items = [sample for sample in samples if sample.part.file in sides]
    items.sort(key=lambda sample: (LDRAW16.index(sample.part.category), sample.part.file))
    return items, np.array([sides[sample.part.file] for sample in items], dtype=np.uint8)


def _close_to_test(train: Sequence[Sample], test: Sequence[Sample], processes: int, progress: Progress) -> set[int]:
    """Indices of the training samples that are a near-duplicate of a test sample, of whatever class."""
    if not train or not test:
        return set()
    known = np.stack([sample.points for sample in train])
    asked = np.stack([sample.points for sample in test])
    pieces = [(known, piece) for piece in np.array_split(asked, min(len(asked), 4 * processes))]
    close: set[int] = set()
    progress("comparing train and test", 0, len(pieces))
    for done, (_, found) in enumerate(_in_workers(near_any, pieces, processes), start=1):
        close |= found
        progress("comparing train and test", done, len(pieces))
    return close


def near_any(known: NDArray[np.float32], asked: NDArray[np.float32]) -> set[int]:
    """Indices of the clouds `known` (A, N, 3) that are a near-duplicate of one of `asked` (B, N, 3)."""
    clouds, others = asked.astype(np.float64), known.astype(np.float64)
    spacings, spacings_others = (np.array([spacing(cloud) for cloud in both]) for both in (clouds, others))
    limits = NEAR * (spacings[:, None] + spacings_others) / 2
    return {index for _, index in near_duplicates(clouds=clouds, others=others, below=limits)}


def _check_classes(items: Sequence[Sample], test: NDArray[np.uint8], source: Path) -> None:
    """Refuse a library of which the split leaves a class without items on one side."""
    sides = {(item.part.category, int(flag)) for item, flag in zip(items, test, strict=True)}
    lacking = [
        f"{kind} ({side})"
        for kind in LDRAW16
        for flag, side in enumerate(("train", "test"))
        if (kind, flag) not in sides
    ]
    if lacking:
        raise UserError(
            f"'{source}': the split of ldraw16 does not hold for this library, no item is left of "
            f"{', '.join(lacking)}; take version {SOURCE['ldraw-parts']} of ldraw-parts: {INSTALL}"
        )


def _differences(items: Sequence[Sample], test: NDArray[np.uint8], path: Path = RECORDED) -> Differences:
    with path.open(newline="") as file:
        recorded = {row["file"]: row for row in csv.DictReader(file)}
    found = {row["file"]: row for row in items_table(items, test)}
    common = recorded.keys() & found.keys()
    return Differences(
        absent=len(recorded) - len(common),
        new=len(found) - len(common),
        changed=sum(recorded[name] != found[name] for name in common),
    )


# Writing


def _files(
    folder: Path,
    items: Sequence[Sample],
    test: NDArray[np.uint8],
    library: PartLibrary,
    left_out: Counter[str],
    differences: Differences,
) -> list[tuple[Path, bytes | str]]:
    """Both sets' files with their content."""
    labels = np.array([LDRAW16.index(item.part.category) for item in items], dtype=np.uint8)
    rows = []
    for row in items_table(items, test):
        title, author = library.credit(row["file"])
        rows.append(row | {"title": title, "author": author})
    per_class = {
        kind: {side: sum(row["class"] == kind and row["side"] == side for row in rows) for side in ("train", "test")}
        for kind in LDRAW16
    }
    card = {
        "version": VERSION,
        "classes": list(LDRAW16),
        "sizes": {"train": int((test == 0).sum()), "test": int(test.sum()), "points": KEPT},
        "sizes_per_class": per_class,
        "left_out": _sorted(left_out),
        "recorded": {"package": "ldraw-parts", "version": SOURCE["ldraw-parts"], "differences": asdict(differences)},
        "licence": "CC BY 2.0",
        "attribution": ATTRIBUTION,
    }
    files: list[tuple[Path, bytes | str]] = []
    for name, clouds in zip(NAMES, ([item.clean for item in items], [item.scan for item in items]), strict=True):
        content = save({"points": np.stack(clouds), "labels": labels, "test": test})
        own = {"name": name} | card | {"digest": hashlib.sha256(content).hexdigest(), "items": rows}
        files += [
            (folder / f"{name}.safetensors", content),
            (folder / f"{name}.json", json.dumps(own, indent=1) + "\n"),
        ]
    return files


def _sorted(left_out: Counter[str]) -> dict[str, int]:
    return {reason: count for reason, count in sorted(left_out.items()) if count}


def _scratch(folder: Path, state: object) -> Path:
    """The folder for chunks of this library; those of others are removed, and what was cut off while it was written."""
    key = hashlib.sha256(json.dumps([FORMAT, CHUNK, state]).encode()).hexdigest()[:16]
    scratch = folder / f".new-{key}"
    for other in folder.glob(".new-*"):
        if other != scratch:
            shutil.rmtree(other, ignore_errors=True)
    scratch.mkdir(exist_ok=True)
    for place in (scratch, folder):
        for leftover in place.glob(".*.safetensors.*"):
            leftover.unlink()
    return scratch


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One preparation at a time; the lock is the folder itself, so none is left behind."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder}: another `harness data prepare ldraw16` is at work there; wait for its end"
            ) from None
        yield
    except UserError:
        if made:  # nothing came of it
            with contextlib.suppress(OSError):
                for scratch in folder.glob(".new-*"):
                    shutil.rmtree(scratch)
                folder.rmdir()
        raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); mend that and run the same command again, "
            "it goes on where it stopped"
        ) from None


@contextlib.contextmanager
def _read_errors(source: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror or error})") from None


def _in_workers(
    work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], processes: int
) -> Iterator[tuple[int, Any]]:
    """(task's number, what `work` returns), as they end."""
    if not tasks:
        return
    with worker_pool(min(processes, len(tasks))) as pool:
        with without_main():
            futures = {pool.submit(work, *task): number for number, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was ended from outside (too little memory?); run the same command again, with "
                "--processes 1 if it happens again: it goes on where it stopped"
            ) from None
        finally:
            for future in futures:  # an error or Ctrl-C came through: don't begin what nobody waits for
                future.cancel()
