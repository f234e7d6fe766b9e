"""Noise of the test set, apart from that of seeds: two models on the same items, item by item.

Seeds ask what other training runs would have given, items what another test set of the kind would have. McNemar's
exact test takes one pair of models (same seed) and the items that only one of them got right. Over several seeds an
item's difference is averaged first, and the interval is over items: the trained models are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.mistakes import Predictions
from reports.statistics import CONFIDENCE, Interval, mean

Run = tuple[int, int | None]
"""Seed and fold."""
_ENDS = float(stats.norm.ppf((1 + CONFIDENCE) / 2))


def mcnemar(first_only: int, second_only: int) -> float:
    """Two-sided p of McNemar's exact test, from the items that only the first, and only the second, got right."""
    discordant = first_only + second_only
    return float(stats.binomtest(first_only, discordant).pvalue) if discordant else 1.0


@dataclass(frozen=True)
class SeedItems:
    """One pair of models of the same seed (or fold)."""

    seed: int
    fold: int | None
    first_only: int
    second_only: int
    p_value: float


@dataclass(frozen=True)
class ItemDifference:
    """The first method minus the second on the same items, over their common seeds."""

    mean: float
    interval: Interval | None
    """95 %, over items, of the same trained models; None where seeds have different test items."""
    items: int
    seeds: tuple[SeedItems, ...]


def compare_items(first: Mapping[Run, Predictions], second: Mapping[Run, Predictions]) -> ItemDifference | None:
    """Over common seeds on whose items both agree what is true; None without any."""
    seeds, differences, labels = [], [], []
    for run in sorted(set(first) & set(second), key=lambda run: (run[0], -1 if run[1] is None else run[1])):
        a, b = first[run], second[run]
        if not np.array_equal(a.label, b.label):
            continue
        only = int((a.right & ~b.right).sum()), int((b.right & ~a.right).sum())
        seeds.append(SeedItems(*run, *only, mcnemar(*only)))
        differences.append(a.right.astype(float) - b.right.astype(float))
        labels.append(a.label)
    if not seeds:
        return None
    same = all(np.array_equal(labels[0], other) for other in labels[1:])
    interval = _over_items(np.mean(differences, axis=0)) if same else None
    value = mean([float(difference.mean()) for difference in differences])
    return ItemDifference(value, interval, len(labels[0]), tuple(seeds))


def _over_items(differences: npt.NDArray[np.float64]) -> Interval | None:
    """Normal interval of a mean over many items."""
    n = len(differences)
    if n < 2:
        return None
    half = _ENDS * float(differences.std(ddof=1)) / n**0.5
    centre = float(differences.mean())
    return Interval(max(-1.0, centre - half), min(1.0, centre + half), "items")
