"""Files that nothing needs any more: in an output folder (`harness clean`), and what killed runs left elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.result import UNFINISHED
from harness.store import Store
from harness.trial_folder import ADAPTER, CHECKPOINT, TrialFolder

SCRATCH = "harness-tune-"


@dataclass(frozen=True)
class Litter:
    """Something that can go."""

    path: Path
    bytes: int
    why: str


def litter(store: Store, *, adapters: bool = False, unlisted: bool = False) -> Iterator[Litter]:
    """What can go: checkpoints of trials with a final result, and temporary files of writers that died.

    `adapters`: also the adapters of finished trials; their results stay. `unlisted`: also whole folders of trials
    that no suite in the output folder lists. Trials that somebody works on are left alone.
    """
    listed = {entry.id for suite in store.suites() for entry in store.load(suite).entries}
    for path in sorted((store.output / "trials").glob("*")):
        folder = TrialFolder(path)
        if not path.is_dir() or folder.running() is not None:
            continue
        if unlisted and path.name not in listed:
            yield Litter(path, _size(path), "a trial of no suite here")
            continue
        result = folder.result()
        for temporary in folder.temporary():
            yield Litter(temporary, _size(temporary), "left by a writer that died")
        if result is None or result.status in UNFINISHED:
            continue
        if (path / CHECKPOINT).is_file():
            yield Litter(path / CHECKPOINT, _size(path / CHECKPOINT), "checkpoint of a trial that has ended")
        if adapters and result.status == "done" and (path / ADAPTER).is_file():
            yield Litter(path / ADAPTER, _size(path / ADAPTER), "adapter")


def remove(item: Litter) -> None:
    """Take it away; a folder only while nobody works in it."""
    if item.path.is_dir():
        if TrialFolder(item.path).running() is None:
            shutil.rmtree(item.path, ignore_errors=True)
    else:
        item.path.unlink(missing_ok=True)


def scratch_prefix() -> str:
    """How this process's temporary folders for Tune begin."""
    return f"{SCRATCH}{os.getpid()}-"


def sweep_scratch() -> None:
    """Remove the temporary folders of runs that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        number = path.name.removeprefix(SCRATCH).partition("-")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
