"""What the page knows of every trial, small: shared settings and machines once, curves thinned, ends of logs.

Above `MOST_TRIALS` trials the page itself keeps a line per trial, and their details go to pages beside it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.mistakes import Predictions, read_predictions
from harness.result import SECTIONS, Result
from harness.store import Entry, SuiteResults
from reports import evidence
from reports.cells import score
from reports.classes import class_names, confusion
from reports.curves import read_curves
from reports.gallery import Gallery, place

MOST_TRIALS = 1_000
"""With more trials, details lie in pages beside the leaderboard."""
PAGE = 250
"""Trials of such a page."""
EPOCHS, FEW_EPOCHS = 30, 12
"""Points of a trial's curve, and of one of a very large suite, whose predictions are not read either."""
LOG, FAILED_LOG = 600, 3_000
"""Characters of the end of a log."""
MOST_CLASSES = 100
CONFUSIONS = 6
"""Most frequent mistakes that are listed."""
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
ATTEMPT = ("attempt", "started", "ended", "status", "error", "resumed")


@dataclass(frozen=True)
class TrialPages:
    """Lines of all trials, and what is known of each, by page: one page, the leaderboard itself, or several beside."""

    index: dict[str, Any]
    pages: tuple[tuple[Entry, ...], ...]
    beside: bool


def trial_pages(results: SuiteResults) -> TrialPages:
    """The index of all trials, in the order of the suite's labels."""
    entries = sorted(results.entries, key=_order)
    beside = len(entries) > MOST_TRIALS
    size = PAGE if beside else max(1, len(entries))
    pages = tuple(tuple(entries[start : start + size]) for start in range(0, len(entries), size))
    return TrialPages(index(entries, size if beside else None), pages, beside)


def _order(entry: Entry) -> tuple[object, ...]:
    fold = -1 if entry.fold is None else entry.fold
    return (entry.reference, entry.dataset, entry.method, entry.backbone, entry.seed, fold, entry.id)


def index(entries: Sequence[Entry], size: int | None) -> dict[str, Any]:
    """A line per trial, names by number: [id, method, backbone, dataset, seed, fold, status, score, seconds, page]."""
    names: dict[str, list[str]] = {
        "methods": sorted({entry.method for entry in entries}),
        "backbones": sorted({entry.backbone for entry in entries}),
        "datasets": sorted({entry.dataset for entry in entries}),
        "statuses": sorted({_status(entry) for entry in entries}),
    }
    at = {key: {name: number for number, name in enumerate(values)} for key, values in names.items()}
    lines = [
        [
            entry.id,
            at["methods"][entry.method],
            at["backbones"][entry.backbone],
            at["datasets"][entry.dataset],
            entry.seed,
            entry.fold,
            at["statuses"][_status(entry)],
            _short(score(entry)),
            _short(entry.result.time.total if entry.result is not None else None),
            number // size if size is not None else None,
        ]
        for number, entry in enumerate(entries)
    ]
    return names | {"trials": lines}


def _status(entry: Entry) -> str:
    return "missing" if entry.result is None else entry.result.status


