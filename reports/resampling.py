"""Bootstraps: what means would have been with other draws of the same runs. Equal values give equal intervals.

Up to `EXACT` values the bootstrap's distribution is summed up whole, every resample with its probability; for more,
and for several strata, `RESAMPLES` are drawn from a fixed seed. All intervals are percentile intervals. Over few runs
they come out too narrow: of three values the interval ends at the smallest and the largest at best, and holds the true
mean about three times in four (docs/log.md). Student's t is therefore what tables lead with (reports.statistics).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations_with_replacement

import numpy as np
import numpy.typing as npt

from reports.statistics import CONFIDENCE, Interval

EXACT = 6
"""Most values whose n ** n resamples are summed up: 462 different ones of 46,656."""
RESAMPLES = 2_000
SEED = 20_261_121

Counts = npt.NDArray[np.float64]
"""(resamples, n): how often each value is drawn in each resample."""


def bootstrap_mean(values: Sequence[float]) -> Interval | None:
    """95 % percentile interval of the mean; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    ordered = np.sort(np.asarray(values, dtype=float))  # so that the order of values changes no bit
    if n > EXACT:
        return percentile(draws(n, 0) @ ordered / n)
    counts, chances = all_resamples(n)
    means = counts @ ordered / n
    order = np.argsort(means, kind="stable")
    below = np.cumsum(chances[order])
    tail = (1 - CONFIDENCE) / 2
    low = means[order][np.searchsorted(below, tail - 1e-12)]
    high = means[order][np.searchsorted(below, 1 - tail - 1e-12)]
    return Interval(float(low), float(high), "bootstrap")


def percentile(statistics: npt.NDArray[np.float64]) -> Interval:
    """The middle 95 % of a statistic over resamples."""
    low, high = np.quantile(statistics, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high), "bootstrap")


@lru_cache(maxsize=8)
def all_resamples(n: int) -> tuple[Counts, npt.NDArray[np.float64]]:
    """Every different resample of n values as counts, and its probability: multinomial, equal chances."""
    rows, chances = [], []
    for picked in combinations_with_replacement(range(n), n):
        counts = np.bincount(picked, minlength=n)
        rows.append(counts)
        chances.append(math.factorial(n) / math.prod(math.factorial(int(c)) for c in counts) / n**n)
    return np.asarray(rows, dtype=float), np.asarray(chances)


@lru_cache(maxsize=256)
def draws(n: int, stratum: int) -> Counts:
    """`RESAMPLES` resamples of n values as counts; those of different strata are independent."""
    return np.random.default_rng([SEED, n, stratum]).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float)


def stratified_mean(strata: Sequence[Sequence[float]]) -> Interval | None:
    """95 % interval of the mean of the strata's means, each resampled by itself; None if one has a single value."""
    if not strata or any(len(values) < 2 for values in strata):
        return None
    if len(strata) == 1:
        return bootstrap_mean(strata[0])
    means = [draws(len(s), k) @ np.sort(np.asarray(s, dtype=float)) / len(s) for k, s in enumerate(strata)]
    return percentile(np.mean(means, axis=0))
