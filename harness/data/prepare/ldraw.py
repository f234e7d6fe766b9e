"""LDraw parts: the shapes that the shipped encoder is pre-trained on, and which parts it must not see.

The LDraw library (https://www.ldraw.org, CC BY 2.0) describes thousands of toy-brick parts as text files that
include one another. Sixteen of its categories make a classification set, `ldraw16`. Its test parts are named in
`harness/data/assets/ldraw16_test_parts.txt` and kept out of pre-training, so that the set stays usable as a test
of the shipped weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from harness.data.prepare.meshes import (
    Floats,
    MeshError,
    check_area,
    near_duplicates,
    normalise,
    sample_surface,
    seeded,
    signature,
)
from harness.data.prepare.sweethome import PACKAGE, PRETRAINING_KINDS, Item, read_labels, sample_items
from harness.errors import UserError

LDRAW16 = (
    "Animal", "Baseplate", "Brick", "Container", "Door", "Hinge", "Minifig Headwear", "Panel",
    "Plant", "Plate", "Slope", "Tile", "Tyre", "Wheel", "Window", "Windscreen",
)  # fmt: skip
"""Class names of ldraw16, in label order: LDraw categories that are clean as they stand."""

SHAPES_PER_CLASS = 150
TEST_SHARE = 0.3
POINTS = 2048
SOURCE = {"ldraw-parts": "2206+ds-1", PACKAGE[0]: PACKAGE[1]}
"""Debian packages, with the versions that the shipped encoder was pre-trained on."""
MAX_DEPTH = 32
MAX_FILE_BYTES = 16 * 2**20
MAX_PART_TRIANGLES = 2_000_000
MAX_INCLUDED = 200_000
"""Inclusions in one part, those of its inclusions counted; the largest of ldraw-parts 2206 has 27,398."""
KEPT_FILES = 1024
"""Included files whose content is kept in memory."""
INSTALL = "install it with `apt-get install ldraw-parts` (non-free component), or unpack complete.zip of ldraw.org"


@dataclass(frozen=True)
class Part:
    """One part file that stands for a shape of its own."""

    file: str
    category: str
    base: str
    """Part number without the suffixes of its variants: `3626bp01.dat` is a variant of `3626`."""


@dataclass(frozen=True)
class Shape:
    """A sampled part."""

    part: Part
    points: Floats
    """(2048, 3), mean zero, farthest point at norm 1, z up."""
    ingredients: frozenset[str]
    """Base numbers of all the parts that this one is assembled from, its own included."""


class PartLibrary:
    """An unpacked LDraw library: finds files by their case-insensitive names and flattens them to triangles."""

    def __init__(self, root: Path) -> None:
        if not (root / "parts").is_dir():
            raise UserError(f"no LDraw library in '{root}' (there is no folder 'parts'): {INSTALL}")
        self.root = root
        self._files = {
            name.lower(): (folder, name)
            for folder in ("parts", "p")  # primitives last: they win over a part of the same name
            for name in _files_below(root / folder)
        }
        self._primitives: dict[str, _Flat] = {}
        self._included = lru_cache(maxsize=KEPT_FILES)(self._read)

    def parts(self) -> list[Part]:
        """All parts that are shapes of their own: no aliases, moved files, printed patterns or stickers."""
        files = sorted(file for file in (self.root / "parts").glob("*.dat") if file.is_file())
        return [part for file in files if (part := _describe(file.name, _header(file))) is not None]

    def credit(self, file: str) -> tuple[str, str]:
        """Title and author of a part, as its header names them."""
        header = _header(self.root / "parts" / file)
        author = re.search(r"^0 Author: (.*)$", header, re.MULTILINE)
        return header.splitlines()[0][2:].strip()[:200], author[1].strip()[:200] if author else "not named"

    def state(self) -> list[tuple[str, str, int, int]]:
        """Folder, name, bytes and time of the last change in nanoseconds, of every file, in a fixed order."""
        found = []
        for folder, name in sorted(self._files.values()):
            stat = (self.root / folder / name).stat()
            found.append((folder, name, stat.st_size, stat.st_mtime_ns))
        return found

    def triangles(self, name: str) -> tuple[Floats, frozenset[str]]:
        """Triangles (T, 3, 3) of a file in LDraw axes (y down), and the base numbers of the parts it includes.

        Colours, lines and winding are ignored, and so are included files that are missing. Raises MeshError for
        inclusion deeper than `MAX_DEPTH` (a file that includes itself), and beyond the caps of sizes and numbers.
        """
        key = _key(name)
        if key not in self._files:
            return np.zeros((0, 3, 3)), frozenset()
        flat = self._flatten(key, self._read(key), depth=0)
        return flat.triangles, flat.ingredients

    def shape(self, part: Part) -> tuple[Shape, tuple[float, ...]]:
        """The sampled part and its geometric signature. Raises MeshError when it has no usable surface."""
        upright, ingredients = self.surface(part)
        rng = seeded("ldraw", part.file.lower())
        points = normalise(points=sample_surface(triangles=upright, count=POINTS, rng=rng))
        return Shape(part, points, ingredients), signature(triangles=upright)

    def surface(self, part: Part) -> tuple[Floats, frozenset[str]]:
        """Triangles (T, 3, 3) of a part, z up, and its ingredients. Raises MeshError when it has no usable surface."""
        triangles, ingredients = self.triangles(part.file)
        if not len(triangles):
            raise MeshError(f"'{part.file}' has no surface")
        upright = np.stack([triangles[..., 0], triangles[..., 2], -triangles[..., 1]], axis=-1)  # y down -> z up
        check_area(triangles=upright)
        return upright, ingredients

    def _read(self, key: str) -> _Parsed:
        folder, name = self._files[key]
        return _parse(_text(self.root / folder / name))

    def _flatten(self, key: str, parsed: _Parsed, *, depth: int) -> _Flat:
        """A parsed file with all that it includes. What is refused does not depend on what was flattened before."""
        if depth > MAX_DEPTH:
            raise MeshError(f"'{key}' includes itself, or files nest deeper than {MAX_DEPTH}")
        pieces, ingredients = [parsed.triangles], set[str]()
        triangles, files, height = len(parsed.triangles), 1, 0
        for offset, matrix, included in zip(parsed.offsets, parsed.matrices, parsed.names, strict=True):
            if included not in self._files:
                continue
            child = self._primitives.get(included) or self._flatten(included, self._included(included), depth=depth + 1)
            triangles, files, height = triangles + len(child.triangles), files + child.files, max(height, child.height)
            if triangles > MAX_PART_TRIANGLES or files > MAX_INCLUDED:
                raise MeshError(
                    f"'{key}' has more than {MAX_PART_TRIANGLES} triangles or {MAX_INCLUDED} included files"
                )
            pieces.append((child.triangles.reshape(-1, 3) @ matrix.T + offset).reshape(-1, 3, 3))
            ingredients |= child.ingredients
        if height >= MAX_DEPTH:
            raise MeshError(f"'{key}' includes itself, or files nest deeper than {MAX_DEPTH}")
        folder, name = self._files[key]
        own = {base_number(name)} if folder == "parts" else set()
        flat = _Flat(np.concatenate(pieces), frozenset(ingredients | own), files, height + 1)
        if folder == "p":
            flat = replace(flat, ingredients=frozenset())
            self._primitives[key] = flat
        return flat


@dataclass(frozen=True)
class _Parsed:
    """One file's own content."""

    triangles: Floats
    """(T, 3, 3)"""
    offsets: Floats
    """(K, 3) of its K inclusions"""
    matrices: Floats
    """(K, 3, 3)"""
    names: list[str]
    """Of the included files, as `PartLibrary` keys."""


