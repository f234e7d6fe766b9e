"""`harness data check`: what a dataset's files hold, and what is wrong with them.

Everything is loaded as a trial loads it, so what a trial would refuse is found here. Beyond that: the sizes of the
official splits, classes without items, the cache's digests, and clouds that lie in train and test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.data.cache import digest_of, entry_sources
from harness.data.dataset import Dataset, Declaration, Split
from harness.data.fewshot import FOLDS, FewShot
from harness.data.ldraw16 import PreparedDataset
from harness.data.official import OfficialDataset
from harness.data.shapenet55 import ShapeNet55
from harness.data.shapenetpart import PartSplit, ShapeNetPart
from harness.errors import UserError

TOLERATED = 0.01
"""Share of the test split that may lie in train before a dataset is unusable: CAD collections hold models twice."""
CHUNK = 2**21
"""Points that are hashed at once."""


@dataclass
class SplitFound:
    """One split as it was read."""

    split: str
    items: int
    points: int | None
    """Per cloud; None where clouds differ."""
    digest: str | None
    labels: dict[str, int]
    """Items by class."""


@dataclass
class Report:
    """What was found. Unusable when there are problems."""

    name: str
    task: str
    root: str
    files: int = 0
    bytes: int = 0
    splits: list[SplitFound] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    """File, bytes and SHA-256 of the sources, where they were converted."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """All of it, and the verdict."""
        return {"usable": not self.problems} | asdict(self)


def check_data(declared: Declaration, root: Path) -> Report:
    """Look at every file of a dataset; raises nothing for what is wrong with them."""
    report = Report(declared.name, declared.task, str(root))
    if problem := declared.missing(root):
        report.problems.append(problem)
        return report
    files = declared.sources(root)
    report.files, report.bytes = len(files), sum(path.stat().st_size for path in files)
    match declared:
        case FewShot():
            for fold in range(FOLDS):
                _check_pair(declared.with_fold(fold), root, report, prefix=f"fold {fold} ")
        case PreparedDataset():
            _check_prepared(declared, root, report)
        case Dataset():
            _check_pair(declared, root, report)
        case ShapeNetPart():
            _check_parts(declared, root, report)
        case ShapeNet55():
            _check_collection(declared, root, report)
        case _:
            report.notes.append(f"nothing is known of checking data for {declared.task}: only files were looked for")
    report.problems = list(dict.fromkeys(report.problems))
    return report


def _check_pair(declared: Dataset, root: Path, report: Report, *, prefix: str = "") -> None:
    """Train and test of a classification dataset, alone and against each other."""
    read: dict[Split, npt.NDArray[np.floating]] = {}
    expected: dict[Split, int] = {"train": declared.train_items, "test": declared.test_items}
    for split, items in expected.items():
        try:
            clouds = declared.load(split, root)
            if isinstance(declared, OfficialDataset):
                _check_entry(declared, split, root, report)
        except UserError as problem:
            report.problems.append(str(problem))
            continue
        counts = np.bincount(clouds.labels, minlength=len(declared.classes))
        labels = dict(zip(declared.classes, counts.tolist(), strict=True))
        report.splits.append(
            SplitFound(f"{prefix}{split}", len(clouds.labels), clouds.points.shape[1], clouds.digest, labels)
        )
        _check_sizes(report, f"{prefix}{split}", len(clouds.labels), items, labels)
        read[split] = clouds.points
    if len(read) == 2:
        shared = shared_items(read["train"], read["test"])
        place = ""
        if isinstance(declared, OfficialDataset):
            place = f"{declared.split_files('test', root)[0]}: "
        _tell_shared(report, f"{place}{prefix}", shared, len(read["test"]))


def _check_prepared(declared: PreparedDataset, root: Path, report: Report) -> None:
    """Against the sizes of its own card; what is other than recorded is a note."""
    try:
        report.notes += declared.notes(root)
        found = declared.as_prepared(root)
    except UserError as problem:
        report.problems.append(str(problem))
        return
    _check_pair(found, root, report)


def _check_entry(declared: OfficialDataset, split: Split, root: Path, report: Report) -> None:
    """The cache's copy against its own digest."""
    found = declared.convert(split, root)
    if found.entry is None:
        if isinstance(declared, FewShot):
            return  # drawn folds are rows of modelnet40
        report.notes.append(f"{split}: the converted copy could not be kept, so every start reads the sources")
        return
    report.sources += [source for source in entry_sources(found.entry) if source not in report.sources]
    if digest_of(found.arrays) != found.digest:
        raise UserError(f"{found.entry}: the converted copy is damaged; delete this folder, it is made anew")


