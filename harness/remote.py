"""A copy of the results in a bucket, or wherever else fsspec reaches: `harness run --copy-to URL`.

    URL/trials/ID/    what a finished trial left (harness.trial_folder), result.json last
    URL/SUITE/        the suite and its reports, when a run ends

The folder of `--output` stays the truth: it has locks and whole files, which object storage has not. The copy is
written in the background and read once, at the start: finished trials that are not here are fetched, so a new disk goes
on where the lost one was. One results folder per URL: two that write to the same one do not know of each other.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.store import Store
from harness.travel import travels
from harness.trial_folder import CannotWrite, TrialFolder

POLL_SECONDS = 5.0
"""Between two looks for new results."""
TRIES = 3
"""How often the last look is taken when the storage fails."""
STALLED_SECONDS = 300.0
"""How long the end of a run waits for a storage that does nothing."""
RESULT = "result.json"
Stamp = tuple[int, int, int]
"""Time of change, bytes and number of a file."""


class Remote:
    """A folder of an fsspec file system that holds a copy of an output folder."""

    def __init__(self, url: str, store: Store) -> None:
        """Raises UserError for a URL that is none, whose file system is not installed, or that cannot be written."""
        self.url, self.store = url, store
        self.files, self.home = _opened(url, store.output)

    def sizes(self) -> dict[str, dict[str, int]]:
        """Bytes of every file of every trial there, by identity and name."""
        self.files.invalidate_cache()
        found: dict[str, dict[str, int]] = {}
        for path, entry in self.files.find(f"{self.home}/trials", detail=True).items():
            identity, _, name = path.removeprefix(f"{self.home}/trials/").partition("/")
            found.setdefault(identity, {})[name] = entry["size"]
        return found

    def fetch(self, identities: Iterable[str]) -> int:
        """Bring the finished ones of these trials here that are not. Returns how many. Raises UserError."""
        try:
            there = self.sizes()
            return sum(self._fetch(name, there[name]) for name in identities if RESULT in there.get(name, ()))
        except CannotWrite as problem:
            raise UserError(str(problem)) from None
        except Exception as error:  # of whatever package reaches the storage
            raise UserError(f"--copy-to {self.url}: finished trials cannot be fetched ({_told(error)})") from None

    def _fetch(self, identity: str, names: Iterable[str]) -> bool:
        folder, place = self.store.trial(identity), f"{self.home}/trials/{identity}"
        if _final(folder):
            return False
        return folder.take_in({name: self.files.cat_file(f"{place}/{name}") for name in names if travels(name)})

    def put(self, folder: TrialFolder) -> None:
        """Copy a finished trial. What lies there of an earlier result goes first."""
        paths = {path.relative_to(folder.path).as_posix(): path for path in folder.path.rglob("*") if path.is_file()}
        contents = {name: path.read_bytes() for name, path in paths.items() if travels(name)}
        place = f"{self.home}/trials/{folder.identity}"
        self.files.invalidate_cache()
        there = {path.removeprefix(f"{place}/") for path in self.files.find(place)}
        for name in sorted(there & {RESULT}) + sorted(there - contents.keys() - {RESULT}):
            self.files.rm_file(f"{place}/{name}")
        for name in sorted(contents, key=lambda name: name == RESULT):
            self._write(f"trials/{folder.identity}/{name}", contents[name])

    def put_suite(self, suite: str) -> None:
        """Copy a suite's list of trials and its reports."""
        folder = self.store.suite_folder(suite)
        for path in [folder / "suite.yaml", folder / "suite.json", *sorted((folder / "report").glob("*"))]:
            if path.is_file():
                self._write(f"{suite}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def _write(self, name: str, content: bytes) -> None:
        path = f"{self.home}/{name}"
        self.files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self.files.pipe_file(path, content)


class Copier:
    """Copies a run's results while it goes on, from a thread. Whatever the storage does, no trial waits for it."""

    def __init__(self, remote: Remote, *, suite: str, identities: Iterable[str]) -> None:
        self.remote, self.suite = remote, suite
        self.waiting = {identity: remote.store.trial(identity) for identity in identities}
        self.copied: dict[str, Stamp] | None = None
        """What result.json was here when it was copied; None until it is known what is there."""
        self.problem = ""
        self.sign = time.monotonic()
        """When something was last copied."""
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def finish(self) -> str:
        """Copy what is left, and the reports. Returns why not all is there, when it is not; never raises."""
        self.sign = time.monotonic()
        self.ending.set()
        while self.thread.is_alive() and time.monotonic() - self.sign < STALLED_SECONDS:
            self.thread.join(0.1)
        if self.thread.is_alive():
            self.problem = self.problem or f"nothing went on for {STALLED_SECONDS:g} s"
        if not self.problem:
            return ""
        return f"not all results are at {self.remote.url} ({self.problem}); the same command copies what is missing"

    def _follow(self) -> None:
        tries = 0
        while tries < TRIES:
            last = self.ending.wait(POLL_SECONDS)
            tries += last
            try:
                self._look()
                if last:
                    self.remote.put_suite(self.suite)
                self.problem = ""
            except Exception as error:  # of whatever package reaches the storage
                self.problem = _told(error)
                time.sleep(POLL_SECONDS if last and tries < TRIES else 0)
            else:
                if last:
                    return

    def _look(self) -> None:
        """Copy every final result that is not there as it is here; one that fails does not keep the others back."""
        if self.copied is None:
            there = self.remote.sizes()
            stamps = {identity: _stamp(folder) for identity, folder in self.waiting.items()}
            # two results of one trial are as long by chance only: they name moments and durations
            sizes = {identity: names.get(RESULT) for identity, names in there.items()}
            self.copied = {name: stamp for name, stamp in stamps.items() if stamp and sizes.get(name) == stamp[1]}
        failed: Exception | None = None
        for identity, folder in self.waiting.items():
            stamp = _stamp(folder)
            if stamp is None or self.copied.get(identity) == stamp or not _final(folder):
                continue
            try:
                self.remote.put(folder)
            except Exception as error:  # of whatever package reaches the storage
                failed = error
            else:
                self.copied[identity], self.sign = stamp, time.monotonic()
        if failed is not None:
            raise failed


def _opened(url: str, output: Path) -> tuple[Any, str]:
    """The file system of a URL, and the folder in it. Raises UserError."""
    if re.search(r"//[^/@]*:[^/@]*@", url):
        mend = "fsspec takes it from its configuration or the environment (docs/cluster.md)"
        raise UserError(f"--copy-to: write no password into the URL; {mend}")
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    try:
        files, home = url_to_fs(url)
    except ImportError as error:
        raise UserError(f"--copy-to {url}: {_told(error)}") from None
    except ValueError:
        known = "file:///…, s3://…, gs://…, az://… (fsspec)"
        raise UserError(f"--copy-to {url}: no storage is known by that name; write a URL such as {known}") from None
    home = str(home).rstrip("/")
    try:
        files.makedirs(f"{home}/trials", exist_ok=True)
        files.pipe_file(f"{home}/trials/.writable", b"")
        files.rm_file(f"{home}/trials/.writable")
    except Exception as error:  # of whatever package reaches the storage
        raise UserError(f"--copy-to {url}: cannot be written ({_told(error)})") from None
    ours = output / "trials"
    if isinstance(files, LocalFileSystem) and ours.exists() and ours.samefile(Path(home, "trials")):
        raise UserError(f"--copy-to {url}: is the results folder itself; name another place")
    return files, home


def _final(folder: TrialFolder) -> bool:
    result = folder.result()
    return result is not None and not result.unfinished


def _stamp(folder: TrialFolder) -> Stamp | None:
    """Tells a result.json from the next; None where there is none."""
    try:
        status = (folder.path / RESULT).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _told(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
