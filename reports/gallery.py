"""Clouds that trials got wrong, for a page: few and small, and shared by all trials of the page.

Only of datasets that are here and small, so that a report costs no more for them; for all else the page names the
command that shows them. A dataset that cannot be read is as one that is not here.
"""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import numpy as np

from harness import clouds
from harness.clouds import Clouds
from harness.mistakes import PartPredictions, Predictions, own_parts, worst
from harness.one_trial import OneTrial
from harness.result import Result
from harness.store import Entry, SuiteResults

PER_TRIAL = 6
MOST_CLOUDS = 120
"""Different clouds of a page, 1 KB each."""
POINTS, LARGE = 256, 1024
"""Points of a cloud on a report's page, and on a page of one trial."""


class Gallery:
    """Collects wrong items of trials; each cloud is kept once."""

    def __init__(self, results: SuiteResults) -> None:
        self._known: dict[str, Clouds | None] = results.worked_out.setdefault("test clouds", {})
        self._items: dict[str, list[list[int]]] = {}

    def add(self, entry: Entry, predictions: Predictions) -> dict[str, Any] | None:
        """What the page lists of a trial: [item, true, predicted, confidence]; None where all is right."""
        items = worst(predictions, PER_TRIAL)
        if not items:
            return None
        assert entry.result is not None
        key = place(entry)
        found = self._clouds(key, entry.result)
        if found is not None and found.fits(predictions):
            self._items.setdefault(key, []).append(items)
        return listed(key, predictions, items)

    def content(self) -> dict[str, dict[str, str]]:
        """Base64 of clouds by dataset and item: the worst item of every trial first, as many as there is room for."""
        chosen: dict[str, dict[int, None]] = {key: {} for key in self._items}
        room = MOST_CLOUDS
        for rank in range(PER_TRIAL):
            for key, trials in self._items.items():
                for items in trials:
                    if room and rank < len(items) and items[rank] not in chosen[key]:
                        chosen[key][items[rank]] = None
                        room -= 1
        return {key: pictures(self._known[key], list(items)) for key, items in chosen.items() if items}

    def _clouds(self, key: str, result: Result) -> Clouds | None:
        if key not in self._known:
            self._known[key] = None
            with contextlib.suppress(Exception):  # a third party's dataset, or damaged files
                dataset = clouds.declared(result)
                if clouds.is_cheap(dataset):
                    self._known[key] = clouds.load(dataset, result)
        return self._known[key]


def place(entry: Entry) -> str:
    """What clouds and names of classes go by on a page."""
    return entry.dataset if entry.fold is None else f"{entry.dataset} fold {entry.fold}"


def listed(key: str, predictions: Predictions, items: list[int]) -> dict[str, Any]:
    """Wrong items as the page's script reads them."""
    sure = predictions.confidence
    rows = [
        [
            item,
            int(predictions.label[item]),
            int(predictions.prediction[item]),
            *([] if sure is None else [_share(sure[item])]),
        ]
        for item in items
    ]
    return {"of": key, "wrong": int((~predictions.right).sum()), "items": rows}


def _share(value: Any) -> float | None:
    return round(float(value), 3) if 0 <= value <= 1 else None


def pictures(found: Clouds | None, items: list[int], points: int = POINTS) -> dict[str, str]:
    """By item, as text, which JSON's names are."""
    if found is None:
        return {}
    return dict(zip(map(str, items), found.pictures(items, points), strict=True))


def of_one(trial: OneTrial, known: dict[str, Any]) -> None:
    """Put the trial's wrong items and their clouds into what a page knows of it.

    Raises UserError where there are wrong items, and their clouds cannot be shown.
    """
    result, predictions = trial.result, trial.predictions
    if result is None or predictions is None or not trial.wrong:
        return
    found, key = clouds.clouds_of(result, predictions), place(trial.entry)
    items = [wrong.item for wrong in trial.wrong]
    known["classes"].setdefault(key, list(trial.classes))
    look = known["by"][trial.entry.id]["look"] = _look(trial, predictions, key, items)
    if isinstance(predictions, Predictions):
        known["clouds"] = {key: pictures(found, items, LARGE)}
    else:
        known["clouds"] = {key: _coloured(found, predictions, items)}
    look["more"] = ""


def _look(trial: OneTrial, predictions: Predictions | PartPredictions, key: str, items: list[int]) -> dict[str, Any]:
    if isinstance(predictions, Predictions):
        sure = predictions.confidence is not None
        order = "those that the model was surest of" if sure else "those of its most frequent mistakes"
        said = f"{len(items)} of {trial.count:,} wrong items, {order} first. Drag a cloud, and all turn."
        return listed(key, predictions, items) | {"said": said}
    rows = [[wrong.item, wrong.true, wrong.miou] for wrong in trial.wrong]
    said = (
        f"The {len(items)} of {len(predictions.category):,} clouds with the smallest mIoU: their true parts, and those "
        "that the model told. Drag a cloud, and all turn."
    )
    return {"of": key, "items": rows, "said": said}


def _coloured(found: Clouds, predictions: PartPredictions, items: list[int]) -> dict[str, list[str]]:
    """By item: the cloud, its points' true parts and those told, counted within its category."""
    points = found.pictures(items, LARGE)
    places = clouds.evenly(found.points.shape[1], LARGE)
    parts = own_parts(predictions)
    shown = {}
    for item, cloud in zip(items, points, strict=True):
        own = np.cumsum(parts[item]) - 1  # by part: its place among those of the category
        both = (own[values[item, places]].astype(np.uint8) for values in (predictions.label, predictions.prediction))
        shown[str(item)] = [cloud, *(base64.b64encode(values.tobytes()).decode() for values in both)]
    return shown