class Details:
    """Collects what a page says of its trials; equal settings and machines are kept once."""

    def __init__(self, results: SuiteResults) -> None:
        self._results = results
        self._large = len(results.entries) > evidence.MOST_TRIALS
        self._shared: dict[str, dict[str, int]] = {"configs": {}, "machines": {}}
        self._classes: dict[str, list[str]] = {}
        self._gallery = Gallery(results)
        self._by_id: dict[str, dict[str, Any]] = {}

    def add(self, entry: Entry) -> None:
        """Read what the trial left; a trial without a result has nothing to tell."""
        result, folder = entry.result, self._results.folder(entry)
        if result is None:
            return
        found = _numbers(result)
        found["config"] = self._number("configs", {k: v for k, v in result.spec.items() if k not in ("seed", "fold")})
        found["machine"] = self._number("machines", result.environment)
        if result.status == "done" and result.score is not None:
            found["look"] = {"of": place(entry)}
        if folder is not None:
            most = FEW_EPOCHS if self._large else EPOCHS
            curves = read_curves(folder.path / "metrics.jsonl", most=most)
            found["curves"] = {name: _columns(curve) for name, curve in curves.items()}
            if not self._results.site:
                found["log"] = log_end(folder.path / "log.txt", LOG if result.status == "done" else FAILED_LOG)
            known = result.headline.counted and not self._large
            predictions = read_predictions(folder.path / "predictions.npz") if known else None
            if predictions is not None and result.status == "done":
                found["classes"] = self._by_class(entry, predictions)
                found["look"] = self._gallery.add(entry, predictions)
        self._by_id[entry.id] = {key: value for key, value in found.items() if value not in (None, {}, [], "")}

    def content(self) -> dict[str, Any]:
        """For the page's script."""
        shared = {key: [json.loads(text) for text in table] for key, table in self._shared.items()}
        return shared | {"classes": self._classes, "clouds": self._gallery.content(), "by": self._by_id}

    def _number(self, table: str, value: Mapping[str, Any]) -> int:
        known = self._shared[table]
        return known.setdefault(as_json(value), len(known))

    def _by_class(self, entry: Entry, predictions: Predictions) -> dict[str, Any] | None:
        """Right and all items of each class, and the most frequent mistakes: [true, predicted, items]."""
        largest = int(max(predictions.label.max(), predictions.prediction.max()))
        if int(predictions.prediction.min()) < 0 or largest >= MOST_CLASSES:
            return None
        key = place(entry)
        if len(self._classes.get(key, ())) <= largest:
            self._classes[key] = list(class_names(self._results, entry.dataset, largest + 1, fold=entry.fold))
        table = confusion([predictions], largest + 1)
        wrong = table - np.diag(np.diag(table))
        order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
        mistakes = [
            [int(i), int(j), int(wrong[i, j])] for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        ]
        return {
            "names": key,
            "right": np.diag(table).tolist(),
            "items": table.sum(axis=1).tolist(),
            "mistakes": [mistake for mistake in mistakes if mistake[2]],
        }


def _numbers(result: Result) -> dict[str, Any]:
    """What result.json says, without empty values."""
    found: dict[str, Any] = {"error": (result.error or "")[:FAILED_LOG], "digests": result.digests}
    for part in SECTIONS:
        values = {name: _short(value) for name, value in vars(getattr(result, part)).items() if value is not None}
        found[part] = {name: value for name, value in values.items() if value is not None}
    found["attempts"] = [
        {key: _cut(attempt[key]) for key in ATTEMPT if attempt.get(key) is not None} for attempt in result.attempts[-5:]
    ]
    return found


def _cut(value: Any) -> Any:
    return value[:LOG] if isinstance(value, str) else value


def _short(value: Any) -> Any:
    """A number in few digits; categories of a metric likewise; None for what is no number."""
    if isinstance(value, Mapping):
        return {str(key): _short(item) for key, item in value.items()}
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def _columns(curve: Sequence[tuple[int, float]]) -> list[list[float]]:
    return [[epoch for epoch, _ in curve], [float(f"{value:.4g}") for _, value in curve]]


def log_end(path: Path, characters: int) -> str:
    """The last whole lines of a log, of at most so many characters; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            size = file.tell()
            file.seek(max(0, size - 4 * characters))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    end = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text[-characters:].replace("\r\n", "\n"))
    return end.partition("\n")[2] if len(text) > characters and "\n" in end[:-1] else end


def printable(text: str) -> str:
    """Text from outside on one line, without what moves a terminal's cursor."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


def as_json(value: Any) -> str:
    """In few characters and the order of names, with null in place of numbers that JSON does not know."""
    try:
        return _compact(value)
    except (ValueError, TypeError):
        return _compact(finite(value))


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def finite(value: Any) -> Any:
    """The value with null in place of numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and math.isfinite(value) else None


def gathered(results: SuiteResults, entries: Sequence[Entry]) -> dict[str, Any]:
    """Details of some trials."""
    details = Details(results)
    for entry in entries:
        details.add(entry)
    return details.content()


def beside(results: SuiteResults, pages: TrialPages) -> Iterator[tuple[int, tuple[Entry, ...], dict[str, Any]]]:
    """Number, trials and details of every page beside the leaderboard."""
    for number, entries in enumerate(pages.pages if pages.beside else ()):
        yield number, entries, gathered(results, entries)
