"""One trial's folder: who may write in it, and what lies in it.

    OUTPUT/trials/ID/   running.json, spec.json, metrics.jsonl, log.txt, checkpoint.safetensors, predictions.npz,
                        adapter/, result.json, replaced.json (a final result that was run again on request)

Whoever works on a trial holds its lease: `running.json`, which names host, process, start and attempt. `claim` takes
the lease when nobody alive holds it and hands out the only thing that writes: a `TrialWriter`. Every write happens
under the folder's lock and only while the lease on disk is the writer's own; a process that was given up for dead and
wakes up again writes nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from harness.atomic import read_json, write_atomically
from harness.holder import Holder, myself
from harness.result import Result, Status

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SILENCE = 60.0
"""Seconds without a sign of life after which a process on another host is given up. It gives one every few seconds."""
CHECKPOINT = "checkpoint.safetensors"
ADAPTER = Path("adapter") / "adapter_model.safetensors"
ADAPTER_HEAD = ADAPTER.with_name("head.safetensors")
ADAPTER_CARD = ADAPTER.with_name("adapter_config.json")


class Taken(Exception):
    """Somebody else works on the trial."""


class Finished(Exception):
    """The trial has a final result already."""


class LeaseLost(Exception):
    """The lease is no longer this writer's: it writes nothing any more."""


class CannotWrite(Exception):
    """The results folder takes no more: the disk is full, read-only or gone. No fault of the trial."""


class Lease(Holder):
    """Who works on a trial: the content of running.json."""

    token: str
    attempt: int
    started: Annotated[float, Field(ge=0, le=1e11)]
    """When the attempt was started, seconds since the epoch."""
    earlier: tuple[dict[str, Any], ...] = ()
    """The attempts before this one, as result.json lists them."""
    resumed: int | None = None
    """Epochs done in the checkpoint that the attempt went on from."""
    done: int = 0
    """Epochs done."""
    epochs: int = 0
    """Epochs to do."""

    def record(self, status: Status, error: str | None, *, ended: float | None = None) -> dict[str, Any]:
        """This attempt as result.json lists it."""
        return {
            "attempt": self.attempt,
            "started": moment(self.started),
            "ended": moment(time.time() if ended is None else ended),
            "status": status,
            "error": error,
            "resumed": self.resumed,
        }


