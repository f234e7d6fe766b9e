"""What a handful of seeds can say: means, 95 % intervals and paired differences, as pure functions.

Accuracies are fractions, 0 to 1. An interval over seeds is Student's t: with three to five seeds a
bootstrap can only re-draw the few values it has and comes out too narrow. One seed has no spread; its
interval is Wilson's, from the number of correct test items. Intervals over seeds speak of training runs,
not of other test items.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparison

CONFIDENCE = 0.95
PAIRS_FOR_P = 6
"""Fewest pairs with which an exact two-sided paired test can reach p < 0.05: 2 ** (1 - 6) = 0.031."""
EXACT_PAIRS = 50
"""With more pairs the normal approximation of the signed ranks is as good."""
SAME = 1e-12
"""Fractions closer than this are the same number in another order of summation."""

Key = TypeVar("Key")
Repeat = TypeVar("Repeat", bound="SupportsRichComparison")


@dataclass(frozen=True)
class Interval:
    """A 95 % interval and where it comes from."""

    low: float
    high: float
    kind: Literal["student_t", "wilson", "bootstrap", "items"]


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (ddof 1; None for one value), number of values, interval of the mean."""

    mean: float
    sd: float | None
    n: int
    interval: Interval | None


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a - b over common pairs, its spread and its 95 % interval."""

    mean: float
    sd: float | None
    n: int
    interval: Interval | None
    p_value: float | None
    """Two-sided Wilcoxon signed-rank test; None for fewer than six pairs."""
    separated: bool
    """The interval excludes zero, and the differences vary: equal ones leave no spread to judge by."""


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean, independent of the order of the values."""
    return math.fsum(values) / len(values)


def median(values: Sequence[float]) -> float:
    """The middle value; the mean of the two middle ones of an even number."""
    return float(np.median(np.asarray(values, dtype=float)))


def sample_sd(values: Sequence[float]) -> float | None:
    """Sample standard deviation (ddof 1), or None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    sd = math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))
    return 0.0 if sd < SAME else sd


@cache
def _t_quantile(freedom: int) -> float:
    """How many standard errors the interval reaches; scipy takes a third of a millisecond for it."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))


def student_t(values: Sequence[float], *, lowest: float, highest: float) -> Interval | None:
    """95 % t-interval of the mean, n - 1 degrees of freedom, clipped; None for fewer than two values."""
    sd = sample_sd(values)
    if sd is None:
        return None
    half = _t_quantile(len(values) - 1) * sd / math.sqrt(len(values))
    centre = mean(values)
    return Interval(max(lowest, centre - half), min(highest, centre + half), "student_t")


def wilson(correct: int, total: int) -> Interval:
    """95 % Wilson score interval of `correct` out of `total`."""
    found = stats.binomtest(correct, total).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high), "wilson")


def summarise(values: Sequence[float], counts: tuple[int, int] | None = None) -> Summary | None:
    """Fractions over seeds; `counts` (correct, total) gives a single value its interval. None for no values."""
    if not values:
        return None
    interval = student_t(values, lowest=0.0, highest=1.0)
    if len(values) == 1 and counts is not None and 0 <= counts[0] <= counts[1] and counts[1] > 0:
        interval = wilson(*counts)
    return Summary(mean(values), sample_sd(values), len(values), interval)


def possible(percent: str, total: int) -> bool:
    """Whether a percentage as printed, "90.19", is a whole number of `total` items to the printed digits.

    Rounded or cut off: the field does both (88.29 for 513 of 581). Speaks of one run: a mean over runs lies between.
    Raises ValueError for text that is no number.
    """
    shown, unit = Fraction(percent), Fraction(1, 10 ** len(percent.partition(".")[2]))
    right = min(total, math.ceil((shown + unit) * total / 100) - 1)  # the largest that is cut off to what is shown
    return right >= 0 and Fraction(100 * right, total) >= shown - unit / 2