@dataclass(frozen=True)
class _Flat:
    """A file with all that it includes."""

    triangles: Floats
    ingredients: frozenset[str]
    files: int
    """Inclusions, each counted as often as it occurs, and the file itself."""
    height: int
    """Files on the longest chain of inclusions that begins with it."""


def base_number(file: str) -> str:
    """The number that all variants of a part share: `3626bp01.dat` -> `3626`, `s/3001s01.dat` -> `3001`."""
    stem = file.lower().rsplit("/", 1)[-1].removesuffix(".dat")
    match = re.match(r"[a-z]*\d+", stem)
    return match[0] if match else stem


def in_test_split(base: str) -> bool:
    """Whether a part number belongs to the test side of ldraw16; all variants of a part stay on one side.

    The first 32 bits of sha256("ldraw16 split 1:" + number), as a fraction of 2**32, are below `TEST_SHARE`. A
    rule of the number alone, so a part keeps its side when the library grows.
    """
    return _fraction(f"ldraw16 split 1:{base}") < TEST_SHARE


def ldraw16_parts(*, shapes: Iterable[Part]) -> list[Part]:
    """The parts of ldraw16 among distinct `shapes`: of each class the `SHAPES_PER_CLASS` first by hash."""
    chosen: list[Part] = []
    for category in LDRAW16:
        members = [part for part in shapes if part.category == category]
        members.sort(key=lambda part: (_fraction(f"ldraw16 choice 1:{part.base}"), part.base, part.file))
        chosen += members[:SHAPES_PER_CLASS]
    return chosen