def moment(seconds: float) -> str:
    """Seconds since the epoch as ISO text in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def read_result(folder: str, identity: str) -> Result | None:
    """The result in a trial's folder, or None when there is none, or it is damaged or of another trial.

    Without pathlib, which takes as long as all the rest where a suite has thousands.
    """
    try:
        with open(f"{folder}/result.json", "rb", buffering=0) as file:  # noqa: PTH123
            content = file.read()
    except OSError:
        return None
    return _result_of(identity, content)


def _result_of(identity: str, content: bytes) -> Result | None:
    try:
        result = Result.model_validate_json(content)
    except ValidationError:
        return None
    return result if result.id == identity else None


@dataclass(frozen=True)
class TrialFolder:
    """Where one trial keeps its files; for reading. What is missing or damaged reads as absent."""

    path: Path

    @property
    def identity(self) -> str:
        """The trial's identity: the folder's name."""
        return self.path.name

    def result(self) -> Result | None:
        """The result, or None when there is none, or it is damaged or of another trial."""
        return read_result(str(self.path), self.identity)

    def stamp(self) -> str | None:
        """A digest of result.json as it is now; None when there is none."""
        try:
            return sha256((self.path / "result.json").read_bytes()).hexdigest()
        except OSError:
            return None

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl."""
        rows = []
        try:
            lines = (self.path / "metrics.jsonl").read_text(errors="replace").splitlines()
        except OSError:
            return []
        for line in lines:
            with contextlib.suppress(ValueError, RecursionError):
                rows.append(json.loads(line))
        return [row for row in rows if isinstance(row, dict)]

    def lease(self) -> Lease | None:
        """The lease on disk, held or left behind."""
        raw = read_json(self.path / "running.json")
        try:
            return Lease.model_validate(raw) if isinstance(raw, dict) else None
        except ValidationError:
            return None

    def running(self) -> Lease | None:
        """The lease, when a live process holds it."""
        lease = self.lease()
        return lease if lease is not None and self._alive(lease, now=time.time()) else None

    def _alive(self, lease: Lease, *, now: float) -> bool:
        """Whether the holder lives: here by its process, elsewhere by its last sign of life before `now`."""
        if lease.here:
            return lease.alive()
        try:
            return now - self._last_sign() < SILENCE
        except OSError:
            return False

    def claim(
        self, spec: dict[str, Any], *, replaces: str | None = None, earlier: Sequence[dict[str, Any]] = ()
    ) -> TrialWriter:
        """Take the lease and begin an attempt; what a vanished one left of its attempts is kept.

        `earlier` are attempts that another folder knows of. A final result stands in the way unless `replaces` is its
        stamp. Raises Taken, Finished or CannotWrite.
        """
        with self._locked():
            if self._held():
                raise Taken
            result = self.result()
            if not self._make_way(result, replaces):
                raise Finished
            earlier = [*earlier, *self._attempts_so_far(result)]
            token, attempt = secrets.token_hex(8), len(earlier) + 1
            lease = Lease(token=token, **myself(), attempt=attempt, started=time.time(), earlier=tuple(earlier))
            write_atomically(self.path / "running.json", lease.model_dump_json())
            for path in (self.path / "result.json", self.path / "predictions.npz", *self.temporary()):
                path.unlink(missing_ok=True)
            write_atomically(self.path / "spec.json", json.dumps(spec, indent=1))
        return TrialWriter(self, token)

    def close(
        self, spec: dict[str, Any], *, task: str, status: Status, error: str, replaces: str | None = None
    ) -> Result | None:
        """Write the result of a trial whose process is gone and left none. None when it is not ours to close.

        A final result stands in the way unless `replaces` is its stamp. Raises CannotWrite.
        """
        with self._locked():
            result = self.result()
            if self._held() or not self._make_way(result, replaces):
                return None
            attempts = self._attempts_so_far(result, status=status, error=error)
            result = failure(self.identity, spec, task=task, status=status, error=error, attempts=attempts)
            write_atomically(self.path / "result.json", result.model_dump_json(indent=1))
            (self.path / "running.json").unlink(missing_ok=True)
            return result

    def take_in(self, files: Mapping[str, bytes]) -> bool:
        """Write files of this trial that another folder of it has, finished; result.json last.

        False, and nothing is written, where they hold no final result of this trial, there is one here, or a live
        process works on it. Raises CannotWrite.
        """
        new = _result_of(self.identity, files.get("result.json", b""))
        if new is None or new.unfinished:
            return False
        with self._locked():
            if self._held() or not self._make_way(self.result(), None):
                return False
            for name in sorted(files, key=lambda name: name == "result.json"):
                write_atomically(self.path / name, files[name])
            (self.path / "running.json").unlink(missing_ok=True)
        return True

    def _held(self) -> bool:
        """Under the lock: whether a live process holds the lease, by the file system's clock, which dated it too."""
        os.utime(self.path / ".lock")
        lease, now = self.lease(), (self.path / ".lock").stat().st_mtime
        return lease is not None and self._alive(lease, now=now)

    @contextlib.contextmanager
    def unclaimed(self) -> Iterator[bool]:
        """Within, nobody can claim the trial; yields whether nobody had. Raises CannotWrite."""
        with self._locked():
            yield not self._held()

    def temporary(self) -> list[Path]:
        """Files that a writer which died left half-written."""
        return [path for path in self.path.rglob(".*.*") if path.is_file()]

    def attempts(self) -> int:
        """How many attempts were begun, by what lies here."""
        lease, result = self.lease(), self.result()
        return lease.attempt if lease is not None else len(result.attempts) if result is not None else 0

    def _make_way(self, result: Result | None, replaces: str | None) -> bool:
        """Set a final result aside if it is the one to be replaced. Returns whether none stands in the way."""
        if result is None or result.unfinished:
            return True
        if self.stamp() != replaces:
            return False
        (self.path / "result.json").rename(self.path / "replaced.json")
        return True

    def _attempts_so_far(
        self, result: Result | None, *, status: Status = "lost", error: str | None = None
    ) -> list[dict[str, Any]]:
        """All attempts; the one whose process has gone without a result ended with `status`."""
        lease = self.lease()
        known = result.attempts if result is not None else []
        if lease is None or lease.attempt <= len(known):
            return known
        gone = f"process {lease.pid} on {lease.host} vanished after epoch {lease.done} of {lease.epochs}"
        return [*lease.earlier, lease.record(status, error or gone, ended=self._last_sign())]

    def _last_sign(self) -> float:
        return (self.path / "running.json").stat().st_mtime

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder's lock; the kernel frees it when its holder dies. Raises CannotWrite."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / ".lock").open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise CannotWrite(f"{self.path}: results cannot be written ({error.strerror or error})") from error


