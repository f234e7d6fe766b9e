"""Each statistic against its closed form or an independent computation."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from reports.statistics import (
    average_per_repeat,
    median,
    overall,
    paired,
    possible,
    sample_sd,
    signed_rank,
    smallest_p,
    student_t,
    summarise,
    wilson,
)

THREE = [0.741, 0.763, 0.722]


def test_mean_sd_and_t_interval_against_scipy() -> None:
    summary = summarise(THREE)
    assert summary is not None and summary.interval is not None
    assert summary.n == 3
    assert summary.mean == pytest.approx(np.mean(THREE), abs=1e-15)
    assert summary.sd == pytest.approx(np.std(THREE, ddof=1), abs=1e-15)
    expected = stats.t.interval(0.95, 2, loc=np.mean(THREE), scale=stats.sem(THREE))
    assert (summary.interval.low, summary.interval.high) == pytest.approx(expected, abs=1e-12)
    assert summary.interval.kind == "student_t"


def test_t_interval_of_two_values_in_closed_form() -> None:
    """One degree of freedom: the quantile is tan(0.475 pi), half the range times it is the half width."""
    interval = student_t([0.5, 0.52], lowest=0.0, highest=1.0)
    assert interval is not None
    assert interval.high - 0.51 == pytest.approx(math.tan(0.475 * math.pi) * 0.01, rel=1e-9)


def test_interval_is_clipped_to_fractions() -> None:
    interval = student_t([0.02, 0.98], lowest=0.0, highest=1.0)
    assert interval is not None and (interval.low, interval.high) == (0.0, 1.0)


def test_wilson_in_closed_form() -> None:
    correct, total = 104, 139
    z, p = stats.norm.ppf(0.975), correct / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    found = wilson(correct, total)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-12)


def test_one_value_gets_wilson_or_nothing() -> None:
    with_counts, without = summarise([104 / 139], (104, 139)), summarise([104 / 139])
    assert with_counts is not None and with_counts.interval == wilson(104, 139)
    assert with_counts.sd is None and with_counts.n == 1
    assert without is not None and without.interval is None
    assert summarise([0.0], (0, 0)) is not None  # no test item: a score without an interval


def test_nothing_gives_nothing() -> None:
    assert summarise([]) is None
    assert sample_sd([0.5]) is None
    assert paired({0: 0.5}, {1: 0.5}) is None


def test_order_of_values_changes_no_bit() -> None:
    values = [random.Random(3).random() for _ in range(9)]
    reference = summarise(values)
    for seed in range(20):
        shuffled = random.Random(seed).sample(values, len(values))
        assert summarise(shuffled) == reference


def test_median() -> None:
    assert median([3.0, 1.0, 2.0]) == 2.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5


def test_paired_uses_common_pairs_only() -> None:
    a = {("x", 0): 0.70, ("x", 1): 0.72, ("x", 2): 0.74, ("y", 0): 0.10}
    b = {("x", 0): 0.65, ("x", 1): 0.69, ("x", 2): 0.68, ("z", 0): 0.99}
    found = paired(a, b)
    differences = [0.05, 0.03, 0.06]
    assert found is not None and found.interval is not None
    assert found.n == 3
    assert found.mean == pytest.approx(np.mean(differences))
    test = stats.ttest_rel([0.70, 0.72, 0.74], [0.65, 0.69, 0.68]).confidence_interval(0.95)
    assert (found.interval.low, found.interval.high) == pytest.approx((test.low, test.high))
    assert found.separated and test.low > 0


def test_separated_exactly_when_the_interval_excludes_zero() -> None:
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(200):
        a, b = rng.normal(0.75, 0.02, 3), rng.normal(0.72, 0.02, 3)
        found = paired(dict(enumerate(a)), dict(enumerate(b)))
        assert found is not None
        assert found.separated == (stats.ttest_rel(a, b).pvalue < 0.05)
        verdicts.add(found.separated)
    assert verdicts == {True, False}


def test_equal_differences_are_not_called_separated() -> None:
    found = paired({0: 0.7, 1: 0.8, 2: 0.9}, {0: 0.6, 1: 0.7, 2: 0.8})
    assert found is not None and found.mean == pytest.approx(0.1)
    assert found.sd == 0 and not found.separated


def test_one_pair_has_no_interval() -> None:
    found = paired({0: 0.9}, {0: 0.1})
    assert found is not None and found.interval is None and not found.separated


@pytest.mark.parametrize("pairs", [2, 3, 5])
def test_no_p_value_below_six_pairs(pairs: int) -> None:
    found = paired({i: 0.7 + i / 100 for i in range(pairs)}, {i: 0.1 for i in range(pairs)})
    assert found is not None and found.p_value is None
    assert smallest_p(pairs) > 0.05


def test_p_value_of_six_pairs_is_the_exact_one() -> None:
    """All six differences positive and distinct: p = 2 / 2 ** 6."""
    found = paired({i: 0.7 + i / 100 for i in range(6)}, {i: 0.5 for i in range(6)})
    assert found is not None and found.p_value == pytest.approx(2 / 64)
    assert smallest_p(6) == 2 / 64
    same = paired({i: 0.5 for i in range(6)}, {i: 0.5 for i in range(6)})
    assert same is not None and same.p_value == 1.0


def test_overall_is_the_mean_of_dataset_means_and_pairs_by_seed() -> None:
    scores = {"x": {0: 0.7, 1: 0.8, 2: 0.75}, "y": {0: 0.5, 1: 0.4, 2: 0.51}}
    found = overall(scores, ["x", "y"])
    per_seed = [0.6, 0.6, 0.63]
    assert found is not None and found.interval is not None
    assert found.mean == pytest.approx((0.75 + 0.47) / 2)
    assert found.sd == pytest.approx(np.std(per_seed, ddof=1))
    expected = stats.t.interval(0.95, 2, loc=np.mean(per_seed), scale=stats.sem(per_seed))
    assert (found.interval.low, found.interval.high) == pytest.approx(expected)
    assert average_per_repeat(scores, ["x", "y"]) == pytest.approx(dict(enumerate(per_seed)))


def test_overall_needs_every_dataset_and_says_how_many_seeds_are_whole() -> None:
    assert overall({"x": {0: 0.7}}, ["x", "y"]) is None
    assert overall({"x": {0: 0.7}, "y": {}}, ["x", "y"]) is None
    assert overall({}, []) is None
    found = overall({"x": {0: 0.7, 1: 0.8}, "y": {0: 0.5}}, ["x", "y"])
    assert found is not None
    assert found.mean == pytest.approx((0.75 + 0.5) / 2)
    assert (found.n, found.sd, found.interval) == (1, None, None)
    apart = overall({"x": {0: 0.7}, "y": {1: 0.5}}, ["x", "y"])
    assert apart is not None and apart.n == 0 and apart.interval is None


@pytest.mark.parametrize(
    ("percent", "total", "right"),
    [
        ("90.19", 581, 524),  # OBJ_BG
        ("91.05", 581, 529),
        ("88.29", 581, 513),  # cut off, not rounded
        ("85.08", 2882, 2452),  # PB_T50_RS
        ("84.94", 2882, 2448),
        ("94.0", 2468, 2320),  # ModelNet40
        ("93.23", 2468, 2301),
        ("100", 581, 581),
        ("0.00", 2468, 0),
    ],
)
def test_what_a_test_set_can_give(percent: str, total: int, right: int) -> None:
    unit = 10.0 ** -len(percent.partition(".")[2])
    assert -unit / 2 <= 100 * right / total - float(percent) < unit
    assert possible(percent, total)


@pytest.mark.parametrize(
    ("percent", "total"),
    [("90.20", 581), ("91.00", 581), ("85.10", 2882), ("93.21", 2468), ("100.17", 581), ("-0.17", 581)],
)
def test_what_a_test_set_cannot_give(percent: str, total: int) -> None:
    assert not possible(percent, total)


@pytest.mark.parametrize("total", [581, 2882, 2468, 135])
def test_every_count_can_be_rounded_or_cut_off_and_nothing_else_can(total: int) -> None:
    exact = [Fraction(100 * right, total) for right in range(total + 1)]
    shown = {f"{float(share):.2f}" for share in exact} | {f"{math.floor(100 * share) / 100:.2f}" for share in exact}
    assert {text for step in range(10001) if possible(text := f"{step / 100:.2f}", total)} == shown
    assert all(possible(f"{float(share):.8f}", total) and possible(f"{float(share):.1f}", total) for share in exact)


def test_signed_ranks_are_scipys_where_scipy_is_exact() -> None:
    """Without ties up to 50 pairs; with ties and zeros up to 13, where scipy tries all signs."""
    draw = np.random.default_rng(0)
    for n in (6, 9, 20, 50):
        values = draw.normal(0.3, 1, n)
        assert signed_rank(values) == pytest.approx(stats.wilcoxon(values, zero_method="pratt").pvalue, rel=1e-9)
    for values in ([1, 1, -1, 2, 0, 3, 0], [1, 2, 2, -2, 3, 4, 4, -1], [-1] * 7, [0, 0, 0, 0, 0, 5.0]):
        expected = stats.wilcoxon(np.asarray(values, dtype=float), zero_method="pratt").pvalue
        assert signed_rank(values) == pytest.approx(expected, rel=1e-9)


def test_more_pairs_than_are_exact() -> None:
    assert 0 < (signed_rank(np.random.default_rng(1).normal(0.1, 1, 60)) or 0) < 1
