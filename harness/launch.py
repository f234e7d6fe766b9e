"""A fresh process for every trial, or several that train one model together, in some twenty milliseconds each.

A fork server that has imported torch and accelerate once forks one child per trial: clean random state, clean
Accelerate, no CUDA context from the trial before. The child gets its environment as an argument (a fork server's
children see the environment of the server's start), and it dies with its parents.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.cleaning import scratch_prefix
from harness.forking import without_main
from harness.result import Result, Status
from harness.trial_folder import CannotWrite, LeaseLost, Onlooker, TrialFolder, TrialWriter, failure, moment

if TYPE_CHECKING:
    from harness.trial import Trial

PRELOAD = ["harness.processor", "harness.train"]
ALLOCATION = {"THP_MEM_ALLOC_ENABLE": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""How trials get memory on a processor, unless the environment says otherwise: large tensors on huge pages (torch), and
memory that a step has freed stays with the process for the next step (glibc). Both for fewer page faults."""
PR_SET_PDEATHSIG = 1
MAX_LOST = 2
"""How often a trial whose process or worker vanished is tried again."""
LEAVING_SECONDS = 10.0
"""How long the other processes of a trial may take to end after the first one, or after one that failed."""
SIGN_OF_LIFE = 10.0
"""Seconds between two signs of life of a trial, for other hosts."""


@dataclass(frozen=True)
class Errand:
    """A trial to run, as a worker needs it: packed, so that the worker imports neither torch nor plug-ins."""

    identity: str
    spec: dict[str, Any]
    task: str
    """Of its dataset."""
    timeout: float
    threads: int
    processes: int
    """How many train it together."""
    packed: bytes
    """The pickled Trial; only the trial's own process unpacks it."""
    replaces: str | None = None
    """Stamp of a final result that is to be replaced (`--retry`, stale data)."""
    attempts: int = 0
    """Attempts before this run."""
    share: float = 1.0
    """The part of a GPU that it gets (harness.sharing)."""

    @classmethod
    def of(cls, trial: Trial, *, replaces: str | None = None, attempts: int = 0, share: float = 1.0) -> Self:
        """Pack a trial."""
        resources = trial.resources
        return cls(
            identity=trial.identity,
            spec=trial.spec(),
            task=trial.dataset.task,
            timeout=resources.timeout,
            threads=resources.cpus_per_process,
            processes=trial.processes,
            packed=pickle.dumps(trial),
            replaces=replaces,
            attempts=attempts,
            share=share,
        )

    def came_to(self, status: Status, error: str) -> Result:
        """The result when the trial's own processes leave none."""
        return failure(self.identity, self.spec, task=self.task, status=status, error=error)

    def settled(self, folder: TrialFolder) -> Result | None:
        """The result that this run has nothing to add to: not the one to be replaced, none that says to go on.

        One that was crowded out settles an errand with a part of a GPU; another one, with a whole GPU, follows.
        """
        result = folder.result()
        if result is None or result.status == "interrupted" or folder.stamp() == self.replaces:
            return None
        if result.crowded and self.share == 1:
            return None
        retried = len(result.attempts) - self.attempts > MAX_LOST
        return result if result.status != "lost" or retried else None


def _context() -> ForkServerContext:
    os.environ.update(ALLOCATION | os.environ)  # glibc looks when the server starts, torch when it is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def warm_up() -> None:
    """Start this process's fork server, which then imports what trials need on its own."""
    _context()
    with without_main():
        forkserver.ensure_running()


