"""Files that nothing needs any more: in an output folder (`harness clean`), and what killed runs left elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.store import Store
from harness.trial_folder import ADAPTER, ADAPTER_HEAD, CHECKPOINT, TrialFolder

SCRATCH = "harness-tune-"


@dataclass(frozen=True)
class Litter:
    """Something that can go."""

    path: Path
    bytes: int
    why: str


def clean(
    store: Store, *, checkpoints: bool = False, adapters: bool = False, unlisted: bool = False, dry_run: bool = False
) -> Iterator[Litter]:
    """Remove, or with `dry_run` only find, temporary files of writers that died, and on request more.

    `checkpoints`: of trials with a final result; `--retry` would go on from them. `adapters`: of finished trials, whose
    results stay. `unlisted`: whole folders of trials that no suite in the output folder lists. Trials that somebody
    works on are left alone. Raises UserError for a damaged suite.json, CannotWrite.
    """
    listed = {entry.id for suite in store.suites() for entry in store.load(suite).entries}
    for path in sorted((store.output / "trials").glob("*")):
        folder = TrialFolder(path)
        if not path.is_dir():
            continue
        with folder.unclaimed() as free:
            if not free:
                continue
            if unlisted and path.name not in listed:
                found = [Litter(path, _size(path), "a trial of no suite here")]
            else:
                found = list(_litter(folder, checkpoints=checkpoints, adapters=adapters))
            for item in found if not dry_run else ():
                if item.path.is_dir():
                    shutil.rmtree(item.path, ignore_errors=True)
                else:
                    item.path.unlink(missing_ok=True)
        yield from found


def _litter(folder: TrialFolder, *, checkpoints: bool, adapters: bool) -> Iterator[Litter]:
    for temporary in sorted(folder.temporary()):
        yield Litter(temporary, _size(temporary), "left by a writer that died")
    result = folder.result()
    if result is None or result.unfinished:
        return
    if checkpoints and (folder.path / CHECKPOINT).is_file():
        yield Litter(folder.path / CHECKPOINT, _size(folder.path / CHECKPOINT), "checkpoint of a trial that has ended")
    for file in (ADAPTER, ADAPTER_HEAD) if adapters and result.status == "done" else ():
        if (folder.path / file).is_file():
            yield Litter(folder.path / file, _size(folder.path / file), "adapter")


def scratch_prefix() -> str:
    """How this process's temporary folders for Tune begin."""
    return f"{SCRATCH}{os.getpid()}-"


def sweep_scratch() -> None:
    """Remove the temporary folders of runs that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        number = re.match(r"[0-9]{1,9}(?=-)", path.name.removeprefix(SCRATCH))
        if number and not psutil.pid_exists(int(number[0])):
            shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
