"""Learning curves: what trials wrote by epoch, and the band of a method's seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic_core import from_json

from harness.store import Entry, SuiteResults
from reports.comparison import RowKey
from reports.statistics import mean

MOST_EPOCHS = 60
"""Points of a curve; of longer ones evenly spaced epochs are kept, the last among them."""
LARGEST = 4_000_000
"""Bytes of a metrics file that are read."""
LOSS = "train/loss"
SCORES = ("validation/accuracy", "validation/instance_miou", "test/accuracy", "test/instance_miou")

Curve = Sequence[tuple[int, float]]
"""(epoch, value), epochs rising from 0."""


def read_curves(path: Path, *, most: int = MOST_EPOCHS) -> dict[str, Curve]:
    """Loss and scores of a metrics.jsonl by name; what is damaged is left out."""
    try:
        with path.open("rb") as file:
            lines = file.read(LARGEST).splitlines()
    except OSError:
        return {}
    found: dict[str, dict[int, float]] = {}
    for line in chosen(lines, most):
        try:
            row = from_json(line)
        except ValueError:
            continue
        epoch = row.get("epoch") if isinstance(row, dict) else None
        if not isinstance(epoch, int) or epoch < 0:
            continue
        for name in (LOSS, *SCORES):
            value = row.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {})[epoch] = float(value)
    return {name: sorted(values.items()) for name, values in found.items()}


def chosen(lines: Sequence[bytes], most: int) -> list[bytes]:
    """At most so many of the lines, evenly spaced, first and last among them."""
    if len(lines) <= most:
        return list(lines)
    return [lines[round(k * (len(lines) - 1) / (most - 1))] for k in range(most)]


@dataclass(frozen=True)
class Band:
    """A method's seeds on one dataset: mean, smallest and largest value at the epochs that all of them have."""

    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int


def band(curves: Sequence[Curve]) -> Band | None:
    """None where the curves share no epoch."""
    tables = [dict(curve) for curve in curves if curve]
    epochs = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    if not epochs:
        return None
    values = [[table[epoch] for table in tables] for epoch in epochs]
    means, lows, highs = (tuple(f(v) for v in values) for f in (mean, min, max))
    return Band(tuple(epochs), means, lows, highs, len(tables))


def bands(results: SuiteResults) -> Mapping[str, Mapping[tuple[RowKey, str], Band]]:
    """Bands by name of the curve, then by method and dataset; of finished trials, references left out."""
    found: dict[str, dict[tuple[RowKey, str], list[Curve]]] = {}
    for entry in results.entries:
        for name, curve in trial_curves(results, entry).items():
            key = (RowKey(entry.method, entry.backbone), entry.dataset)
            found.setdefault(name, {}).setdefault(key, []).append(curve)
    joined = {name: {key: band(curves) for key, curves in by_key.items()} for name, by_key in found.items()}
    return {name: {key: b for key, b in by_key.items() if b is not None} for name, by_key in joined.items()}


def trial_curves(results: SuiteResults, entry: Entry) -> dict[str, Curve]:
    """Of one finished trial; empty for others, for references and where the results folder is not at hand."""
    folder = results.folder(entry)
    done = entry.result is not None and entry.result.status == "done"
    return read_curves(folder.path / "metrics.jsonl") if folder is not None and done and not entry.reference else {}