def _die_with_parents() -> None:
    """End this process when the fork server goes (Linux), and when the process that asked for it goes.

    The fork server alone would not do: it lives as long as one of its children holds its pipe.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:  # it went before we asked
            os._exit(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_outlive, args=(parent,), daemon=True).start()


def _outlive(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def enter_child(environment: dict[str, str], threads: int, log: Path) -> None:
    """First thing in a child: tie its life to the parent, take its environment, send its output to the log."""
    _die_with_parents()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from harness.processor import prepare

    prepare(threads)


@dataclass(frozen=True)
class Place:
    """One of the processes of a trial."""

    index: int
    count: int
    rendezvous: Path
    """A file by which they find each other."""

    def environment(self) -> dict[str, str]:
        """What Accelerate and DeepSpeed read; a process that is alone needs none."""
        if self.count == 1:
            return {}
        index, count = str(self.index), str(self.count)
        own = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        if sys.platform == "linux":
            own["GLOO_SOCKET_IFNAME"] = "lo"  # they are on one machine, and nobody else is to hear them
        return own


def _child(
    errand: Errand, place: Place, writer: TrialWriter, git: str | None, environment: dict[str, str], voice: Connection
) -> None:
    """In a process of a trial. `voice` tells why nothing can be written, or how one of several processes failed."""
    enter_child(environment | place.environment(), errand.threads, writer.path / "log.txt")
    from harness.processes import join, leave
    from harness.sharing import keep_to
    from harness.train import attempt, finish

    trial, first = pickle.loads(errand.packed), place.index == 0
    try:
        if first:
            writer.adopt()
        if place.count > 1:
            join(place.rendezvous, index=place.index, count=place.count)
        keep_to(errand.share)
        result = attempt(trial, writer if first else Onlooker(writer.path), git=git)
        if errand.share < 1:
            result.environment["gpu_share"] = errand.share
        if first and (place.count == 1 or result.status == "done"):
            finish(trial, writer, result)
        elif result.status != "done":
            voice.send(result)
            return  # leaving the group would wait for the others
    except LeaseLost as problem:
        print(problem)  # noqa: T201
    except CannotWrite as problem:
        voice.send(str(problem))
    else:
        leave()


def trial_environment(*, threads: int, gpus: str, data: Path, deepspeed: bool = False) -> dict[str, str]:
    """This process's environment, less what Accelerate would take for its own, with the trial's devices."""
    foreign = ("ACCELERATE_", "FSDP_", "MASTER_", "TORCHELASTIC_")
    single = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and k not in single}
    kept |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": gpus, "HARNESS_DATA": str(data)}
    if not gpus and not deepspeed:  # Accelerate leaves DeepSpeed aside where it is told to use the processor
        kept["ACCELERATE_USE_CPU"] = "true"
    return kept


def launch(errand: Errand, writer: TrialWriter, *, data: Path, gpus: str = "", git: str | None = None) -> Result:
    """Run a claimed trial in fresh processes and return its result; never raises for what happens inside.

    `data` is the absolute data root (HARNESS_DATA of the children). A process that dies without a result makes the
    trial `lost`; processes that outlive `resources.timeout` are killed: `timeout`. Raises LeaseLost when another
    process has taken the trial over, CannotWrite when the results folder takes no more.
    """
    _head_of_log(writer)
    deepspeed = errand.spec.get("resources", {}).get("strategy", "ddp") != "ddp"
    environment = trial_environment(threads=errand.threads, gpus=gpus, data=data, deepspeed=deepspeed)
    with tempfile.TemporaryDirectory(prefix=scratch_prefix()) as scratch:
        crew = _Crew(errand, writer, git, environment, rendezvous=Path(scratch) / "rendezvous")
        deadline = time.monotonic() + errand.timeout
        while crew.at_work() and time.monotonic() < deadline:
            crew.wait(min(SIGN_OF_LIFE, max(0.0, deadline - time.monotonic())))
            writer.sign_of_life()
        late = crew.at_work()
        crew.end(patience=0.0 if late else LEAVING_SECONDS)
    finished = writer.folder.result()
    if late and finished is None:
        error = f"took longer than resources.timeout = {errand.timeout:g} s"
        return _record(errand, writer, status="timeout", error=error)
    for said in crew.said:
        if isinstance(said, str):
            raise CannotWrite(said)
    if finished is not None:
        return finished
    cause = next((result for result in crew.said if result.status != "failed"), None)  # nobody else's fault
    if cause is None and crew.broken is None and crew.said:  # what the others say of it is that one of them is gone
        cause = crew.said[0]
    if cause is not None:
        writer.finish(cause)
        return cause
    code = crew.broken if crew.broken is not None else 0
    error = f"the process ended with exit code {code} and left no result; see log.txt"
    if code == -signal.SIGKILL:
        error += " (killed: by the system for want of memory, or by hand)"
    return _record(errand, writer, status="lost", error=error)


class _Crew:
    """The processes of a trial, as their launcher sees them."""

    def __init__(
        self, errand: Errand, writer: TrialWriter, git: str | None, environment: dict[str, str], *, rendezvous: Path
    ) -> None:
        self.said: list[Any] = []
        """Texts of CannotWrite and results of failed processes; what is heard in one look, by process."""
        self.broken: int | None = None
        """The exit code of the first process found dead by something else than its own end."""
        self.voices: list[Connection] = []
        self.processes: list[BaseProcess] = []
        context = _context()
        for index in range(errand.processes):
            place = Place(index, errand.processes, rendezvous)
            voice, sender = context.Pipe(duplex=False)
            arguments = (errand, place, writer, git, environment, sender)
            process = context.Process(target=_child, args=arguments, daemon=True)
            with without_main():
                process.start()
            sender.close()
            self.voices.append(voice)
            self.processes.append(process)

    def at_work(self) -> bool:
        """Whether the first process goes on, and none has failed."""
        self._look()
        return self.processes[0].is_alive() and not self.said and self.broken is None

    def wait(self, seconds: float) -> None:
        """Until one of them ends or says something."""
        running = [process.sentinel for process in self.processes if process.is_alive()]
        wait([*running, *self.voices], timeout=seconds)

    def end(self, *, patience: float) -> None:
        """Give them time to end by themselves, then kill who has not."""
        deadline = time.monotonic() + patience
        while any(process.is_alive() for process in self.processes) and time.monotonic() < deadline:
            self.wait(max(0.0, deadline - time.monotonic()))
            self._look()
        self._look()
        for process in self.processes:
            process.kill()
            process.join()

    def _look(self) -> None:
        """Hear who has something to say, and see who is dead."""
        for voice in list(self.voices):
            with contextlib.suppress(EOFError, OSError):
                while voice.poll():  # a message, or the end of the pipe
                    self.said.append(voice.recv())
                continue
            self.voices.remove(voice)
        codes = [process.exitcode for process in self.processes]
        self.broken = next((code for code in (self.broken, *codes) if code), None)


def _record(errand: Errand, writer: TrialWriter, *, status: Status, error: str) -> Result:
    result = errand.came_to(status, error)
    writer.finish(result)
    return result


def _head_of_log(writer: TrialWriter) -> None:
    """A line that tells the attempts in log.txt apart."""
    lease = writer.folder.lease()
    attempt = lease.attempt if lease is not None else 1
    try:
        with (writer.path / "log.txt").open("a") as file:
            file.write(f"--- attempt {attempt}, {moment(time.time())}, on {socket.gethostname()}\n")
    except OSError as error:
        raise CannotWrite(f"{writer.path}: results cannot be written ({error.strerror or error})") from error
