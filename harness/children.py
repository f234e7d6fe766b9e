"""Work on many things in processes of their own: a thing that kills its process takes no other with it.

The processes are forked from a server that has imported what they need once (harness.launch does likewise for trials).
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from harness.forking import without_main
from harness.launch import enter_child, trial_environment
from harness.models.weights import data_root

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def in_children(
    work: Callable[[Item], Outcome], items: Sequence[Item], *, preload: str, workers: int
) -> Iterator[tuple[int, Outcome | None]]:
    """`work(item)` for every item, as they get ready: an item's index and its outcome, None where its process died.

    `work` is a function of a module, and raises nothing; `preload` is the module that the processes import, once for
    all of them. They have one thread each, and no GPU.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    children: dict[Connection, _Child] = {}
    left = iter(enumerate(items))
    try:
        for index, item in islice(left, workers):
            _Child(context, work).take(index, item, among=children)
        while children:
            for connection in wait(list(children)):
                assert isinstance(connection, Connection)
                child = children.pop(connection)
                index, outcome, alive = child.outcome()
                if (following := next(left, None)) is not None:
                    (child if alive else _Child(context, work)).take(*following, among=children)
                elif alive:
                    child.end()
                yield index, outcome
    finally:
        for child in children.values():
            child.end()


class _Child:
    """A process that works on one item at a time."""

    def __init__(self, context: ForkServerContext, work: Callable[[Any], Any]) -> None:
        self.connection, other = context.Pipe()
        environment = trial_environment(threads=1, gpus="", data=data_root())
        self.process: BaseProcess = context.Process(target=_serve, args=(other, work, environment), daemon=True)
        self.index = -1
        with without_main():
            self.process.start()
        other.close()

    def take(self, index: int, item: Any, *, among: dict[Connection, _Child]) -> None:
        """Begin with an item."""
        self.index = index
        with contextlib.suppress(BrokenPipeError):  # dead already: found by `outcome`
            self.connection.send(item)
        among[self.connection] = self

    def outcome(self) -> tuple[int, Any, bool]:
        """The item's index, what became of it, and whether the process can take another one."""
        try:
            return self.index, self.connection.recv(), True
        except (EOFError, OSError):
            self.end()
            return self.index, None, False

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: Connection, work: Callable[[Any], Any], environment: dict[str, str]) -> None:
    enter_child(environment, 1, Path("/dev/null"))
    with contextlib.suppress(EOFError):
        while True:
            connection.send(work(connection.recv()))
