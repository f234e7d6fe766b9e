"""sweethome12 and sweethome12_scanlike: 12 classes of furniture, sampled from free CAD models.

The models are those of the Debian package sweethome3d-furniture. Which item is of which class was reviewed by eye,
cloud by cloud; the outcome is `harness/data/assets/sweethome12_labels.csv`, and this module only follows it.
`prepare_sweethome12` wrote the files beside that table, and writes the same bytes again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from harness.data.prepare import sh3f
from harness.data.prepare.meshes import (
    Floats,
    MeshError,
    near_duplicates,
    normalise,
    sample_surface,
    seeded,
    signature,
)
from harness.data.prepare.scanlike import scan_like
from harness.errors import UserError

CLASSES = (
    "chair", "table", "appliance", "plant", "cabinet", "vessel",
    "door_window", "lamp", "switch_plug", "vehicle", "person", "sofa",
)  # fmt: skip
"""In label order."""

PRETRAINING_KINDS = ("other", "bed", "bath", "clothing")
"""Labels of items that were never candidates for one of the classes."""

LABELS = Path(__file__).parent.parent / "assets" / "sweethome12_labels.csv"
PACKAGE = ("sweethome3d-furniture", "1.8-1")
SAMPLED, KEPT = 2048, 1024
TEST_SHARE, TEST_MINIMUM = 0.3, 6
GROUP_BELOW = 0.0275
"""Chamfer-L1 distance that joins two items of a class to one group. Thin plates are close to one another in any
case: at 0.03 nearly all wall plates, and most doors, would chain to a single group."""


@dataclass(frozen=True)
class Origin:
    """Who made a library's models, and under which terms they are passed on."""

    authors: str
    licence: str
    link: str

    def attribution(self, library: str) -> str:
        """One sentence for NOTICE and for the description of the data."""
        return f"{library}: 3D models by {self.authors}, {self.licence} ({self.link}); sampled to points."


_BY, _BY_US = "https://creativecommons.org/licenses/by/3.0/", "https://creativecommons.org/licenses/by/3.0/us/"
_CONVERTED = "from blendswap.com, converted to OBJ by Emmanuel Puybaret / eTeks"
ORIGINS = {
    "BlendSwap-CC-0": Origin(
        f"various authors (each named with its item) {_CONVERTED}",
        "CC0 1.0",
        "https://creativecommons.org/publicdomain/zero/1.0/",
    ),
    "BlendSwap-CC-BY": Origin(f"various authors (each named with its item) {_CONVERTED}", "CC BY 3.0", _BY),
    "KatorLegaz": Origin("Andrew Kator and Jennifer Legaz", "CC BY 3.0 US", _BY_US),
    "Reallusion": Origin("Reallusion (http://www.reallusion.com)", "CC BY 3.0 US", _BY_US),
    "Scopia": Origin(
        "Emmanuel Puybaret / eTeks and Scopia Visual Interfaces Systems, s.l. (http://www.scopia.es)",
        "CC BY 3.0",
        _BY,
    ),
}
_UNKNOWN = Origin("unknown authors", "unknown licence", "no link")


@dataclass(frozen=True)
class Label:
    """A row of the reviewed table."""

    kind: str
    """One of `CLASSES` or `PRETRAINING_KINDS`, or 'drop'."""
    reason: str
    """Why the class is not the one that the item's name suggests; empty when it is."""


@dataclass(frozen=True)
class Item:
    """A sampled model."""

    furniture: sh3f.Furniture
    points: Floats
    """(2048, 3), mean zero, farthest point at norm 1, z up."""
    signature: tuple[float, ...]

    @property
    def identity(self) -> str:
        """Library and model path: what the item's random numbers depend on."""
        return f"{self.furniture.library}{self.furniture.model}"


