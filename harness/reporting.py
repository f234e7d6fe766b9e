"""Reports of a suite, written by every reporter that is asked for, from results that are at hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from harness import registry
from harness.errors import UserError, did_you_mean
from harness.reporter import as_reporter
from harness.store import Store, SuiteResults

Written = tuple[list[Path], list[str]]
"""The paths that were written, and what went wrong with others."""


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
    paths, problems = [], []
    for name in formats if formats is not None else registry.names("reporters"):
        path = folder / f"leaderboard.{name}"
        try:
            reporter = as_reporter(name, registry.get("reporters", name))
            if formats is None and not reporter.after_run:
                continue
            path = folder / reporter.file
            folder.mkdir(parents=True, exist_ok=True)
            reporter(results, path)
        except OSError as error:
            problems.append(f"{path}: cannot be written ({error.strerror or error})")
        except UserError as error:
            problems.append(f"{path}: {error}")
        except Exception as error:  # a third party's reporter
            problems.append(f"{path}: reporter '{name}' failed: {type(error).__name__}: {error}")
        else:
            paths.append(path)
    return paths, problems


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
