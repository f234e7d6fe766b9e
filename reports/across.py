"""Over several datasets: what can be said of a method as a whole, and from how many datasets on.

Seeds say whether it was this training run, datasets whether it generalises: tests over datasets take one number per
dataset, the mean over its seeds (Demšar, JMLR 2006). Intervals of aggregates resample the runs within every dataset
(Agarwal et al., NeurIPS 2021: interquartile mean, probability of improvement).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import stats

from reports.resampling import RESAMPLES, draws, percentile
from reports.statistics import CONFIDENCE, Interval, mean

EQUIVALENT = 0.002
"""Region of practical equivalence: means closer than 0.2 points are a tie."""
DATASETS_FOR_RANKS = 8
"""Fewest datasets for Friedman's test and a critical difference: with fewer they say next to nothing."""
METHODS_FOR_RANKS = 3
SIGNIFICANT = 0.05
"""Friedman's p above which no two methods are told apart by their ranks."""

Name = TypeVar("Name")
Outcome = Literal["win", "tie", "loss"]


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    interval: Interval | None


def interquartile_mean(strata: Sequence[Sequence[float]]) -> Estimate | None:
    """Mean of the middle half of all runs of all datasets: a quarter is cut off at each end. None without runs.

    The interval resamples the runs within every dataset; None where a dataset has a single one.
    """
    if not strata or not all(strata):
        return None
    ordered = [np.sort(np.asarray(values, dtype=float)) for values in strata]
    pooled = np.sort(np.concatenate(ordered))
    cut = len(pooled) // 4
    value = float(pooled[cut : len(pooled) - cut].mean())
    if any(len(values) < 2 for values in strata):
        return Estimate(value, None)
    taken = np.concatenate([_redrawn(values, k) for k, values in enumerate(ordered)], axis=1)
    taken.sort(axis=1)
    return Estimate(value, percentile(taken[:, cut : len(pooled) - cut].mean(axis=1)))


def _redrawn(values: npt.NDArray[np.float64], stratum: int) -> npt.NDArray[np.float64]:
    """(resamples, n): the values that each resample holds."""
    counts = draws(len(values), stratum).astype(int)
    return np.repeat(np.tile(values, RESAMPLES), counts.ravel()).reshape(RESAMPLES, len(values))


def probability_of_improvement(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Estimate | None:
    """How likely a run of the first beats a run of the second on a dataset taken at random; a tie counts half.

    Mann and Whitney's U over n m, the mean over datasets, which both must have in the same order. None without any.
    """
    if not first or len(first) != len(second) or not all(first) or not all(second):
        return None
    shares, redrawn = [], []
    for k, (a, b) in enumerate(zip(first, second, strict=True)):
        own, other = np.sort(np.asarray(a, dtype=float)), np.sort(np.asarray(b, dtype=float))
        beats = (own[:, None] > other) + 0.5 * (own[:, None] == other)
        shares.append(float(beats.mean()))
        if len(a) > 1 and len(b) > 1:
            left, right = draws(len(a), 2 * k), draws(len(b), 2 * k + 1)
            redrawn.append(((left @ beats) * right).sum(axis=1) / beats.size)
    interval = percentile(np.mean(redrawn, axis=0)) if len(redrawn) == len(first) else None
    return Estimate(mean(shares), interval)


def outcome(difference: float) -> Outcome:
    """Win, tie or loss by a difference of means; within `EQUIVALENT` of zero is a tie."""
    return "tie" if abs(difference) <= EQUIVALENT + 1e-12 else "win" if difference > 0 else "loss"


def average_ranks(means: Mapping[Name, Sequence[float]]) -> dict[Name, float]:
    """Mean rank over datasets by method, 1 for the best; equal means share theirs. All have the same datasets."""
    names = list(means)
    table = np.asarray([means[name] for name in names], dtype=float)  # (methods, datasets)
    ranks = stats.rankdata(-np.round(table, 12), axis=0)
    return {name: float(row.mean()) for name, row in zip(names, ranks, strict=True)}


@dataclass(frozen=True)
class Friedman:
    """Whether the methods' ranks differ at all, and how far apart mean ranks must be to be told apart (Nemenyi)."""

    statistic: float
    p_value: float
    critical_difference: float
    methods: int
    datasets: int


def friedman(means: Mapping[Name, Sequence[float]]) -> Friedman | None:
    """Friedman's test over datasets; None for fewer than `DATASETS_FOR_RANKS` datasets or three methods.

    The critical difference is Nemenyi's at 5 %: q sqrt(k (k + 1) / 6 N), q of the studentised range over sqrt 2.
    """
    k = len(means)
    datasets = len(next(iter(means.values()))) if means else 0
    if k < METHODS_FOR_RANKS or datasets < DATASETS_FOR_RANKS:
        return None
    columns = [np.round(np.asarray(values, dtype=float), 12) for values in means.values()]
    if all(np.array_equal(columns[0], other) for other in columns[1:]):
        found = (0.0, 1.0)  # all ranks tie: the statistic is 0 / 0
    else:
        test = stats.friedmanchisquare(*columns)
        found = (float(test.statistic), float(test.pvalue))
    q = float(stats.studentized_range.ppf(CONFIDENCE, k, np.inf)) / math.sqrt(2)
    return Friedman(*found, q * math.sqrt(k * (k + 1) / (6 * datasets)), k, datasets)


def alike(ranks: Mapping[Name, float], critical_difference: float) -> list[tuple[Name, ...]]:
    """Groups of methods that are not told apart, best rank first: the largest whose ranks lie within the difference.

    None of them is part of another, and none is of a single method.
    """
    names = sorted(ranks, key=lambda name: ranks[name])
    groups: list[tuple[Name, ...]] = []
    reached = 0
    for first, name in enumerate(names):
        end = sum(ranks[other] - ranks[name] < critical_difference for other in names[first:]) + first
        if end > reached and end - first > 1:
            groups.append(tuple(names[first:end]))
        reached = max(reached, end)
    return groups


def why_no_ranks(methods: int, datasets: int) -> str:
    """The sentence that stands in place of Friedman's test; empty where there is one."""
    if datasets < DATASETS_FOR_RANKS:
        return (
            f"No Friedman test and no critical difference: they need at least {DATASETS_FOR_RANKS} datasets to say "
            f"anything, and all methods of one protocol share {datasets}."
        )
    if methods < METHODS_FOR_RANKS:
        return f"No Friedman test: {methods} methods have a result on all datasets, and it compares at least three."
    return ""