def read_labels(*, path: Path = LABELS) -> dict[tuple[str, str], Label]:
    """The reviewed table, by (library, model path). Raises UserError for a table that cannot be used."""
    known = {*CLASSES, *PRETRAINING_KINDS, "drop"}
    labels: dict[tuple[str, str], Label] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                if row["class"] not in known:
                    problem = f"class '{row['class']}' is not one of {', '.join(sorted(known))}"
                    raise UserError(f"{path}:{number}: {problem}; correct the table")
                labels[row["library"], row["model"]] = Label(row["class"], row["reason"])
    except (OSError, KeyError, UnicodeDecodeError) as error:
        problem = "a CSV with columns library, model, item, class, reason is needed"
        raise UserError(f"cannot read the label table '{path}' ({error}): {problem}") from None
    return labels


def sample_items(*, source: Path) -> Iterator[Item | sh3f.Furniture]:
    """Every entry of the libraries under `source`, in catalogue order: sampled, or as it is if it has no surface.

    Raises UserError when there is no library.
    """
    for path in sh3f.open_libraries(source=source):
        with sh3f.library(path=path) as opened:
            for entry in sh3f.catalogue(opened=opened):
                try:
                    triangles = sh3f.read_model(opened=opened, item=entry)
                    rng = seeded("sweethome", entry.library, entry.model)
                    points = normalise(points=sample_surface(triangles=triangles, count=SAMPLED, rng=rng))
                    yield Item(entry, points, signature(triangles=triangles))
                except MeshError:
                    yield entry


def prepare_sweethome12(*, source: Path, output: Path, labels: Path = LABELS) -> list[Path]:
    """Write sweethome12 and sweethome12_scanlike, each a .safetensors and a .json, into the folder `output`.

    source is a folder of .sh3f libraries, one .sh3f file or an unpacked library. The tensors are `points`
    (n, 1024, 3) float16 in random order, z up, within the unit ball; `labels` (n,) uint8, indices of `CLASSES`;
    `test` (n,) uint8, 1 on the test side. Both sets hold the same items in the same order with the same split.
    Returns the files written. Raises UserError when the source is missing, or lacks a class that the split
    needs. Two runs write the same bytes.
    """
    items, kinds = _chosen(source, read_labels(path=labels))
    classes = np.array([CLASSES.index(kind) for kind in kinds], dtype=np.uint8)
    groups = group_variants(items=items, kinds=kinds)
    test = split_by_group(kinds=kinds, groups=groups)
    clean = [seeded("clean 1", item.identity).permutation(item.points)[:KEPT] for item in items]
    scans = [scan_like(points=item.points, identity=item.identity)[:KEPT] for item in items]
    output.mkdir(parents=True, exist_ok=True)
    written = []
    for name, clouds in (("sweethome12", clean), ("sweethome12_scanlike", scans)):
        tensors = {"points": np.stack(clouds).astype(np.float16), "labels": classes, "test": test}
        content = save(tensors)
        card = _card(name, items, kinds, groups, test) | {"digest": hashlib.sha256(content).hexdigest()}
        written += [output / f"{name}.safetensors", output / f"{name}.json"]
        written[-2].write_bytes(content)
        written[-1].write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return written