def _check_sizes(report: Report, split: str, items: int, expected: int, labels: dict[str, int]) -> None:
    if items != expected:
        report.problems.append(
            f"{report.name}, {split}: {items} items, the official split has {expected}; results would not compare, "
            "get the files again"
        )
    empty = [name for name, count in labels.items() if not count]
    if empty:
        shown = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        report.problems.append(f"{report.name}, {split}: no item of class {shown}; get the files again")


def _check_parts(declared: ShapeNetPart, root: Path, report: Report) -> None:
    expected: dict[PartSplit, int | None] = {"train": None, "val": None, "test": declared.test_items}
    prints: dict[str, list[int]] = {}
    for split, items in expected.items():
        try:
            clouds = declared.load(split, root)
        except UserError as problem:
            report.problems.append(str(problem))
            continue
        counts = np.bincount(clouds.categories, minlength=len(declared.classes))
        labels = dict(zip(declared.classes, counts.tolist(), strict=True))
        report.splits.append(SplitFound(split, len(clouds), None, clouds.digest, labels))
        if items is not None:
            _check_sizes(report, split, len(clouds), items, labels)
        prints[split] = [int(fingerprints(clouds.item(row)[0][None])[0]) for row in range(len(clouds))]
    if len(prints) == 3:
        seen = set(prints["train"]) | set(prints["val"])
        _check_sizes(report, "train and val", len(prints["train"]) + len(prints["val"]), declared.train_items, {})
        shared = [(row, -1) for row, value in enumerate(prints["test"]) if value in seen]
        _tell_shared(report, "", shared, len(prints["test"]))


def _check_collection(declared: ShapeNet55, root: Path, report: Report) -> None:
    wrong = 0
    files = declared.sources(root)[2:]
    for path in files:
        try:
            declared.read_cloud(path)
        except UserError as problem:
            wrong += 1
            if wrong <= 5:
                report.problems.append(str(problem))
    if wrong > 5:
        report.problems.append(f"{report.name}: {wrong - 5} more files like these")
    report.splits.append(SplitFound("train and test", len(files), declared.points, None, {}))
    _check_sizes(report, "train and test", len(files), declared.train_items + declared.test_items, {})


def _tell_shared(report: Report, where: str, shared: list[tuple[int, int]], items: int) -> None:
    if not shared:
        return
    first = ", ".join(str(row) for row, _ in shared[:5]) + (", …" if len(shared) > 5 else "")
    words = f"{where}{len(shared)} of {items} test items lie in train as well (test items {first})"
    if len(shared) > TOLERATED * items:
        report.problems.append(f"{words}; accuracy would be of clouds seen in training: get the files again")
    else:
        report.notes.append(words)


def shared_items(train: npt.NDArray[np.floating], test: npt.NDArray[np.floating]) -> list[tuple[int, int]]:
    """(test row, train row) of clouds that have the same points, in whatever order; (n, N, 3) each."""
    if train.shape[1] != test.shape[1]:
        return []
    rows = {int(value): row for row, value in enumerate(fingerprints(train))}
    found = []
    for row, value in enumerate(fingerprints(test)):
        other = rows.get(int(value))
        if other is not None and np.array_equal(_sorted(test[row]), _sorted(train[other])):
            found.append((row, other))
    return found


def fingerprints(points: npt.NDArray[np.floating]) -> npt.NDArray[np.uint64]:
    """A number per cloud (n, N, 3) -> (n,) that the order of its points does not change: a sum of hashes of points."""
    return np.concatenate([_hash(chunk) for chunk in _chunks(points)])


def _chunks(points: npt.NDArray[np.floating]) -> Iterator[npt.NDArray[np.float32]]:
    step = max(1, CHUNK // points.shape[1])
    for begin in range(0, len(points), step):
        yield np.ascontiguousarray(points[begin : begin + step], np.float32) + np.float32(0)  # -0.0 becomes 0.0


def _hash(points: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    bits = points.view(np.uint32).astype(np.uint64)
    mixed = bits[..., 0] | bits[..., 1] << np.uint64(32)
    for more in (bits[..., 2], None):  # multiply and shift, as splitmix64 does
        mixed ^= mixed >> np.uint64(31)
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        if more is not None:
            mixed += more * np.uint64(0xBF58476D1CE4E5B9)
    return mixed.sum(axis=1, dtype=np.uint64)


def _sorted(cloud: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return cloud[np.lexsort(cloud.T)]
