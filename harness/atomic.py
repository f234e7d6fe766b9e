"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of renameat2(2)."""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; survives a power cut."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_in_order(contents: Sequence[tuple[Path, bytes | str]]) -> None:
    """Write files of which the last makes the others count; where it was not there before, all or none.

    Raises UserError when they cannot be written.
    """
    last = contents[-1][0]
    new = not last.exists()
    try:
        for path, content in contents:
            write_atomically(path, content)
    except BaseException as error:
        for path, _ in contents if new else ():
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            raise UserError(f"{last.parent}: cannot be written ({error.strerror})") from None
        raise


def replace_folder(made: Path, place: Path) -> None:
    """Put a folder where another one is, which goes; in one step where the system has one for it (Linux).

    Elsewhere there is, between two renames, for an instant none; when the second fails the old one comes back.
    """
    if not place.exists():
        made.rename(place)
    elif _exchange(made, place):
        shutil.rmtree(made, ignore_errors=True)
    else:
        aside = made.with_name(f"{made.name}.old")
        place.rename(aside)
        try:
            made.rename(place)
        except BaseException:
            aside.rename(place)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync_folder(place.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two paths in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0)


def _sync_folder(path: Path) -> None:
    """Make a rename in a folder survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> Any:
    """A JSON file's content, or None when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