def overall(scores: Mapping[str, Mapping[Repeat, float]], datasets: Sequence[str]) -> Summary | None:
    """The mean over datasets of a method's dataset means; scores are {dataset: {repetition: accuracy}}.

    A repetition is a seed, or a fold of a few-shot dataset. None unless every dataset has a score. Spread, n and
    interval come from the repetitions that have all datasets: averaged over datasets each, then a t-interval.
    Repetitions that lack a dataset enter the mean alone.
    """
    if not datasets or not all(scores.get(dataset) for dataset in datasets):
        return None
    score = mean([mean(list(scores[dataset].values())) for dataset in datasets])
    each = list(average_per_repeat(scores, datasets).values())
    return Summary(score, sample_sd(each), len(each), student_t(each, lowest=0.0, highest=1.0))


def average_per_repeat(scores: Mapping[str, Mapping[Repeat, float]], datasets: Sequence[str]) -> dict[Repeat, float]:
    """The average over all datasets, for each repetition that has them all."""
    if not datasets:
        return {}
    repeats = set.intersection(*(set(scores.get(dataset, {})) for dataset in datasets))
    return {repeat: mean([scores[dataset][repeat] for dataset in datasets]) for repeat in sorted(repeats)}


def paired(a: Mapping[Key, float], b: Mapping[Key, float]) -> PairedDifference | None:
    """The difference a - b over the keys (seed, fold, or dataset and seed) that both have; None without any."""
    differences = [a[key] - b[key] for key in a if key in b]
    if not differences:
        return None
    sd = sample_sd(differences)
    interval = student_t(differences, lowest=-1.0, highest=1.0)
    excludes_zero = interval is not None and (interval.low > SAME or interval.high < -SAME)
    return PairedDifference(
        mean=mean(differences),
        sd=sd,
        n=len(differences),
        interval=interval,
        p_value=signed_rank(differences),
        separated=excludes_zero and bool(sd),
    )


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p of an exact paired test (sign flips, signed ranks): 2 ** (1 - n)."""
    return min(1.0, 2.0 ** (1 - pairs))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for a family of tests, in the order given (Holm, Scand. J. Statist. 1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def signed_rank(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed ranks, zeros after Pratt: exact, with ties too, up to `EXACT_PAIRS` pairs."""
    if len(differences) < PAIRS_FOR_P:
        return None
    # Differences that are equal up to rounding must tie in rank.
    rounded = [round(difference, 12) for difference in sorted(differences)]
    if not any(rounded):
        return 1.0
    if len(rounded) > EXACT_PAIRS:
        return float(stats.wilcoxon(rounded, zero_method="pratt").pvalue)
    ranks = _doubled_ranks([abs(difference) for difference in rounded])
    moved = [(rank, difference > 0) for rank, difference in zip(ranks, rounded, strict=True) if difference]
    chances = _chances(tuple(sorted(rank for rank, _ in moved)))
    positive = sum(rank for rank, up in moved if up)
    return min(1.0, 2 * min(math.fsum(chances[: positive + 1]), math.fsum(chances[positive:])))


def _doubled_ranks(sizes: Sequence[float]) -> list[int]:
    """Twice the rank of each size, from the smallest, 1; equal ones share the mean of their ranks."""
    order = sorted(sizes)
    ranks = {size: bisect_left(order, size) + bisect_right(order, size) + 1 for size in set(sizes)}
    return [ranks[size] for size in sizes]


@lru_cache(maxsize=256)
def _chances(ranks: tuple[int, ...]) -> tuple[float, ...]:
    """The chance of every sum of ranks when each counts with probability one half."""
    chances = np.zeros(sum(ranks) + 1)
    chances[0] = 1.0
    for rank in ranks:
        moved = np.zeros_like(chances)
        moved[rank:] = chances[: len(chances) - rank]
        chances = (chances + moved) / 2
    return tuple(chances.tolist())
