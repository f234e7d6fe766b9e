"""Furniture libraries of Sweet Home 3D: `.sh3f` archives (zip) of OBJ models with a catalogue of properties.

A library comes from a stranger: members are read by name into memory, never unpacked, sizes are capped before
anything is read, and a path that leaves the library is refused.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from harness.data.prepare.meshes import Floats, MeshError, read_obj
from harness.errors import UserError

CATALOGUE = "PluginFurnitureCatalog.properties"
MAX_MEMBER_BYTES = 64 * 2**20
MAX_MEMBERS = 20_000
INSTALL = "install it with `apt-get install sweethome3d-furniture`, or name another folder or .sh3f file"


@dataclass(frozen=True)
class Furniture:
    """One entry of a library's catalogue."""

    library: str
    """Name of the library: the archive's file name without suffix."""
    model: str
    """Path of the OBJ model inside the library. With the library it identifies the item."""
    name: str
    """Name for people; not unique."""
    creator: str
    rotation: tuple[float, ...]
    """Row-major 3 x 3 rotation that stands the model upright in the y-up axes of the format."""


class Library(Protocol):
    """A library's files, whether zipped or unpacked."""

    @property
    def name(self) -> str:
        """The file or folder name without suffix."""

    def read(self, member: str) -> bytes:
        """The content of one file; raises MeshError when it is missing, too large or outside the library."""


def open_libraries(*, source: Path) -> list[Path]:
    """The libraries under `source`, sorted: .sh3f files, or folders that hold an unpacked one.

    `source` is a folder of libraries, one .sh3f file or one unpacked library. Raises UserError when there is
    none.
    """
    if source.is_file() or (source / CATALOGUE).is_file():
        return [source]
    inside = sorted(source.iterdir()) if source.is_dir() else []
    found = [p for p in inside if p.suffix == ".sh3f" or (p / CATALOGUE).is_file()]
    if not found:
        raise UserError(f"no Sweet Home 3D furniture library in '{source}': {INSTALL}")
    return found


@contextmanager
def library(*, path: Path) -> Iterator[Library]:
    """Open one library. Raises UserError when the file is no zip archive or has absurdly many members."""
    if path.is_dir():
        yield _Folder(path)
        return
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"cannot read '{path}' as a .sh3f archive ({error}): {INSTALL}") from None
    with archive:
        if len(archive.namelist()) > MAX_MEMBERS:
            raise UserError(f"'{path}' has more than {MAX_MEMBERS} members: not a furniture library; {INSTALL}")
        yield _Archive(path, archive)


def catalogue(*, opened: Library) -> list[Furniture]:
    """The entries of a library, in catalogue order. Raises UserError when there is no usable catalogue."""
    try:
        text = opened.read(CATALOGUE).decode("latin-1")
    except MeshError as error:
        raise UserError(f"furniture library '{opened.name}': {error}; {INSTALL}") from None
    entries: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        if match := re.match(r"(\w+)#(\d{1,6})=(.*)", line.strip()):
            entries.setdefault(int(match[2]), {})[match[1]] = _unescape(match[3])
    return [_furniture(opened.name, entry) for _, entry in sorted(entries.items()) if "model" in entry]


def read_model(*, opened: Library, item: Furniture) -> Floats:
    """Triangles (T, 3, 3) of an item, upright, z up. Raises MeshError when the model cannot be used."""
    triangles = read_obj(text=opened.read(item.model).decode("utf-8", errors="replace"))
    upright = triangles @ np.array(item.rotation).reshape(3, 3).T
    return np.stack([upright[..., 0], -upright[..., 2], upright[..., 1]], axis=-1)  # y up -> z up


@dataclass(frozen=True)
class _Archive:
    path: Path
    archive: zipfile.ZipFile

    @property
    def name(self) -> str:
        return self.path.stem

    def read(self, member: str) -> bytes:
        try:
            with self.archive.open(_inside(member)) as file:
                return _bounded(file.read(MAX_MEMBER_BYTES + 1), member)
        except KeyError:
            raise MeshError(f"'{member}' is not in the archive") from None
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
            raise MeshError(f"'{member}' is damaged ({error})") from None


@dataclass(frozen=True)
class _Folder:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def read(self, member: str) -> bytes:
        file = (self.path / _inside(member)).resolve()
        if not file.is_relative_to(self.path.resolve()):
            raise MeshError(f"'{member}' leaves the library")
        try:
            with file.open("rb") as stream:
                return _bounded(stream.read(MAX_MEMBER_BYTES + 1), member)
        except OSError as error:
            raise MeshError(f"'{member}' cannot be read ({error.strerror})") from None


def _inside(member: str) -> str:
    """The member's path relative to the library; MeshError for one that climbs out of it."""
    path = PurePosixPath(member.replace("\\", "/").lstrip("/"))
    if ".." in path.parts:
        raise MeshError(f"'{member}' leaves the library")
    return str(path)


def _bounded(content: bytes, member: str) -> bytes:
    if len(content) > MAX_MEMBER_BYTES:
        raise MeshError(f"'{member}' is larger than {MAX_MEMBER_BYTES} bytes")
    return content


def _unescape(value: str) -> str:
    """Java properties write other alphabets as \\uXXXX."""
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), value).strip()


def _furniture(library_name: str, entry: dict[str, str]) -> Furniture:
    rotation = _rotation(entry.get("modelRotation", ""))
    name, creator = entry.get("name", ""), entry.get("creator", "")
    return Furniture(library_name, entry["model"], name, creator, rotation)


def _rotation(text: str) -> tuple[float, ...]:
    """Nine finite numbers, or the identity when they are missing or unreadable."""
    try:
        values = tuple(float(word) for word in text.split())
    except ValueError:
        values = ()
    usable = len(values) == 9 and bool(np.isfinite(values).all())
    return values if usable else (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
