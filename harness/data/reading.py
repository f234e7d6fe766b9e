"""Many files of a stranger, read in worker processes.

A file that makes its parser crash, or ask for all the memory there is, ends its worker and not who asked for it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.data.files import FileRefused, read_clouds
from harness.forking import without_main

WORKERS = 4
MEMORY = 8 * 2**30
"""Bytes of address space of one worker; a file that asks for more is refused."""

Outcome = NDArray[np.float32] | str
"""The clouds (n, N, 3) of a file, or why there are none."""


def read_files(paths: Sequence[Path], *, points: int, normalised: bool, least: int | None = None) -> Iterator[Outcome]:
    """What `read_clouds` makes of every file, in their order.

    When a worker dies, all files in work are lost with it. Those left are then read one at a time, to find out which
    file it was; that one is refused.
    """
    left = list(paths)
    if not left:
        return
    read = partial(_read_one, points=points, normalised=normalised, least=least)
    with worker_pool(min(WORKERS, os.cpu_count() or 1, len(left))) as pool, contextlib.suppress(BrokenProcessPool):
        with without_main():
            futures = [pool.submit(read, path) for path in paths]
        try:
            for future in futures:
                outcome = future.result()
                left.pop(0)
                yield outcome
        finally:
            for future in futures:  # an error or Ctrl-C came through: don't begin what nobody waits for
                future.cancel()
    while left:
        with worker_pool(1) as pool:
            while left:
                try:
                    with without_main():
                        future = pool.submit(read, left[0])
                    outcome = future.result()
                except BrokenProcessPool:
                    outcome = "reading it ended its process"
                left.pop(0)
                yield outcome
                if isinstance(outcome, str):
                    break  # a new pool, should this one be broken


@contextlib.contextmanager
def worker_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that read files, and end once nothing is left to do."""
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("forkserver"), initializer=_enter_worker)
    try:
        yield pool
    finally:
        pool.shutdown(wait=False)


def _enter_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C at a terminal ends workers at once, without a traceback
    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _end_with_parent() -> None:
    """A parent that was killed says nothing, and its workers would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _read_one(path: Path, *, points: int, normalised: bool, least: int | None) -> Outcome:
    try:
        return read_clouds(path, points=points, normalised=normalised, least=least)
    except FileRefused as refusal:
        return str(refusal)