def distinct_shapes(*, library: PartLibrary) -> tuple[list[Shape], Counter[str]]:
    """All parts of the library with geometric copies removed, in file order; and how many were left out, why."""
    seen: set[tuple[float, ...]] = set()
    shapes, left_out = [], Counter[str]()
    for part in library.parts():
        try:
            shape, mark = library.shape(part)
        except MeshError:
            left_out["ldraw: no usable surface"] += 1
            continue
        if mark in seen:
            left_out["ldraw: geometric copy of another part"] += 1
            continue
        seen.add(mark)
        shapes.append(shape)
    return shapes, left_out


def held_out_list(*, shapes: Iterable[Part]) -> str:
    """The text of `ldraw16_test_parts.txt` for the distinct parts of a library."""
    numbers = sorted({part.base for part in ldraw16_parts(shapes=shapes) if in_test_split(part.base)})
    return "\n".join([_TEST_PARTS_HEADER, *numbers, ""])


def prepare_pretraining(*, ldraw: Path, furniture: Path, output: Path) -> list[Path]:
    """Write the pre-training shapes: `output` (safetensors), its description (.json) and the list of test parts.

    ldraw is the root of an LDraw library, furniture a source of Sweet Home 3D libraries (see `sh3f`). Included
    are all distinct LDraw parts but those that are, or contain, a part whose number is in the ldraw16 test
    split, and the Sweet Home models outside the classes of sweethome12 that resemble none of its candidates.
    `output` holds `points` (n, 2048, 3) float16, mean zero, farthest point at norm 1, z up. Raises UserError
    when a source is missing. Two runs write the same bytes.
    """
    library = PartLibrary(ldraw)
    shapes, left_out = distinct_shapes(library=library)
    parts = [shape.part for shape in shapes]
    reserved = {part.base for part in ldraw16_parts(shapes=parts) if in_test_split(part.base)}
    kept = [shape for shape in shapes if not shape.ingredients & reserved]
    left_out["ldraw: is or contains a part of the ldraw16 test split"] = len(shapes) - len(kept)
    clouds = [shape.points for shape in kept]
    names = [f"ldraw/{shape.part.file}" for shape in kept]
    for name, cloud in _other_furniture(furniture, left_out):
        names.append(name)
        clouds.append(cloud)
    content = save({"points": np.stack([cloud.astype(np.float16) for cloud in clouds])})
    description = {
        "name": "ldraw_pretrain",
        "version": 1,
        "digest": hashlib.sha256(content).hexdigest(),
        "source": SOURCE,
        "excluded": dict(sorted(left_out.items())),
        "items": names,
    }
    listed = output.with_name("ldraw16_test_parts.txt")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(content)
    output.with_suffix(".json").write_text(json.dumps(description, indent=1) + "\n")
    listed.write_text(held_out_list(shapes=parts))
    return [output, output.with_suffix(".json"), listed]


def _other_furniture(source: Path, left_out: Counter[str]) -> list[tuple[str, Floats]]:
    """Sweet Home models outside sweethome12 and unlike all that were ever candidates for it."""
    labels = read_labels()
    outside: list[Item] = []
    candidates: list[Item] = []
    for item in sample_items(source=source):
        if not isinstance(item, Item):
            left_out["sweethome: no usable surface"] += 1
            continue
        label = labels.get((item.furniture.library, item.furniture.model))
        wanted = label is not None and label.kind in PRETRAINING_KINDS
        (outside if wanted else candidates).append(item)
    left_out["sweethome: in or considered for sweethome12"] = len(candidates)
    return _without_duplicates(outside, candidates, left_out)


