"""Trials of nodes that do not see the results folder: they run in a folder of their node, and what they leave travels.

A keeper, an actor on the driver's node, holds the trial's lease like any other worker and writes what comes, under the
same rules (harness.trial_folder). While the trial runs it fetches what is new: how far it is, log, metrics,
checkpoint. So a trial whose node dies goes on elsewhere, and `harness status` and `harness logs` show it as it runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from harness.cleaning import scratch_prefix
from harness.launch import Errand, launch
from harness.result import Result
from harness.store import Store
from harness.trial_folder import (
    CHECKPOINT,
    CannotWrite,
    Finished,
    LeaseLost,
    Taken,
    TrialFolder,
    TrialWriter,
)

LOOK_SECONDS = 5.0
"""Between two looks at a trial that runs elsewhere."""
MEANWHILE = ("log.txt", "metrics.jsonl", CHECKPOINT)
"""Files that travel while a trial runs."""
STAYS = ("running.json", "spec.json", "replaced.json")
"""What a folder says of itself, wherever it lies."""


@dataclass
class Parcel:
    """What a trial elsewhere has left since it was looked at last."""

    files: dict[str, bytes] = field(default_factory=dict)
    """By path in the trial's folder."""
    done: int = 0
    epochs: int = 0
    resumed: int | None = None
    names: tuple[str, ...] = ()
    """All files that are there, sent or not."""
    problem: str = ""
    """Why the node's own folder takes no more."""


def travels(name: str) -> bool:
    """Whether a file of a trial's folder goes with it: no hidden one, none outside it, none that stays."""
    path = PurePosixPath(name)
    plain = name.isprintable() and path.as_posix() == name and not path.is_absolute()
    return bool(plain and path.parts) and name not in STAYS and not any(part.startswith(".") for part in path.parts)


Stamps = dict[str, tuple[int, int, int]]


def pack(folder: TrialFolder, sent: Stamps, *, whole: bool) -> Parcel:
    """What changed since `sent`, which is brought up to date. `whole`: of all files, else of those that grow."""
    lease = folder.lease()
    names = sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file())
    names = [name for name in names if travels(name)]
    files = {}
    for name in names if whole else MEANWHILE:
        path = folder.path / name
        with suppress(OSError):  # replaced or dropped meanwhile
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if sent.get(name) != stamp:
                files[name] = path.read_bytes()
                sent[name] = stamp
    parcel = Parcel(files, names=tuple(names))
    if lease is not None:
        parcel.done, parcel.epochs, parcel.resumed = lease.done, lease.epochs, lease.resumed
    return parcel


class Guests:
    """Trials that run on this node in folders of its own."""

    def __init__(self) -> None:
        self.folders: dict[str, tuple[TrialFolder, Stamps]] = {}

    def run(
        self,
        errand: Errand,
        files: Mapping[str, bytes],
        attempts: list[dict[str, Any]],
        *,
        data: Path,
        gpus: str,
        git: str | None,
    ) -> Parcel:
        """Run one attempt of a trial on what earlier `attempts` left, and hand out all that it leaves."""
        with tempfile.TemporaryDirectory(prefix=scratch_prefix(), ignore_cleanup_errors=True) as scratch:
            folder = Store(Path(scratch)).trial(errand.identity)
            sent: Stamps = {}
            try:
                writer = folder.claim(errand.spec, earlier=attempts)
                for name, content in files.items():
                    writer.write_file(name, content)
                self.folders[errand.identity] = (folder, sent)
                launch(errand, writer, data=data, gpus=gpus, git=git)
            except CannotWrite as problem:
                return Parcel(problem=str(problem))
            except LeaseLost:
                return Parcel()
            finally:
                self.folders.pop(errand.identity, None)
            return pack(folder, sent, whole=True)

    def look(self, identity: str) -> Parcel | None:
        """What is new of a trial; None when it does not run here."""
        found = self.folders.get(identity)
        return pack(*found, whole=False) if found is not None else None

    def dismiss(self, identity: str) -> None:
        """Take a trial's lease away: it ends with its next write."""
        if identity in self.folders:
            (self.folders[identity][0].path / "running.json").unlink(missing_ok=True)


@contextmanager
def _holding(writer: TrialWriter, dismiss: Any) -> Iterator[None]:
    """Whatever ends the keeper's care for a trial ends the trial."""
    try:
        yield
    except (LeaseLost, CannotWrite):
        dismiss(writer.folder.identity)
        raise


class Keeper:
    """On the driver's node: has trials run by launchers of other nodes, and writes what they leave."""

    def run(self, errand: Errand, launcher: Any, *, output: Path, data: Path, gpus: str, git: str | None) -> str:
        """As harness.worker.Launcher.run, for a node that does not see `output`; `launcher` is that node's."""
        from ray.exceptions import RayActorError, RayError

        folder = Store(output).trial(errand.identity)
        try:
            while errand.settled(folder) is None:
                writer = folder.claim(errand.spec, replaces=errand.replaces)
                try:
                    with _holding(writer, launcher.dismiss.remote):
                        self._attempt(errand, writer, launcher, data=data, gpus=gpus, git=git)
                except RayError as error:
                    gone = isinstance(error, RayActorError)
                    told = "its node or the node's launcher vanished" if gone else f"its node failed: {error}"[:300]
                    writer.finish(errand.came_to("lost", told))
                    break
        except CannotWrite as problem:
            return str(problem)
        except (Taken, Finished, LeaseLost):
            pass  # another run has it; the driver sees from the folder what became of it
        return ""

    def _attempt(self, errand: Errand, writer: TrialWriter, launcher: Any, **how: Any) -> None:
        import ray

        folder = writer.folder
        lease = folder.lease()
        attempts = list(lease.earlier) if lease is not None else []
        kept = {name: (folder.path / name).read_bytes() for name in MEANWHILE if (folder.path / name).is_file()}
        call = launcher.visit.remote(errand, kept, attempts, **how)
        while not ray.wait([call], timeout=LOOK_SECONDS)[0]:
            writer.sign_of_life()
            parcel = ray.get(launcher.look.remote(errand.identity))
            if parcel is not None:
                unpack(parcel, writer)
        unpack(ray.get(call), writer)
        if folder.result() is None:
            told = "its node lost the folder that it ran in, and with it the result"
            writer.finish(errand.came_to("lost", told))


def unpack(parcel: Parcel, writer: TrialWriter) -> None:
    """Write what came; with a result in it the attempt is over. Raises LeaseLost, CannotWrite."""
    if parcel.problem:
        raise CannotWrite(f"on the trial's node: {parcel.problem}")
    lease = writer.folder.lease()
    if lease is not None and parcel.epochs and (lease.epochs, lease.resumed) != (parcel.epochs, parcel.resumed):
        writer.begin(epochs=parcel.epochs, resumed=parcel.resumed)
    content = parcel.files.pop("result.json", None)
    for name, data in parcel.files.items():
        if not travels(name):
            raise CannotWrite(f"{name!r} came from the trial's node: no name of a file that travels")
        writer.write_file(name, data)
    if parcel.epochs:
        writer.progress(parcel.done)
    if content is not None:
        gone = [name for name in MEANWHILE if name not in parcel.names]
        writer.finish(Result.model_validate_json(content), drop=gone)