def group_variants(*, items: Sequence[Item], kinds: Sequence[str]) -> list[str]:
    """A group name per item: variants of one model, which must not stand on both sides of a split.

    Two items of a class are variants when their clouds are closer than `GROUP_BELOW`, or when they come from one
    library and their names share a stem of two words or more (see `name_stem`).
    """
    leader = list(range(len(items)))

    def find(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    def join(first: int, second: int) -> None:
        low, high = sorted((find(first), find(second)))
        leader[high] = low

    clouds = np.stack([item.points for item in items])
    for i, j in near_duplicates(clouds=clouds, others=clouds, below=GROUP_BELOW):
        if kinds[i] == kinds[j]:
            join(i, j)
    stems: dict[tuple[str, str, str], int] = {}
    for index, (item, kind) in enumerate(zip(items, kinds, strict=True)):
        stem = name_stem(item.furniture.name)
        if " " in stem:
            join(index, stems.setdefault((kind, item.furniture.library, stem), index))
    return [f"{kinds[index]}/{find(index):03d}" for index in range(len(items))]


def name_stem(name: str) -> str:
    """What the variants of a model share: 'Concept Sedan 02 Sport' -> 'concept sedan'.

    Cut at the first number; without parentheses, colours and sexes.
    """
    kept = re.sub(r"\(.*?\)", " ", name.lower())
    kept = re.split(r"\d", kept, maxsplit=1)[0]
    return " ".join(word for word in re.findall(r"[^\W_]+", kept) if word not in _QUALIFIERS)


_QUALIFIERS = {
    "black", "white", "red", "green", "blue", "yellow", "brown", "grey", "gray", "orange", "pink", "purple",
    "male", "female", "man", "woman", "boy", "girl", "left", "right",
}  # fmt: skip


def split_by_group(*, kinds: Sequence[str], groups: Sequence[str]) -> np.ndarray:
    """Test flags (n,) uint8: in every class about `TEST_SHARE` of the items, at least `TEST_MINIMUM`, whole groups.

    Groups are taken in an order fixed by a seed as long as they fit. The seed is the first of 1, 2, 3, ... whose
    split is of typical difficulty: the accuracy of linear SVMs on voxels of both sets lies within one standard
    deviation of its mean over 16 such splits. No method of the harness took part in that choice. Raises UserError
    when a class has too few groups to stand on both sides.
    """
    test = np.zeros(len(kinds), dtype=np.uint8)
    for kind in CLASSES:
        members = [index for index, own in enumerate(kinds) if own == kind]
        names = sorted({groups[index] for index in members})
        wanted = max(round(TEST_SHARE * len(members)), min(TEST_MINIMUM, len(members) // 2))
        taken = 0
        for name in seeded("sweethome12 split 3", kind).permutation(names) if names else []:
            group = [index for index in members if groups[index] == name]
            if taken + len(group) <= wanted:
                test[group] = 1
                taken += len(group)
        if not 0 < taken < len(members):
            problem = f"class '{kind}' has {len(members)} items in {len(names)} groups, too few for two splits"
            raise UserError(f"sweethome12: {problem}; the source must hold all five libraries: {sh3f.INSTALL}")
    return test


def _chosen(source: Path, labels: dict[tuple[str, str], Label]) -> tuple[list[Item], list[str]]:
    """The items of the 12 classes, geometric copies removed, and the class of each."""
    items, kinds, seen = [], [], set()
    for item in sample_items(source=source):
        if not isinstance(item, Item):
            continue
        label = labels.get((item.furniture.library, item.furniture.model))
        if label is None or label.kind not in CLASSES or item.signature in seen:
            continue
        seen.add(item.signature)
        items.append(item)
        kinds.append(label.kind)
    if not items:
        raise UserError(f"'{source}' holds none of the items of sweethome12: {sh3f.INSTALL}")
    return items, kinds


def _card(
    name: str, items: Sequence[Item], kinds: Sequence[str], groups: Sequence[str], test: np.ndarray
) -> dict[str, Any]:
    """The description of a dataset, without the digest."""
    libraries = sorted({item.furniture.library for item in items})
    per_class = {
        kind: {
            split: int(sum(test[i] == flag for i, own in enumerate(kinds) if own == kind))
            for split, flag in (("train", 0), ("test", 1))
        }
        for kind in CLASSES
    }
    return {
        "name": name,
        "version": 1,
        "classes": list(CLASSES),
        "sizes": {"train": int((test == 0).sum()), "test": int(test.sum()), "points": KEPT},
        "sizes_per_class": per_class,
        "source": {"package": PACKAGE[0], "version": PACKAGE[1]},
        "attribution": {library: ORIGINS.get(library, _UNKNOWN).attribution(library) for library in libraries},
        "items": [
            {
                "name": item.furniture.name,
                "library": item.furniture.library,
                "model": item.furniture.model,
                "creator": item.furniture.creator,
                "licence": ORIGINS.get(item.furniture.library, _UNKNOWN).licence,
                "class": kind,
                "group": group,
            }
            for item, kind, group in zip(items, kinds, groups, strict=True)
        ],
    }
