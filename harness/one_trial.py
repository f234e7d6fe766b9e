"""What `harness show trial` tells: one trial, whatever became of it, from what lies in its folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.atomic import read_json
from harness.clouds import class_names
from harness.errors import UserError
from harness.mistakes import (
    Confusion,
    PartPredictions,
    Predictions,
    confused,
    own_parts,
    read_part_predictions,
    read_predictions,
    shape_miou,
    worst,
)
from harness.result import SECTIONS, Result
from harness.store import Entry, Store
from harness.trial_folder import TrialFolder

LARGEST = 1e300
"""Of a curve's values; NaN and infinity are none."""
PAIRS = 8
"""Pairs of classes that are listed."""


@dataclass(frozen=True)
class Wrong:
    """One item that the trial got wrong."""

    item: int
    """In the order of the test split, from 0."""
    true: int
    """Its class; for part segmentation its category, which was given."""
    predicted: int | None
    """None for part segmentation."""
    confidence: float | None = None
    """Probability of the prediction, where it was stored."""
    miou: float | None = None
    """For part segmentation."""


@dataclass(frozen=True)
class OneTrial:
    """A trial and what it left."""

    entry: Entry
    store: Store
    spec: dict[str, Any]
    status: str
    """The result's, `running`, or `no result`."""
    done: tuple[int, int] | None = None
    """Epochs done and to do, of one that runs."""
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    predictions: Predictions | PartPredictions | None = None
    confused: tuple[Confusion, ...] = ()
    wrong: tuple[Wrong, ...] = ()
    """The worst first."""
    count: int | None = None
    """Wrong items in all; None where there are no predictions of whole clouds."""

    @property
    def folder(self) -> TrialFolder:
        """Where it left that."""
        return self.store.trial(self.entry.id)

    @property
    def result(self) -> Result | None:
        """Its result."""
        return self.entry.result

    def class_name(self, number: int) -> str:
        """By number where nobody here knows it."""
        return self.classes[number] if 0 <= number < len(self.classes) else f"class {number}"

    def as_json(self) -> dict[str, Any]:
        """Plain values; classes by name."""
        result = self.result
        numbers = {part: getattr(result, part).model_dump(exclude_none=True) for part in SECTIONS} if result else {}
        wrong = [
            {key: value for key, value in vars(item).items() if value is not None}
            | {"true": self.class_name(item.true)}
            | ({} if item.predicted is None else {"predicted": self.class_name(item.predicted)})
            for item in self.wrong
        ]
        pairs = [
            {"true": self.class_name(p.true), "predicted": self.class_name(p.predicted), "items": p.items}
            for p in self.confused
        ]
        return {
            "id": self.entry.id,
            "name": self.entry.name,
            "status": self.status,
            "error": result.error if result is not None else None,
            "spec": self.spec,
            **numbers,
            "curves": {name: [list(point) for point in curve] for name, curve in self.curves.items()},
            "confused": pairs,
            "wrong_items": self.count,
            "worst": wrong,
        }


def find_trial(wanted: str, output: Path) -> tuple[Store, TrialFolder]:
    """A trial by its identity, the beginning of one, or its folder in an output folder. Raises UserError."""
    path = Path(wanted)
    if "/" in wanted or (wanted and path.is_dir()):
        if not path.is_dir() or path.resolve().parent.name != "trials":
            raise UserError(f"{wanted}: is no trial's folder; name a trial by its identity, or by OUTPUT/trials/ID")
        return Store(path.resolve().parent.parent), TrialFolder(path.resolve())
    store = Store(output)
    return store, store.find(wanted)


def one_trial(wanted: str, output: Path, *, items: int) -> OneTrial:
    """A trial and at most so many of its wrong items. Raises UserError when there is no such trial, or several."""
    store, folder = find_trial(wanted, output)
    result = folder.result()
    spec = result.spec if result is not None else read_json(folder.path / "spec.json")
    spec = spec if isinstance(spec, dict) else {}
    entry = store.entry(folder.identity) or _entry(folder.identity, spec, result)
    curves = _curves(folder)
    if result is None or result.status != "done":
        lease = folder.running()
        status = "running" if lease is not None else result.status if result is not None else "no result"
        return OneTrial(entry, store, spec, status, _progress(folder), curves)
    names = class_names(folder, result)
    if result.headline.counted:
        found = read_predictions(folder.path / "predictions.npz")
        return OneTrial(entry, store, spec, "done", None, curves, names, found, *_classified(found, items))
    if result.headline.by_category is not None:
        parts = read_part_predictions(folder.path / "predictions.npz")
        return OneTrial(entry, store, spec, "done", None, curves, names, parts, (), _segmented(parts, items))
    return OneTrial(entry, store, spec, "done", None, curves, names)


def _progress(folder: TrialFolder) -> tuple[int, int] | None:
    lease = folder.running()
    return (lease.done, lease.epochs) if lease is not None else None


def _classified(found: Predictions | None, items: int) -> tuple[tuple[Confusion, ...], tuple[Wrong, ...], int | None]:
    if found is None:
        return (), (), None
    sure = found.confidence
    wrong = tuple(
        Wrong(
            item, int(found.label[item]), int(found.prediction[item]), _share(sure[item]) if sure is not None else None
        )
        for item in worst(found, items)
    )
    return tuple(confused(found, PAIRS)), wrong, int((~found.right).sum())


def _segmented(found: PartPredictions | None, items: int) -> tuple[Wrong, ...]:
    """The clouds of the smallest mIoU."""
    if found is None:
        return ()
    mious = shape_miou(found.prediction, found.label, own_parts(found))
    order = np.argsort(mious, kind="stable")[:items]
    return tuple(Wrong(int(k), int(found.category[k]), None, miou=float(mious[k])) for k in order if mious[k] < 1)


def _share(value: Any) -> float | None:
    return round(float(value), 4) if 0 <= value <= 1 else None


def _curves(folder: TrialFolder) -> dict[str, list[tuple[int, float]]]:
    """What was written by epoch, less the learning rate, which follows from the configuration."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in folder.metrics():
        epoch = row.get("epoch")
        for name, value in row.items():
            known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
            if known and isinstance(epoch, int) and name not in ("epoch", "time", "train/rate"):
                found.setdefault(name, []).append((epoch, float(value)))
    return found


def _entry(identity: str, spec: dict[str, Any], result: Result | None) -> Entry:
    """Of a trial that no suite here lists: labelled by its plug-ins' names."""

    def name(part: str) -> str:
        section = spec.get(part)
        return str(section.get("name", "")) if isinstance(section, dict) else ""

    seed, dataset = spec.get("seed"), spec.get("dataset")
    fold = dataset.get("fold") if isinstance(dataset, dict) else None
    return Entry(
        id=identity,
        method=str(spec.get("baseline") or name("method")),
        backbone=name("backbone"),
        dataset=name("dataset"),
        seed=seed if isinstance(seed, int) else 0,
        reference="baseline" in spec,
        result=result,
        fold=fold if isinstance(fold, int) else None,
    )
