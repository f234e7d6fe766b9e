"""`harness data import`: a user's folder of shapes becomes a dataset with a name.

Look through the folder, read its files in worker processes, drop what cannot be used, split, write. Two imports of one
folder write the same bytes: points are drawn by the shape alone, the split by the shape and the seed, and nothing of
the time, the machine or the path is kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from harness import registry
from harness.data.dataset import Split
from harness.data.folder import Layout, ShapeFile, printable, scan
from harness.data.imported import NAME, Card, ClassCounts, RefusedFile, card_path, clouds_path
from harness.data.reading import read_files
from harness.errors import UserError
from harness.store import write_atomically

UNKNOWN_LICENCE = "not stated"
TOLD = 12
"""Refused files that an error names."""

Clouds = NDArray[np.float32]


@dataclass(frozen=True)
class Item:
    """One cloud on its way into the dataset."""

    file: ShapeFile
    cloud: Clouds
    """(N, 3)"""
    digest: str
    """Of the cloud: equal shapes have equal ones, in whatever file they lie."""
    split: Split | None


def import_folder(
    folder: Path,
    *,
    name: str,
    root: Path,
    points: int = 1024,
    test_fraction: float = 0.25,
    seed: int = 0,
    up: Literal["y", "z"] = "z",
    normalise: bool = True,
    licence: str = UNKNOWN_LICENCE,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda done, files: None,
) -> Card:
    """Write ROOT/imported/NAME.safetensors and, last, NAME.json; returns the card, which is what the JSON holds.

    The tensors are `points` (n, points, 3) float32, `labels` (n,) int64 (indices of the sorted class folders) and
    `test` (n,) uint8, ordered by class and file. Files that give no clouds are left out and listed in the card. So are
    all copies of a shape that lies in two classes: nobody can tell here which of the labels is wrong. Copies within a
    class stay on one side of the split, unless the folder brings a split of its own, which is used as it is.

    Raises UserError with all problems at once, and writes nothing, when the name or an option cannot be used, when
    there are fewer than two classes, or when a class keeps no cloud for one of the sides. `progress` is called with
    the files done and the files there are.
    """
    layout = scan(folder)
    problems = [*_option_problems(name, points, test_fraction, seed), *layout.problems]
    if NAME.fullmatch(name) and not force and card_path(name, root).exists():
        problems.append(f"dataset '{name}' is imported already ({card_path(name, root)}); --force replaces it")
    if not layout.files:
        problems.append(f"{folder}: holds no shapes in class folders; expected FOLDER/CLASS/FILE (docs/own_data.md)")
    if problems:
        raise UserError("\n".join(problems))

    items, refused = _read(layout.files, points=points, normalised=normalise, progress=progress)
    items, contradictions = _without_contradictions(items)
    refused = [*layout.refused, *refused, *contradictions]
    problems = _class_problems(layout, items)
    if problems:
        told = [f"- {file}: {reason}" for file, reason in refused[:TOLD]]
        more = [f"- and {len(refused) - TOLD} more refused files"] if len(refused) > TOLD else []
        raise UserError("\n".join([*problems, *told, *more]))
    if not layout.own_split:
        items = _split(items, fraction=test_fraction, seed=seed)

    trained = {item.digest for item in items if item.split == "train"}
    content = save(
        {
            "points": np.stack([item.cloud for item in items]),
            "labels": np.array([layout.classes.index(item.file.kind) for item in items], dtype=np.int64),
            "test": np.array([item.split == "test" for item in items], dtype=np.uint8),
        }
    )
    card = Card(
        name=name,
        classes=tuple(layout.classes),
        train_items=sum(item.split == "train" for item in items),
        test_items=sum(item.split == "test" for item in items),
        counts=_counts(layout, items, refused),
        points=points,
        up=up,
        normalised=normalise,
        licence=licence,
        folder=printable(layout.root.name),
        split="as in the folders train and test" if layout.own_split else _rule(test_fraction, seed),
        duplicates=sum(n - 1 for n in Counter((item.file.kind, item.digest) for item in items).values()),
        shared=sum(item.split == "test" and item.digest in trained for item in items),
        ignored=layout.ignored,
        refused=tuple(RefusedFile(file=file, reason=reason) for file, reason in refused),
        digest=hashlib.sha256(content).hexdigest(),
    )
    _write(card, content, root)
    return card


def first_suite(card: Card) -> str:
    """The text of a small suite on an imported dataset, to start from."""
    return f"""\
format: 1
name: my_comparison
seeds: 3
datasets: ["{card.name}"]
backbones:
  point_mae: {{preset: tiny, weights: point_mae_tiny_parts}}
methods:
  linear_probe: {{}}
  lora: {{rank: 8}}
  dapt: {{rank: 16}}
