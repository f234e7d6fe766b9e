"""A fresh process for every trial, in some twenty milliseconds.

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
import threading
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from harness.forking import without_main
from harness.result import Result, Status
from harness.trial_folder import CannotWrite, LeaseLost, TrialFolder, TrialWriter, failure, moment

if TYPE_CHECKING:
    from harness.trial import Trial

PRELOAD = ["harness.train"]
PR_SET_PDEATHSIG = 1
MAX_LOST = 2
"""How often a trial whose process or worker vanished is tried again."""
SIGN_OF_LIFE = 10.0
"""Seconds between two signs of life of a trial, for other hosts."""


@dataclass(frozen=True)
class Errand:
    """A trial to run, as a worker needs it: packed, so that the worker imports neither torch nor plug-ins."""

    identity: str
    spec: dict[str, Any]
    timeout: float
    threads: int
    packed: bytes
    """The pickled Trial; only the trial's own process unpacks it."""
    replaces: str | None = None
    """Stamp of a final result that is to be replaced (`--retry`, stale data)."""
    attempts: int = 0
    """Attempts before this run."""

    @classmethod
    def of(cls, trial: Trial, *, replaces: str | None = None, attempts: int = 0) -> Self:
        """Pack a trial."""
        resources = trial.resources
        return cls(
            identity=trial.identity,
            spec=trial.spec(),
            timeout=resources.timeout,
            threads=resources.cpus_per_process,
            packed=pickle.dumps(trial),
            replaces=replaces,
            attempts=attempts,
        )

    def settled(self, folder: TrialFolder) -> Result | None:
        """The result that this run has nothing to add to: not the one to be replaced, none that says to go on."""
        result = folder.result()
        if result is None or result.status == "interrupted" or folder.stamp() == self.replaces:
            return None
        retried = len(result.attempts) - self.attempts > MAX_LOST
        return result if result.status != "lost" or retried else None


def _context() -> ForkServerContext:
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
    import torch

    torch.set_num_threads(threads)


def _child(
    errand: Errand, writer: TrialWriter, git: str | None, environment: dict[str, str], complaints: Connection
) -> None:
    enter_child(environment, errand.threads, writer.path / "log.txt")
    from harness.train import run_trial

    try:
        writer.adopt()
        run_trial(pickle.loads(errand.packed), writer, git=git)
    except LeaseLost as problem:
        print(problem)  # noqa: T201
    except CannotWrite as problem:
        complaints.send(str(problem))


def trial_environment(*, threads: int, gpus: str, data: Path) -> dict[str, str]:
    """This process's environment, less what Accelerate would take for its own, with the trial's devices."""
    foreign = ("ACCELERATE_", "FSDP_", "MASTER_", "TORCHELASTIC_")
    single = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and k not in single}
    kept |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": gpus, "HARNESS_DATA": str(data)}
    if not gpus:
        kept["ACCELERATE_USE_CPU"] = "true"
    return kept


def launch(errand: Errand, writer: TrialWriter, *, data: Path, gpus: str = "", git: str | None = None) -> Result:
    """Run a claimed trial in a fresh process and return its result; never raises for what happens inside.

    `data` is the absolute data root (HARNESS_DATA of the child). A child that dies without a result is `lost`, one
    that outlives `resources.timeout` is killed: `timeout`. Raises LeaseLost when another process has taken the trial
    over, CannotWrite when the results folder takes no more.
    """
    _head_of_log(writer)
    environment = trial_environment(threads=errand.threads, gpus=gpus, data=data)
    context = _context()
    complaints, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(errand, writer, git, environment, sender), daemon=True)
    with without_main():
        process.start()
    sender.close()
    deadline = time.monotonic() + errand.timeout
    while process.is_alive() and time.monotonic() < deadline:
        process.join(min(SIGN_OF_LIFE, max(0.0, deadline - time.monotonic())))
        writer.sign_of_life()
    if process.is_alive():
        process.kill()
        process.join()
        error = f"took longer than resources.timeout = {errand.timeout:g} s"
        return _record(errand, writer, status="timeout", error=error)
    if complaints.poll():  # a message, or the end of the pipe
        with contextlib.suppress(EOFError):
            raise CannotWrite(complaints.recv())
    finished = writer.folder.result()
    if finished is not None:
        return finished
    error = f"the process ended with exit code {process.exitcode} and left no result; see log.txt"
    if process.exitcode == -signal.SIGKILL:
        error += " (killed: by the system for want of memory, or by hand)"
    return _record(errand, writer, status="lost", error=error)


def _record(errand: Errand, writer: TrialWriter, *, status: Status, error: str) -> Result:
    result = failure(errand.identity, errand.spec, status=status, error=error)
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
