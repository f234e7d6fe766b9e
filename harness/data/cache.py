"""Official files converted once to arrays that every process maps into memory.

    ROOT/.cache/NAME/KEY/{points.npy, labels.npy, card.json}

KEY follows from the source files' names, sizes and times and from what reads them, so other sources have another entry.
An entry is written beside its place and renamed: it is whole or not there. Where the data folder may not be written to,
entries lie in the user's cache folder; where no disk takes them, the sources are read each time, to the same digest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.atomic import read_json
from harness.errors import UserError

FORMAT = 1
ABANDONED = 3600.0
"""Seconds after which an unfinished entry is nobody's: writing one takes seconds."""

Arrays = dict[str, npt.NDArray[Any]]
"""By name; the digest goes through them in this order."""


@dataclass(frozen=True)
class Converted:
    """Arrays of one split."""

    arrays: Arrays
    """Mapped from the cache: pages are shared by all processes; writing to them changes this process's copy only."""
    digest: str
    """SHA-256 of the arrays' bytes: the same whether they come from the cache or not."""
    entry: Path | None
    """The cache's folder; None when they were read from the sources."""


def converted(name: str, *, root: Path, reader: str, sources: Sequence[Path], read: Callable[[], Arrays]) -> Converted:
    """The arrays of `sources`: from the cache, or by `read` and then into the cache.

    `name` is the entry's folder below the cache, `reader` says what reading depends on beside the files. Raises what
    `read` raises; then nothing is kept.
    """
    stamps = _stamps(sources, root)
    key = hashlib.sha256(json.dumps([FORMAT, reader, stamps]).encode()).hexdigest()[:16]
    places = [base / name / key for base in (root / ".cache", _user_cache(root)) if base is not None]
    for entry in places:
        if (found := _open(entry)) is not None:
            return found
    with contextlib.ExitStack() as stack:
        place = next((place for place in places if _enter(stack, place.parent)), None)
        if place is not None and (found := _open(place)) is not None:  # another process made it meanwhile
            return found
        arrays = {key: np.ascontiguousarray(value) for key, value in read().items()}
        digest = digest_of(arrays)
        if _stamps(sources, root) != stamps:
            raise UserError(f"{sources[0].parent}: files changed while they were read; wait for the copy to end")
        if place is not None:
            try:
                _write(place, arrays, {"reader": reader, "digest": digest, "sources": _digests(sources, stamps)})
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                hint = "free some space" if full else "mend the folder"
                warnings.warn(
                    f"{place.parent}: the converted copy cannot be kept ({error.strerror}); {hint}, or every start "
                    f"reads {name} anew",
                    stacklevel=2,
                )
            else:
                return _open(place) or Converted(arrays, digest, None)
        return Converted(arrays, digest, None)


def digest_of(arrays: Arrays) -> str:
    """SHA-256 of the content of contiguous arrays, in their order."""
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def entry_sources(entry: Path) -> list[dict[str, Any]]:
    """The files that an entry was made of: file, bytes, SHA-256."""
    card = read_json(entry / "card.json")
    return list(card["sources"]) if isinstance(card, dict) else []


def _stamps(sources: Sequence[Path], root: Path) -> list[list[Any]]:
    """Name below the root, bytes, time of the last change in nanoseconds, of every source."""
    found = []
    for path in sources:
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); get it again") from None
        found.append([os.path.relpath(path, root), stat.st_size, stat.st_mtime_ns])
    return found


def _digests(sources: Sequence[Path], stamps: list[list[Any]]) -> list[dict[str, Any]]:
    found = []
    for path, (name, size, _) in zip(sources, stamps, strict=True):
        with path.open("rb") as file:
            found.append({"file": name, "bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()})
    return found


def _user_cache(root: Path) -> Path | None:
    """Below the user's cache folder, apart for every data folder; None for a user without a home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "pointpeft-harness" / hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:12]


def _open(entry: Path) -> Converted | None:
    """An entry's arrays, mapped; None when it is not there or not whole."""
    card = read_json(entry / "card.json")
    if not isinstance(card, dict):
        return None
    arrays: Arrays = {}
    try:
        for name, (shape, kind) in card["arrays"].items():
            array = np.load(entry / f"{name}.npy", mmap_mode="c", allow_pickle=False)
            if list(array.shape) != shape or str(array.dtype) != kind:
                return None
            arrays[name] = array
        return Converted(arrays, str(card["digest"]), entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # cut off, or removed meanwhile: made anew


def _enter(stack: contextlib.ExitStack, folder: Path) -> bool:
    """Whether entries can be written here; then one process at a time, so that no two convert the same files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_alone(folder / ".lock"))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        with contextlib.suppress(OSError):  # a file system without locks: both convert, the first rename wins
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(entry: Path, arrays: Arrays, card: dict[str, Any]) -> None:
    """Write an entry whole, and drop what it replaces."""
    begun = time.time()
    for old in entry.parent.glob(".new-*"):
        if begun - old.stat().st_mtime > ABANDONED:
            shutil.rmtree(old, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=".new-", dir=entry.parent))
    try:
        for name, array in arrays.items():
            with (temporary / f"{name}.npy").open("wb") as file:
                np.save(file, array, allow_pickle=False)
                file.flush()
                os.fsync(file.fileno())
        shapes = {name: [list(array.shape), str(array.dtype)] for name, array in arrays.items()}
        (temporary / "card.json").write_text(json.dumps(card | {"arrays": shapes}, indent=1))
        temporary.chmod(0o755)
        if _open(entry) is None:
            shutil.rmtree(entry, ignore_errors=True)  # a damaged one
            temporary.replace(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for other in entry.parent.iterdir():  # of sources that were replaced; who has them open keeps them
        if other.is_dir() and other != entry and not other.name.startswith(".new-"):
            shutil.rmtree(other, ignore_errors=True)
