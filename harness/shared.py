"""Which machines share the results folder: those that see a locked file of the run in it, and cannot lock it.

A machine that sees another folder of that path, or on which locks of others do not hold, must not write there: its
trials travel (harness.travel).
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.machine import sees

PREFIX = ".shared-"


@dataclass(frozen=True)
class Mark:
    """A file in a results folder that its run holds locked."""

    path: Path
    content: str

    def here(self) -> bool:
        """Whether this machine shares the folder with the run's own."""
        return not sees(str(self.path), self.content)


@contextlib.contextmanager
def marked(output: Path) -> Iterator[Mark]:
    """Mark a results folder while the block runs. Raises UserError where it cannot be written or locked."""
    content = secrets.token_hex(16)
    path = output.resolve() / f"{PREFIX}{content[:8]}"
    try:
        _sweep(output)
        file = path.open("x")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.write(content)
        file.flush()
    except OSError as error:
        raise UserError(f"{output}: cannot be written or locked ({error.strerror or error})") from None
    with file:
        try:
            yield Mark(path, content)
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _sweep(output: Path) -> None:
    """Remove marks of runs that were killed: nobody holds them."""
    for path in output.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError), path.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
