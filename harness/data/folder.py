"""A user's folder of shapes: which file is of which class, and what cannot be used. Opens no file.

FOLDER/chair/a.ply …                      the harness splits
FOLDER/train/chair/a.ply, test/chair/…    the split is used as it is
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from harness.data.dataset import Split
from harness.data.files import READERS
from harness.errors import UserError


@dataclass(frozen=True)
class ShapeFile:
    """A file that may hold clouds."""

    path: Path
    name: str
    """Relative to the folder, printable."""
    kind: str
    """Its class."""
    split: Split | None
    """Of FOLDER/train and FOLDER/test; None where the harness splits."""


@dataclass
class Layout:
    """What a folder holds."""

    root: Path
    files: list[ShapeFile] = field(default_factory=list)
    """In the order of their classes, then of their names."""
    classes: list[str] = field(default_factory=list)
    """Sorted."""
    own_split: bool = False
    ignored: int = 0
    """Files of other kinds."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason)"""
    problems: list[str] = field(default_factory=list)
    """Why the folder as a whole cannot be imported."""

    def name(self, path: Path) -> str:
        """A path relative to the folder, printable."""
        return printable(path.relative_to(self.root).as_posix())


def printable(name: str) -> str:
    """A file's name with all spelled out that a terminal cannot show, or would obey."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in name)


def scan(folder: Path) -> Layout:
    """Look through a folder. Hidden files are skipped; symbolic links that leave the folder are refused.

    Raises UserError when it is no folder, or cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    layout = Layout(folder.resolve())
    try:
        _look_through(layout)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})") from None
    layout.files.sort(key=lambda file: (file.kind, file.name))
    return layout


def _look_through(layout: Layout) -> None:
    top = _folders(layout.root, layout)
    halves = [path for path in top if path.name in ("train", "test")]
    layout.own_split = len(halves) == 2
    classes: list[tuple[Path, Split | None]] = [(path, None) for path in top]
    if layout.own_split:
        others = [layout.name(path) for path in top if path not in halves]
        if others:
            layout.problems.append(
                f"{layout.root.name}: train and test lie beside other folders ({', '.join(others[:3])}); "
                "put every class below train and test, or none"
            )
        classes = [
            (path, "train" if half.name == "train" else "test") for half in halves for path in _folders(half, layout)
        ]
    elif halves and any(path.is_dir() for path in halves[0].iterdir()):
        other = "test" if halves[0].name == "train" else "train"
        layout.problems.append(f"{layout.root.name}: has {halves[0].name}/CLASS, but no {other}/CLASS beside it")
    layout.classes = sorted({layout.name(path).rpartition("/")[2] for path, _ in classes})
    for path, split in classes:
        _class_folder(path, split, layout)


def _folders(parent: Path, layout: Layout) -> list[Path]:
    """The folders below `parent`; files beside them belong to no class."""
    folders = []
    for path in _entries(parent, layout):
        if path.is_dir():
            folders.append(path)
        elif path.suffix.lower() in READERS:
            layout.refused.append((layout.name(path), "lies in no class folder"))
        else:
            layout.ignored += 1
    return folders


def _class_folder(folder: Path, split: Split | None, layout: Layout) -> None:
    kind = layout.name(folder).rpartition("/")[2]
    for path in _entries(folder, layout):
        if path.is_dir():
            layout.refused.append((layout.name(path), "is a folder inside a class folder"))
        elif path.suffix.lower() not in READERS:
            layout.ignored += 1
        elif not path.is_file():
            layout.refused.append((layout.name(path), "is no regular file"))
        else:
            layout.files.append(ShapeFile(path, layout.name(path), kind, split))


def _entries(folder: Path, layout: Layout) -> list[Path]:
    """What lies in a folder, sorted, without hidden entries and links that leave the root."""
    kept = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        try:
            stays = not path.is_symlink() or path.resolve().is_relative_to(layout.root)
        except RuntimeError:  # a link to itself
            stays = False
        if stays:
            kept.append(path)
        else:
            layout.refused.append((layout.name(path), "is a symbolic link that leaves the folder"))
    return kept
