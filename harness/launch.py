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
import signal
import socket
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from harness.store import Result, Status, TrialFolder
from harness.trial import Trial

PRELOAD = [
    "harness.train",
    "harness.check",
    "torch._dynamo",
]  # the first optimiser of a process imports dynamo: 2 s
PR_SET_PDEATHSIG = 1


def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main script: a child would otherwise import it again (half a second inside a Ray worker)."""
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {
        name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__
    }
    vars(main)["__spec__"] = None
    try:
        yield
    finally:
        main.__dict__.pop("__spec__")
        main.__dict__.update(hidden)


def _die_with_parent() -> None:
    """Ask Linux to kill this process when the fork server goes; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def enter_child(environment: dict[str, str], threads: int, log: Path) -> None:
    """First thing in a child: tie its life to the parent, take its environment, send its output to the log."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's business
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import torch

    torch.set_num_threads(threads)


def _child(
    trial: Trial,
    folder: Path,
    attempt: int,
    earlier: list[dict[str, Any]],
    git: str | None,
    environment: dict[str, str],
) -> None:
    enter_child(environment, trial.resources.cpus_per_process, folder / "log.txt")
    from harness.train import run_trial

    place = TrialFolder(folder)
    mark = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time(), "attempt": attempt}

    def progress(done: int, epochs: int) -> None:
        place.mark_running(mark | {"done": done, "epochs": epochs})

    progress(0, trial.train.epochs)
    run_trial(trial, place, attempt=attempt, earlier=earlier, git=git, progress=progress)


def trial_environment(*, threads: int, gpus: str, data: Path) -> dict[str, str]:
    """This process's environment, less what Accelerate would take for its own, with the trial's devices."""
    foreign = ("ACCELERATE_", "FSDP_", "MASTER_", "TORCHELASTIC_")
    single = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and k not in single}
    kept |= {"OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": gpus, "HARNESS_DATA": str(data)}
    if not gpus:
        kept["ACCELERATE_USE_CPU"] = "true"
    return kept


def launch(
    trial: Trial, folder: TrialFolder, *, data: Path, attempt: int = 1, gpus: str = "", git: str | None = None
) -> Result:
    """Run a trial in a fresh process and return its result; never raises for what happens inside.

    `data` is the absolute data root (HARNESS_DATA of the child).

    A child that dies without a result is `lost`, one that outlives `resources.timeout` is killed: `timeout`.
    """
    previous = folder.result()
    earlier = previous.attempts if previous is not None else []
    folder.begin(trial.spec())
    environment = trial_environment(threads=trial.resources.cpus_per_process, gpus=gpus, data=data)
    arguments = (trial, folder.path, attempt, earlier, git, environment)
    process = _context().Process(target=_child, args=arguments, daemon=True)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    with _without_main():
        process.start()
    process.join(trial.resources.timeout)
    status: Status = "lost"
    if process.is_alive():
        process.kill()
        process.join()
        status, error = "timeout", f"took longer than resources.timeout = {trial.resources.timeout:g} s"
    else:
        finished = folder.result()
        if finished is not None:
            return finished
        error = f"the process ended with exit code {process.exitcode} and left no result; see log.txt"
        if process.exitcode == -signal.SIGKILL:
            error += " (killed: by the system for want of memory, or by hand)"
    return record_failure(trial, folder, status=status, error=error, started=started, attempt=attempt, earlier=earlier)


def record_failure(
    trial: Trial,
    folder: TrialFolder,
    *,
    status: Status,
    error: str,
    started: str,
    attempt: int,
    earlier: list[dict[str, Any]],
) -> Result:
    """Write the result of a trial that could not write its own."""
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"attempt": attempt, "started": started, "ended": ended, "status": status, "error": error}
    result = Result(id=trial.identity, spec=trial.spec(), status=status, error=error, attempts=[*earlier, record])
    result.reasons = {"metrics": f"the trial ended as {status}"}
    folder.write_result(result)
    return result