train: {{epochs: 20, batch_size: {min(16, card.train_items)}, learning_rate: 2.0e-3, warmup_epochs: 2}}
protocol: {{frozen_batchnorm: running}}
data: {{points: {min(512, card.points)}}}
"""


# What can be wrong


def _option_problems(name: str, points: int, test_fraction: float, seed: int) -> Iterator[str]:
    if not NAME.fullmatch(name):
        yield f"--name {name}: may hold letters, digits, '.', '_' and '-' only, 1 to 64 of them"
    elif name in registry.installed("datasets"):
        yield f"--name {name}: a dataset of the harness is called so; choose another name"
    if points < 2:
        yield f"--points {points}: a cloud has at least 2"
    if not 0 < test_fraction < 1:
        yield f"--test-fraction {test_fraction}: must lie between 0 and 1"
    if seed < 0:
        yield f"--seed {seed}: must not be negative"


def _class_problems(layout: Layout, items: Sequence[Item]) -> list[str]:
    problems = []
    if len(layout.classes) < 2:
        problems.append(f"{layout.root.name}: {len(layout.classes)} class, but a classification needs 2 or more")
    for kind in layout.classes:
        own = [item for item in items if item.file.kind == kind]
        if layout.own_split:
            lacks = [side for side in ("train", "test") if not any(item.split == side for item in own)]
            problems += [f"class '{kind}': no usable shape in {side}/{kind}" for side in lacks]
        elif len(own) < 2:
            problems.append(f"class '{kind}': {len(own)} usable shapes; one to train on and one to test are needed")
        elif len({item.digest for item in own}) < 2:
            problems.append(f"class '{kind}': its {len(own)} usable shapes are copies of one, which cannot be split")
    return problems


def _without_contradictions(items: Sequence[Item]) -> tuple[list[Item], list[tuple[str, str]]]:
    """Items whose shape lies in one class only, and the others as (file, reason)."""
    kinds: dict[str, set[str]] = {}
    for item in items:
        kinds.setdefault(item.digest, set()).add(item.file.kind)
    kept = [item for item in items if len(kinds[item.digest]) == 1]
    refused = {
        item.file.name: f"the same shape lies in {' and '.join(sorted(kinds[item.digest]))}"
        for item in items
        if len(kinds[item.digest]) > 1
    }
    return kept, list(refused.items())


# Reading


def _read(
    files: Sequence[ShapeFile], *, points: int, normalised: bool, progress: Callable[[int, int], None]
) -> tuple[list[Item], list[tuple[str, str]]]:
    """All clouds in the order of the files, and the refused files as (name, reason)."""
    items: list[Item] = []
    refused: list[tuple[str, str]] = []
    outcomes = read_files([file.path for file in files], points=points, normalised=normalised)
    for done, (file, outcome) in enumerate(zip(files, outcomes, strict=True), start=1):
        if isinstance(outcome, str):
            refused.append((file.name, outcome))
        else:
            items += [Item(file, cloud, hashlib.sha256(cloud.tobytes()).hexdigest(), file.split) for cloud in outcome]
        progress(done, len(files))
    return items, refused


# Splitting and writing


def _split(items: Sequence[Item], *, fraction: float, seed: int) -> list[Item]:
    """The items with their sides; every class has two different shapes or more."""
    test: set[tuple[str, str]] = set()
    for kind in {item.file.kind for item in items}:
        copies = Counter(item.digest for item in items if item.file.kind == kind)
        test |= {(kind, digest) for digest in _test_shapes(copies, fraction=fraction, seed=seed)}
    return [replace(item, split="test" if (item.file.kind, item.digest) in test else "train") for item in items]


def _test_shapes(copies: Counter[str], *, fraction: float, seed: int) -> set[str]:
    """Which shapes of a class are tested; `copies` counts how often each occurs.

    Shapes come in the order of a hash of seed and shape, so that a file more or less moves few others. They are taken
    with all their copies as long as they fit; when none fits, the one with the fewest copies is.
    """
    order = sorted(copies, key=lambda digest: hashlib.sha256(f"split {seed} {digest}".encode()).digest())
    total = sum(copies.values())
    wanted = min(max(1, round(fraction * total)), total - 1)
    chosen: set[str] = set()
    taken = 0
    for digest in order:
        if taken + copies[digest] <= wanted:
            chosen.add(digest)
            taken += copies[digest]
    return chosen or {min(order, key=lambda digest: copies[digest])}


def _rule(fraction: float, seed: int) -> str:
    return (
        f"of every class {100 * fraction:g} % are tested, at least one and not all, drawn by seed {seed}; "
        "copies of a shape stay on one side"
    )


def _counts(layout: Layout, items: Sequence[Item], refused: Sequence[tuple[str, str]]) -> dict[str, ClassCounts]:
    """Per class: files read and refused, clouds to train on and to test."""
    names = {file for file, _ in refused}
    gone = Counter(name.split("/")[-2] for name in names if "/" in name)  # CLASS/FILE or train/CLASS/FILE
    return {
        kind: ClassCounts(
            read=len({item.file.name for item in items if item.file.kind == kind}),
            refused=gone[kind],
            train=sum(item.file.kind == kind and item.split == "train" for item in items),
            test=sum(item.file.kind == kind and item.split == "test" for item in items),
        )
        for kind in layout.classes
    }


def _write(card: Card, content: bytes, root: Path) -> None:
    """The clouds first, the card last: without a card there is no dataset."""
    clouds, path = clouds_path(card.name, root), card_path(card.name, root)
    new = not path.exists()
    try:
        write_atomically(clouds, content)
        write_atomically(path, card.model_dump_json(indent=1) + "\n")
    except BaseException as error:
        if new:
            clouds.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{path.parent}: cannot be written ({error.strerror})") from None
        raise
