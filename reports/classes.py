"""Accuracy by class, and what is taken for what: counted from predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from harness import clouds
from harness.mistakes import Predictions
from harness.store import SuiteResults
from reports import evidence
from reports.comparison import RowKey

MOST_CLASSES = 1_000
LOOKS = 20
"""Trials that are asked for the names of their classes."""


@dataclass(frozen=True, eq=False)
class ByClass:
    """Methods on one dataset: names of the classes, and per method how often each is taken for each."""

    dataset: str
    names: tuple[str, ...]
    confusion: dict[RowKey, npt.NDArray[np.int64]]
    """(true class, predicted class): items, over all seeds."""

    def accuracy(self, key: RowKey) -> npt.NDArray[np.float64]:
        """(classes,): share of a class's items that are right; NaN for a class without items."""
        table = self.confusion[key]
        items = table.sum(axis=1)
        return np.divide(np.diag(table), items, out=np.full(len(table), np.nan), where=items > 0)


def confusion(predictions: Sequence[Predictions], classes: int) -> npt.NDArray[np.int64]:
    """(true class, predicted class): items of all of them."""
    table = np.zeros((classes, classes), np.int64)
    for found in predictions:
        np.add.at(table, (found.label, found.prediction), 1)
    return table


def count_classes(predictions: Sequence[Predictions]) -> int | None:
    """How many classes there must be; None where a prediction is none, or there are too many to show."""
    largest = max(int(max(p.label.max(), p.prediction.max())) for p in predictions)
    smallest = min(int(p.prediction.min()) for p in predictions)
    return largest + 1 if smallest >= 0 and largest < MOST_CLASSES else None


def by_class(results: SuiteResults) -> tuple[ByClass, ...]:
    """Of every dataset that trials left predictions on; datasets with folds, whose classes differ, are left out."""
    known = evidence.predictions(results)
    found: dict[str, dict[RowKey, list[Predictions]]] = {}
    for entry in results.entries:
        if entry.id in known and entry.fold is None and not entry.reference:
            rows = found.setdefault(entry.dataset, {})
            rows.setdefault(RowKey(entry.method, entry.backbone), []).append(known[entry.id])
    tables = []
    for dataset, rows in sorted(found.items()):
        classes = count_classes([p for predictions in rows.values() for p in predictions])
        if classes is not None:
            names = class_names(results, dataset, classes)
            tables.append(ByClass(dataset, names, {key: confusion(ps, classes) for key, ps in rows.items()}))
    return tuple(tables)


def class_names(results: SuiteResults, dataset: str, classes: int, *, fold: int | None = None) -> tuple[str, ...]:
    """Names of a dataset's classes, as its first finished trials know them; by number where nobody here does."""
    known: dict[tuple[str, int | None], tuple[str, ...]] = results.worked_out.setdefault("class names", {})
    key = (dataset, fold)
    if key not in known:
        own = ((e, e.result) for e in results.entries if (e.dataset, e.fold) == key and e.result is not None)
        done = ((entry, result) for entry, result in own if result.status == "done")
        told = (clouds.class_names(results.folder(entry), result) for entry, result in islice(done, LOOKS))
        known[key] = next(filter(None, told), ())
    names = known[key]
    return names[:classes] if len(names) >= classes else tuple(f"class {index}" for index in range(classes))
