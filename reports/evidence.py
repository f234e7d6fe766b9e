"""What trials left beside their results, read for a report: predictions, curves, logs.

Only where the results folder is at hand (`SuiteResults.output`). What is missing or damaged is absent, and a report
says less. Files come from other machines: nothing in them is run, and no more than a bounded part of each is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.mistakes import Predictions, read_predictions
from harness.store import Entry, SuiteResults

MOST_TRIALS = 2_000
"""Of larger suites predictions are not read for comparisons: they would take most of a report's time."""


def predictions(results: SuiteResults) -> Mapping[str, Predictions]:
    """Predictions of finished classification trials by identity; empty for suites beyond `MOST_TRIALS`."""
    if "predictions" not in results.worked_out:
        results.worked_out["predictions"] = _predictions(results)
    found: Mapping[str, Predictions] = results.worked_out["predictions"]
    return found


def _predictions(results: SuiteResults) -> dict[str, Predictions]:
    found: dict[str, Predictions] = {}
    if len(results.entries) > MOST_TRIALS:
        return found
    for entry in results.entries:
        read_one = _read(results, entry)
        if read_one is not None:
            found[entry.id] = read_one
    return found


def _read(results: SuiteResults, entry: Entry) -> Predictions | None:
    """Predictions that agree with the result: as many items, as many of them right."""
    folder, result = results.folder(entry), entry.result
    if folder is None or result is None or result.status != "done" or not result.headline.counted:
        return None
    found = read_predictions(folder.path / "predictions.npz")
    if found is None or (len(found.label), int(found.right.sum())) != (result.metrics.total, result.metrics.correct):
        return None
    return found


def by_run(trials: Sequence[Entry], known: Mapping[str, Predictions]) -> dict[tuple[int, int | None], Predictions]:
    """Predictions of one row's trials on one dataset, by seed and fold."""
    return {(trial.seed, trial.fold): known[trial.id] for trial in trials if trial.id in known}
