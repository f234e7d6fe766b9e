"""Files of an earlier report go before those of a new one; whatever else lies in the folder stays."""

from __future__ import annotations

import re
from pathlib import Path


def clear(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the files whose whole name matches, and the folder if nothing else is in it."""
    if not folder.is_dir():
        return
    others = False
    for path in folder.iterdir():
        if names.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink()
        else:
            others = True
    if not others:
        folder.rmdir()