@dataclass(frozen=True)
class TrialWriter:
    """The right to write in a trial's folder. Every method raises LeaseLost or CannotWrite."""

    folder: TrialFolder
    token: str

    @property
    def path(self) -> Path:
        """The trial's folder."""
        return self.folder.path

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Lease]:
        with self.folder._locked():
            lease = self.folder.lease()
            if lease is None or lease.token != self.token:
                raise LeaseLost(f"{self.path}: another process has taken this trial over")
            yield lease

    def _update(self, lease: Lease) -> None:
        write_atomically(self.path / "running.json", lease.model_dump_json())

    def adopt(self) -> None:
        """The lease names this process from now on: call it in the process that does the work."""
        with self._writing() as lease:
            self._update(lease.model_copy(update=myself()))

    def sign_of_life(self) -> None:
        """Tell other hosts that the process lives. Raises nothing: the next write will tell."""
        lease = self.folder.lease()
        with contextlib.suppress(OSError):
            if lease is not None and lease.token == self.token:
                os.utime(self.path / "running.json")

    def begin(self, *, epochs: int, resumed: int | None) -> None:
        """Say what is to be done, and drop metrics of epochs that will be done again."""
        kept = [row for row in self.folder.metrics() if row.get("epoch", 0) < (resumed or 0)]
        with self._writing() as lease:
            write_atomically(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
            self._update(lease.model_copy(update={"epochs": epochs, "done": resumed or 0, "resumed": resumed}))

    def progress(self, done: int) -> None:
        """So many epochs are done."""
        with self._writing() as lease:
            self._update(lease.model_copy(update={"done": done}))

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl: {"epoch": 0, "train/loss": ..., ...}."""
        with self._writing(), (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def write_predictions(self, columns: Mapping[str, npt.NDArray[np.number]]) -> None:
        """Per-item test predictions and labels, ordered by item index, and those by vote where there was one."""
        import numpy as np  # whoever only reads results does not wait for it

        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **columns)
        self.write_file("predictions.npz", content.getvalue())

    def write_file(self, name: str | Path, content: bytes | str) -> None:
        """A file of the trial, whole or not at all."""
        with self._writing():
            write_atomically(self.path / name, content)

    def finish(self, result: Result, *, drop: Sequence[str | Path] = ()) -> None:
        """Write result.json, last of all, with this attempt added to its list, and give the lease back.

        Then files that are of no use any more go.
        """
        with self._writing() as lease:
            result.attempts = [*lease.earlier, lease.record(result.status, result.error)]
            write_atomically(self.path / "result.json", result.model_dump_json(indent=1))
            (self.path / "running.json").unlink(missing_ok=True)
            for name in drop:
                (self.path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Onlooker:
    """What a trial's other processes get in place of a TrialWriter: they read the folder, and write nothing."""

    path: Path

    def begin(self, *, epochs: int, resumed: int | None) -> None:
        """Nothing."""

    def progress(self, done: int) -> None:
        """Nothing."""

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def write_predictions(self, columns: Mapping[str, npt.NDArray[np.number]]) -> None:
        """Nothing."""

    def write_file(self, name: str | Path, content: bytes | str) -> None:
        """Nothing."""


def failure(
    identity: str,
    spec: dict[str, Any],
    *,
    task: str,
    status: Status,
    error: str,
    attempts: list[dict[str, Any]] | None = None,
) -> Result:
    """The result of a trial that came to nothing; `task` is its dataset's."""
    reasons = {"metrics": f"the trial ended as {status}"}
    return Result(
        id=identity, spec=spec, task=task, status=status, error=error, attempts=attempts or [], reasons=reasons
    )
