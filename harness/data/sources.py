"""Files of a published data set: whether they are there, and reading text ones.

A release is downloaded by hand, so what goes wrong is always the same: a file is missing, empty, cut off, or lies where
this user may not read. Each gets one message with the path and what to do.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.errors import UserError

AGAIN = "get it again"
TEXT_LIMIT = 64 * 2**20
"""Bytes of a text file; the largest of the official ones has less than 1 MiB."""


def is_there(path: Path) -> bool:
    """Whether a file is there. Raises UserError for a folder that may not be entered."""
    try:
        return path.is_file()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give this user the right to read the folder (chmod)") from None


def is_whole(paths: Iterable[Path]) -> bool:
    """Whether all files of a release can be seen; for choosing among releases, so without complaints."""
    try:
        return all(path.is_file() for path in paths)
    except OSError:
        return False


def lacking(name: str, paths: Iterable[Path], source: str) -> str | None:
    """None when all files are there, else which are not (or cannot be seen), and where to get them."""
    try:
        absent = [str(path) for path in paths if not is_there(path)]
    except UserError as problem:
        return str(problem)
    if not absent:
        return None
    more = f" and {len(absent) - 3} more" if len(absent) > 4 else ""
    shown = absent[:3] if more else absent
    return f"dataset '{name}' lacks {' and '.join(shown)}{more}. {source}"


def refuse_unreadable(path: Path, *, limit: int | None = None) -> None:
    """Raises UserError for a file that is missing, empty, may not be read, or has more than `limit` bytes."""
    try:
        size = path.stat().st_size
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        advice = "give this user the right to read it (chmod)" if isinstance(error, PermissionError) else AGAIN
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    if size == 0:
        raise UserError(f"{path}: is empty (0 bytes), the download or the disk failed; {AGAIN}")
    if limit is not None and size > limit:
        raise UserError(f"{path}: has {size:,} bytes, more than any official file ({limit:,}); {AGAIN}")


def read_text(path: Path) -> str:
    """A text file, or UserError."""
    refuse_unreadable(path, limit=TEXT_LIMIT)
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no text ({error}); {AGAIN}") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not blank; at least one."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path}: lists nothing; {AGAIN}")
    return lines


def read_json_list(path: Path) -> list[str]:
    """A JSON file that is a list of texts, or UserError."""
    try:
        found = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({error}); {AGAIN}") from None
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise UserError(f"{path}: must be a list of texts; {AGAIN}")
    return found


def read_table(path: Path, *, columns: int, separator: str | None) -> npt.NDArray[np.float64]:
    """Numbers (rows, columns) of a text file; `separator` None is any white space.

    Raises UserError with the line for a short or long line, or what is no finite number.
    """
    text = read_text(path)
    try:
        table = np.loadtxt(io.StringIO(text), delimiter=separator, ndmin=2, comments=None)
    except ValueError:
        table = None
    if table is None or table.shape[0] == 0 or table.shape[1] != columns or not np.isfinite(table).all():
        raise UserError(_first_fault(path, text, columns=columns, separator=separator))
    return table


def _first_fault(path: Path, text: str, *, columns: int, separator: str | None) -> str:
    for number, line in enumerate(text.splitlines(), 1):
        values = line.strip().split(separator)
        if not line.strip():
            continue
        if len(values) != columns:
            return f"{path}:{number}: {len(values)} values, expected {columns}; the file is damaged or cut off, {AGAIN}"
        try:
            finite = all(np.isfinite(float(value)) for value in values)
        except ValueError:
            finite = False
        if not finite:
            return f"{path}:{number}: holds what is no finite number; the file is damaged, {AGAIN}"
    return f"{path}: holds no table of {columns} numbers per line; {AGAIN}"
