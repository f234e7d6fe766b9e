"""Reports of a suite, written by every reporter that is asked for, from results that are at hand."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from harness import registry
from harness.errors import UserError, did_you_mean
from harness.reporter import Reporter, as_reporter
from harness.store import Store, SuiteResults

Written = tuple[list[Path], list[str]]
"""The paths that were written, and what went wrong with others."""
MANY = 1_000
"""Trials from which on reporters that take seconds (`Reporter.after_run`) work beside the others."""


def write_reports(
    store: Store,
    suite: str,
    *,
    formats: Sequence[str] | None = None,
    folder: Path | None = None,
    reference: str | None = None,
) -> Written:
    """Reports of a suite, from its results on disk; `folder` is by default the suite's own. The rest as `write`.

    Raises UserError for a suite that never ran here, too.
    """
    folder = folder if folder is not None else store.suite_folder(suite) / "report"
    return write(store.load(suite), folder, formats=formats, reference=reference)


def write(
    results: SuiteResults, folder: Path, *, formats: Sequence[str] | None = None, reference: str | None = None
) -> Written:
    """Reports into a folder: what was written, and what went wrong with others.

    `formats` are names of reporters, by default those of a run's end; methods are compared with `reference`. A
    reporter that fails takes no other down with it. Raises UserError for an unknown format or a reference that is no
    method of the suite.
    """
    methods = {entry.method for entry in results.entries if not entry.reference}
    if reference is not None and reference not in methods:
        hint = did_you_mean(reference, methods)
        raise UserError(f"suite '{results.name}' has no method '{reference}' to compare with; {hint}")
    if unknown := [name for name in formats or () if name not in registry.names("reporters")]:
        raise UserError("\n".join(registry.explain_unknown("reporters", name) for name in unknown))
    if reference is not None:
        results = replace(results, yardstick=reference)
    jobs, problems = _jobs(formats, folder)
    outcomes: dict[str, str | None] = {}
    beside: dict[str, _Beside] = {}
    quick = [job for job in jobs if job.reporter.after_run]
    for job in quick or jobs:
        outcomes[job.name] = job.write(results)
        if quick and not beside and len(results.entries) > MANY and sys.platform == "linux":
            # after the first, so that these find what it has worked out
            beside = {job.name: _Beside(job, results) for job in jobs if not job.reporter.after_run}
    for job in jobs:
        if job.name not in outcomes:
            outcomes[job.name] = beside[job.name].outcome() if job.name in beside else job.write(results)
    problems += [problem for job in jobs if (problem := outcomes[job.name]) is not None]
    return [job.path for job in jobs if outcomes[job.name] is None], problems


@dataclass(frozen=True)
class _Job:
    """One reporter and where it writes."""

    name: str
    reporter: Reporter
    path: Path

    def write(self, results: SuiteResults) -> str | None:
        """What went wrong, if anything."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.reporter(results, self.path)
        except Exception as error:  # a third party's reporter
            return _problem(self.path, self.name, error)
        return None


def _problem(path: Path, name: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{path}: cannot be written ({error.strerror or error})"
    if isinstance(error, UserError):
        return f"{path}: {error}"
    return f"{path}: reporter '{name}' failed: {type(error).__name__}: {error}"


def _jobs(formats: Sequence[str] | None, folder: Path) -> tuple[list[_Job], list[str]]:
    """What is to be written, and what is wrong with the reporters themselves."""
    jobs, problems = [], []
    for name in formats if formats is not None else registry.names("reporters"):
        try:
            reporter = as_reporter(name, registry.get("reporters", name))
        except Exception as error:  # a third party's reporter
            problems.append(_problem(folder / f"leaderboard.{name}", name, error))
            continue
        if formats is not None or reporter.after_run:
            jobs.append(_Job(name, reporter, folder / reporter.file))
    return jobs, problems


class _Beside:
    """A reporter at work in a process of its own, which has the results by being forked from this one."""

    def __init__(self, job: _Job, results: SuiteResults) -> None:
        context = multiprocessing.get_context("fork")
        self.job = job
        self.answer, other = context.Pipe(duplex=False)
        self.process = context.Process(target=self._work, args=(other, job, results), daemon=True)
        self.process.start()
        other.close()

    @staticmethod
    def _work(answer: Connection, job: _Job, results: SuiteResults) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that forked this one ends it
        answer.send(job.write(results))

    def outcome(self) -> str | None:
        """What went wrong, if anything, once it is done."""
        try:
            problem: str | None = self.answer.recv()
        except EOFError:
            self.process.join()
            problem = f"{self.job.path}: reporter '{self.job.name}' died with exit code {self.process.exitcode}"
        self.process.join()
        return problem


def follow(
    write_now: Callable[[], None], *, stamp: Callable[[], object], active: Callable[[], bool], every: float
) -> None:
    """Write at once, and again whenever the stamp is another one, until nothing is active; `every` is in seconds."""
    last: object = None
    while True:
        going = active()  # asked first: what ends after this has changed the stamp, or is seen at the next look
        if (now := stamp()) != last:
            write_now()
            last = now
        if not going:
            return
        time.sleep(every)
