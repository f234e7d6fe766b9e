"""Bootstraps against the sum over all resamples, scipy, and the coverage that makes Student's t the headline."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from scipy import stats

from reports.resampling import EXACT, all_resamples, bootstrap_mean, stratified_mean
from reports.statistics import student_t


@pytest.mark.parametrize("values", [[0.7, 0.8], [0.71, 0.74, 0.72], [0.5, 0.9, 0.7, 0.71], [0.1, 0.2, 0.2, 0.4, 0.9]])
def test_few_values_are_resampled_in_all_ways(values: list[float]) -> None:
    means = np.sort([np.mean(picked) for picked in itertools.product(values, repeat=len(values))])
    found = bootstrap_mean(values)
    assert found is not None and found.kind == "bootstrap"
    assert found.low == pytest.approx(means[int(np.ceil(0.025 * len(means))) - 1], abs=1e-12)
    assert found.high == pytest.approx(means[int(np.ceil(0.975 * len(means))) - 1], abs=1e-12)


@pytest.mark.parametrize("n", range(2, EXACT + 1))
def test_chances_of_all_resamples_sum_to_one(n: int) -> None:
    counts, chances = all_resamples(n)
    assert chances.sum() == pytest.approx(1) and (counts.sum(axis=1) == n).all()
    assert (chances @ counts) == pytest.approx(np.ones(n)), "every value is drawn once on average"


def test_many_values_agree_with_scipy() -> None:
    values = np.random.default_rng(0).normal(0.75, 0.02, 30)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    found = bootstrap_mean(values.tolist())
    assert found is not None
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=5e-4)


def test_order_of_values_changes_no_bit() -> None:
    for n in (4, 20):
        values = [random.Random(3).gauss(0.7, 0.1) for _ in range(n)]
        assert {bootstrap_mean(random.Random(k).sample(values, n)) for k in range(10)} == {bootstrap_mean(values)}


def test_one_value_has_no_bootstrap() -> None:
    assert bootstrap_mean([0.5]) is None
    assert stratified_mean([[0.5, 0.6], [0.7]]) is None and stratified_mean([]) is None


def test_strata_are_resampled_by_themselves() -> None:
    """Strata far apart, without spread inside: pooled, the interval would be wide; by strata it has no width."""
    found = stratified_mean([[0.2, 0.2, 0.2], [0.9, 0.9]])
    assert found is not None and (found.low, found.high) == pytest.approx((0.55, 0.55))


def test_stratified_mean_against_the_sum_over_all_resamples() -> None:
    strata = [[0.01, 0.03, 0.08], [-0.02, 0.05, 0.02], [0.0, 0.04, 0.01]]
    each = [[np.mean(picked) for picked in itertools.product(values, repeat=3)] for values in strata]
    means = [np.mean(picked) for picked in itertools.product(*each)]
    found = stratified_mean(strata)
    assert found is not None
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=2e-3)


def test_over_three_seeds_the_bootstrap_is_too_narrow_and_student_t_is_not() -> None:
    """Why tables lead with Student's t: how often each interval holds the true mean."""
    draw = np.random.default_rng(0)
    held = {"t": 0, "bootstrap": 0}
    for _ in range(1_000):
        values = draw.normal(0.5, 0.02, 3).tolist()
        t, bootstrap = student_t(values, lowest=0, highest=1), bootstrap_mean(values)
        assert t is not None and bootstrap is not None
        held["t"] += t.low <= 0.5 <= t.high
        held["bootstrap"] += bootstrap.low <= 0.5 <= bootstrap.high
    assert held["t"] / 1_000 == pytest.approx(0.95, abs=0.02)
    assert held["bootstrap"] / 1_000 < 0.8
