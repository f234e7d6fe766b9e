"""Statistics over datasets against closed forms, printed examples and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from reports.across import (
    DATASETS_FOR_RANKS,
    alike,
    average_ranks,
    friedman,
    interquartile_mean,
    outcome,
    probability_of_improvement,
    why_no_ranks,
)
from reports.statistics import holm


def test_interquartile_mean_is_scipys_trimmed_mean() -> None:
    draw = np.random.default_rng(0)
    for shape in ((2, 3), (4, 5), (3, 7)):
        scores = draw.uniform(0.5, 0.9, shape)
        found = interquartile_mean(scores.tolist())
        assert found is not None and found.interval is not None
        assert found.value == pytest.approx(stats.trim_mean(scores.ravel(), 0.25))
        assert found.interval.low <= found.value <= found.interval.high


def test_interquartile_interval_against_resampling_run_by_run() -> None:
    """As Agarwal et al. do: indices drawn anew within every dataset, the trimmed mean of each resample."""
    scores = np.random.default_rng(1).normal(0.7, 0.05, (4, 5))
    draw = np.random.default_rng(2)
    values = []
    for _ in range(4_000):
        index = draw.integers(0, 5, (4, 5))
        values.append(stats.trim_mean(np.take_along_axis(scores, index, axis=1).ravel(), 0.25))
    found = interquartile_mean(scores.tolist())
    assert found is not None and found.interval is not None
    low, high = np.quantile(values, [0.025, 0.975])
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=3e-3)


def test_interquartile_mean_of_single_runs_has_no_interval() -> None:
    found = interquartile_mean([[0.5], [0.6], [0.7], [0.8]])
    assert found is not None and found.value == pytest.approx(0.65) and found.interval is None
    assert interquartile_mean([]) is None and interquartile_mean([[0.5], []]) is None


def test_probability_of_improvement_is_mann_whitneys_u() -> None:
    draw = np.random.default_rng(3)
    first, second = draw.normal(0.72, 0.02, (3, 5)), draw.normal(0.71, 0.02, (3, 4))
    second[0, 0] = first[0, 0]  # a tie
    expected = np.mean([stats.mannwhitneyu(a, b).statistic / 20 for a, b in zip(first, second, strict=True)])
    found = probability_of_improvement(first.tolist(), second.tolist())
    assert found is not None and found.interval is not None
    assert found.value == pytest.approx(expected)
    assert found.interval.low <= found.value <= found.interval.high
    other = probability_of_improvement(second.tolist(), first.tolist())
    assert other is not None and other.value == pytest.approx(1 - found.value)


def test_probability_of_improvement_interval_against_all_resamples() -> None:
    a, b = [0.7, 0.74, 0.71], [0.69, 0.73, 0.72]
    values = [
        np.mean([[x > y for y in other] for x in own])
        for own in itertools.product(a, repeat=3)
        for other in itertools.product(b, repeat=3)
    ]
    found = probability_of_improvement([a], [b])
    assert found is not None and found.interval is not None
    low, high = np.quantile(values, [0.025, 0.975])
    assert (found.interval.low, found.interval.high) == pytest.approx((low, high), abs=1e-9)


def test_sure_improvement_and_none() -> None:
    sure = probability_of_improvement([[0.9, 0.91]], [[0.5, 0.6]])
    assert sure is not None and sure.interval is not None
    assert (sure.value, sure.interval.low, sure.interval.high) == (1, 1, 1)
    assert probability_of_improvement([], []) is None and probability_of_improvement([[0.5]], [[]]) is None


def test_a_region_of_practical_equivalence() -> None:
    found = [outcome(d) for d in (0.002, -0.002, 0.0021, -0.0021, 0.0, 0.872 - 0.870)]
    assert found == ["tie", "tie", "win", "loss", "tie", "tie"]


def test_average_ranks_share_ties() -> None:
    means = {"a": [0.9, 0.8, 0.7], "b": [0.9, 0.7, 0.6], "c": [0.1, 0.75, 0.8]}
    assert average_ranks(means) == pytest.approx({"a": (1.5 + 1 + 2) / 3, "b": (1.5 + 3 + 3) / 3, "c": (3 + 2 + 1) / 3})


def test_friedman_in_closed_form() -> None:
    """Without ties: 12 N / k (k + 1) times (sum of squared mean ranks - k (k + 1)^2 / 4), Demšar 2006, eq. 5."""
    draw = np.random.default_rng(4)
    means = {name: draw.uniform(0.5, 0.9, 12).tolist() for name in "abcd"}
    n, k = 12, 4
    ranks = average_ranks(means)
    chi2 = 12 * n / (k * (k + 1)) * (sum(rank**2 for rank in ranks.values()) - k * (k + 1) ** 2 / 4)
    found = friedman(means)
    assert found is not None
    assert found.statistic == pytest.approx(chi2) and found.p_value == pytest.approx(stats.chi2.sf(chi2, k - 1))


@pytest.mark.parametrize(("k", "q"), [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_difference_by_the_printed_table(k: int, q: float) -> None:
    """q at 5 % as Demšar prints it (table 5a)."""
    draw = np.random.default_rng(5)
    found = friedman({k_: draw.uniform(0, 1, 14).tolist() for k_ in range(k)})
    assert found is not None
    assert found.critical_difference == pytest.approx(q * math.sqrt(k * (k + 1) / (6 * 14)), rel=5e-4)


def test_few_datasets_or_methods_have_no_friedman_test_and_a_reason() -> None:
    few = {name: [0.5 + i / 100 for i in range(DATASETS_FOR_RANKS - 1)] for name in "abc"}
    assert friedman(few) is None and "at least 8 datasets" in why_no_ranks(3, 7)
    assert friedman({name: [0.5] * 9 for name in "ab"}) is None and "at least three" in why_no_ranks(2, 9)
    assert friedman({}) is None and why_no_ranks(3, 8) == ""
    flat = friedman({name: [0.5] * 9 for name in "abc"})
    assert flat is not None and flat.p_value == 1


@pytest.mark.parametrize(
    ("ranks", "found"),
    [
        ({"a": 1.0, "b": 1.5, "c": 2.25, "d": 4.0}, [("a", "b"), ("b", "c")]),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, []),
        ({"c": 1.8, "b": 1.2, "a": 1.0}, [("a", "b", "c")]),
        ({"a": 1.0, "b": 1.9, "c": 2.0, "d": 2.8}, [("a", "b"), ("b", "c", "d")]),
        ({"a": 2.0}, []),
    ],
)
def test_groups_that_are_not_told_apart_by_hand(ranks: dict[str, float], found: list[tuple[str, ...]]) -> None:
    """Of a critical difference of 1: a difference of 1 tells apart."""
    assert alike(ranks, 1.0) == found


def test_groups_are_all_largest_sets_within_the_difference() -> None:
    """Against all subsets."""
    draw = np.random.default_rng(3)
    for _ in range(20):
        ranks = {name: float(rank) for name, rank in zip("abcdef", draw.uniform(1, 6, 6), strict=True)}
        close = [
            set(names)
            for size in range(2, 7)
            for names in itertools.combinations(ranks, size)
            if max(ranks[n] for n in names) - min(ranks[n] for n in names) < 1.4
        ]
        largest = [one for one in close if not any(one < other for other in close)]
        assert sorted(map(sorted, largest)) == sorted(map(sorted, alike(ranks, 1.4)))


def test_holm_by_hand() -> None:
    """Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1] and holm([]) == []


def test_holm_rejects_what_stepping_down_rejects() -> None:
    draw = np.random.default_rng(6)
    for _ in range(50):
        p_values = draw.uniform(0, 0.08, 6).tolist()
        rejected = set()
        for place, index in enumerate(np.argsort(p_values)):
            if p_values[index] > 0.05 / (6 - place):
                break
            rejected.add(int(index))
        assert {index for index, p in enumerate(holm(p_values)) if p <= 0.05} == rejected