def _without_duplicates(
    outside: list[Item], candidates: list[Item], left_out: Counter[str]
) -> list[tuple[str, Floats]]:
    """Names and clouds of the items `outside` that are no copy of one another and unlike all `candidates`."""
    seen = {item.signature for item in candidates}
    close: set[int] = set()
    if outside and candidates:
        clouds, others = (np.stack([item.points for item in items]) for items in (outside, candidates))
        close = {i for i, _ in near_duplicates(clouds=clouds, others=others)}
    kept = []
    for index, item in enumerate(outside):
        if index in close or item.signature in seen:
            left_out["sweethome: copy or near-duplicate of another model"] += 1
            continue
        seen.add(item.signature)
        kept.append((f"sweethome/{item.identity}", item.points))
    return kept


_TEST_PARTS_HEADER = f"""\
# Part numbers of the test split of ldraw16: 16 categories of the LDraw library, at most {SHAPES_PER_CLASS} shapes each.
# No part with one of these numbers, in whatever variant or assembly, was seen when the shipped encoder was pre-trained.
# Rule: all variants of a part number stay on one side, and a number is on the test side when the first 32 bits
# of sha256("ldraw16 split 1:" + number) are below {TEST_SHARE} * 2**32.
# Made by harness.data.prepare.ldraw from the Debian package ldraw-parts {SOURCE["ldraw-parts"]} (CC BY 2.0, https://www.ldraw.org)."""


def _fraction(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32


def _header(file: Path) -> str:
    with file.open("rb") as stream:
        return stream.read(4000).decode("utf-8", errors="replace")


def _text(file: Path) -> str:
    with file.open("rb") as stream:
        content = stream.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise MeshError(f"'{file.name}' is larger than {MAX_FILE_BYTES} bytes")
    return content.decode("utf-8", errors="replace")


def _describe(name: str, header: str) -> Part | None:
    """The part that a file's header announces, or None when the file is no shape of its own."""
    first = header.splitlines()[0] if header else ""
    title = first[2:].strip()
    kind = re.search(r"^0 !LDRAW_ORG (.*)$", header, re.MULTILINE)
    if not title or title[0] in "~_=|" or (kind and re.search("Alias|Physical_Colour|Flexible", kind[1])):
        return None
    if re.search(r"pattern|sticker|\(obsolete\)", title, re.IGNORECASE):
        return None
    category = re.search(r"^0 !CATEGORY (.*)$", header, re.MULTILINE)
    return Part(name, category[1].strip() if category else title.split()[0], base_number(name))


def _key(name: str) -> str:
    return name.lower().replace("\\", "/")


def _files_below(folder: Path) -> list[str]:
    """Names of the .dat files below a folder, relative to it; no links."""
    found = []
    for place, _, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        found += [
            (inside / entry).as_posix()
            for entry in names
            if entry.endswith(".dat") and stat.S_ISREG((Path(place) / entry).lstat().st_mode)
        ]
    return sorted(found, key=lambda name: name.split("/"))


def _parse(text: str) -> _Parsed:
    """Inclusions (lines of type 1), triangles (3) and quadrilaterals (4, cut in two); other lines are skipped."""
    corners: list[str] = []
    placements: list[str] = []
    names: list[str] = []
    for line in text.splitlines():
        words = line.split(maxsplit=14)
        match words[:1], len(words):
            case ["1"], 15:
                placements += words[2:14]
                names.append(_key(words[14].strip()))
            case ["3"], 11:
                corners += words[2:]
            case ["4"], 14:
                corners += [*words[2:11], *words[2:5], *words[8:]]
    try:
        triangles = np.array(list(map(float, corners))).reshape(-1, 3, 3)
        placed = np.array(list(map(float, placements))).reshape(-1, 12)
    except ValueError:
        raise MeshError("a coordinate is not a number") from None
    return _Parsed(triangles, placed[:, :3], placed[:, 3:].reshape(-1, 3, 3), names)
