"""Where a suite stands, read from the disk alone: what is done, what runs, what failed and why, how long it may take.

Any process may ask, also while a run goes on elsewhere; nothing is locked and nothing is written.
"""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.holder import Holder
from harness.result import UNFINISHED, Result
from harness.store import Entry, Store, SuiteResults
from harness.trial_folder import Lease

SHOWN = 3
"""Trials named per cause of failure."""


@dataclass
class Cell:
    """One method on one backbone and dataset: counts of trials, and the best headline number so far."""

    trials: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0
    best: float | None = None
    """0 to 1."""


@dataclass(frozen=True)
class Cause:
    """Trials that failed alike."""

    status: str
    error: str
    """First line of the message."""
    entries: tuple[Entry, ...]

    @property
    def names(self) -> str:
        """The first few trials by name."""
        more = len(self.entries) - SHOWN
        named = ", ".join(entry.name for entry in self.entries[:SHOWN])
        return f"{named} and {more} more" if more > 0 else named


@dataclass
class Status:
    """Where a suite stands."""

    suite: str
    trials: int
    statuses: dict[str, int]
    """How many trials are done, running, waiting, interrupted, or ended as a result's status says."""
    cells: dict[tuple[str, str, str], Cell]
    """By method, backbone and dataset, in the suite's order."""
    running: list[tuple[Entry, Lease]]
    causes: list[Cause]
    seconds_left: float | None
    """None when nothing runs, or nothing has finished that could tell."""
    driver: Holder | None = None
    """The process of a run that goes on here."""
    command: list[str] = field(default_factory=list)
    """The command that ran the suite, less its selections."""

    @property
    def active(self) -> bool:
        """Whether a run goes on, as far as can be seen from here."""
        return self.driver is not None or bool(self.running)

    @property
    def complete(self) -> bool:
        """Whether every trial has a final result."""
        return not self.running and not self.statuses.keys() & {"waiting", *UNFINISHED}

    @property
    def retry(self) -> str | None:
        """The command that tries again what failed; None when nothing did."""
        statuses = sorted({cause.status for cause in self.causes} - set(UNFINISHED))
        if not self.causes:
            return None
        return shlex.join([*self.command, *(["--retry", ",".join(statuses)] if statuses else [])])

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "suite": self.suite,
            "trials": self.trials,
            "statuses": self.statuses,
            "seconds_left": self.seconds_left,
            "active": self.active,
            "cells": [
                {"method": method, "backbone": backbone, "dataset": dataset, **vars(cell)}
                for (method, backbone, dataset), cell in self.cells.items()
            ],
            "running": [
                {"id": entry.id, "name": entry.name, "host": lease.host, "pid": lease.pid, "attempt": lease.attempt}
                | {"done": lease.done, "epochs": lease.epochs}
                for entry, lease in self.running
            ],
            "failures": [
                {"status": cause.status, "error": cause.error, "trials": [entry.id for entry in cause.entries]}
                for cause in self.causes
            ],
            "retry": self.retry,
        }


def suite_status(store: Store, suite: str) -> Status:
    """Where a suite stands now. Raises UserError when it never ran here."""
    results = store.load(suite)
    waiting = (entry.id for entry in results.entries if entry.result is None)  # who claims a trial removes its result
    leases = {trial: lease for trial in waiting if (lease := store.trial(trial).running()) is not None}
    status = Status(
        suite=suite,
        trials=len(results.entries),
        statuses={},
        cells={},
        running=[(entry, leases[entry.id]) for entry in results.entries if entry.id in leases],
        causes=causes_of(entry for entry in results.entries if entry.id not in leases),
        seconds_left=_seconds_left(results, leases),
        driver=results.driver if results.driver is not None and results.driver.alive() else None,
        command=["harness", "run", *results.command],
    )
    for entry in results.entries:
        state = _state(entry.result, running=entry.id in leases)
        status.statuses[state] = status.statuses.get(state, 0) + 1
        cell = status.cells.setdefault((entry.method, entry.backbone, entry.dataset), Cell())
        cell.trials += 1
        cell.done += state == "done"
        cell.running += state == "running"
        cell.failed += state not in ("done", "running", "waiting", "interrupted")
        if state == "done" and entry.result is not None and entry.result.score is not None:
            cell.best = max(cell.best or 0.0, entry.result.score)
    return status


def _state(result: Result | None, *, running: bool) -> str:
    if running:
        return "running"
    return "waiting" if result is None else result.status


def causes_of(entries: Iterable[Entry]) -> list[Cause]:
    """Failed trials, those together that failed alike; the most frequent cause first.

    Messages are alike when they differ in numbers only.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    first: dict[tuple[str, str], str] = {}
    for entry in entries:
        if entry.result is None or entry.result.status in ("done", "interrupted"):
            continue
        line = (entry.result.error or "no message").strip().splitlines()[0]
        key = (entry.result.status, re.sub(r"\d[\d.,e+-]*", "#", line))
        groups.setdefault(key, []).append(entry)
        first.setdefault(key, line)
    found = [Cause(key[0], first[key], tuple(members)) for key, members in groups.items()]
    return sorted(found, key=lambda cause: -len(cause.entries))


def _seconds_left(results: SuiteResults, leases: dict[str, Lease]) -> float | None:
    """What is still to do of the going run, by the times of what is done, shared by the slots that are busy now."""
    if not leases:
        return None
    durations: dict[tuple[str, ...], list[float]] = {}
    for entry in results.entries:
        result = entry.result
        if result is not None and result.status == "done" and result.time.total is not None:
            for key in _kinds(entry):
                durations.setdefault(key, []).append(result.time.total)
    left = 0.0
    for entry in results.entries:
        if results.chosen and entry.id not in results.chosen:
            continue
        lease = leases.get(entry.id)
        if lease is None and entry.result is not None and not entry.result.unfinished:
            continue
        known = next((durations[key] for key in _kinds(entry) if key in durations), None)
        if known is None:
            return None
        part = 1 - lease.done / lease.epochs if lease is not None and lease.epochs else 1.0
        left += part * statistics.mean(known)
    return left / len(leases)


def _kinds(entry: Entry) -> Sequence[tuple[str, ...]]:
    """What a trial's duration may be judged by, the best first."""
    return ((entry.method, entry.backbone, entry.dataset), (entry.method, entry.backbone), (entry.method,), ())
