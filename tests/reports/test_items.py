"""Noise of test items against closed forms; predictions files that are not what they should be."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from harness.mistakes import LARGEST, Predictions, read_predictions
from reports.items import compare_items, mcnemar


def model(right: list[int], labels: list[int] | None = None) -> Predictions:
    label = np.asarray(labels if labels is not None else [0] * len(right), dtype=np.int32)
    return Predictions(np.where(np.asarray(right, dtype=bool), label, label + 1).astype(np.int32), label)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 1), (1, 5), (10, 2), (8, 8)])
def test_mcnemar_in_closed_form(b: int, c: int) -> None:
    """Twice the tail of a fair coin over the items that only one of them got right, at most 1."""
    n = b + c
    tail = sum(math.comb(n, k) for k in range(min(b, c) + 1)) / 2**n
    assert mcnemar(b, c) == pytest.approx(min(1.0, 2 * tail))


def test_interval_over_items_is_that_of_paired_proportions() -> None:
    """One seed: variance (b + c - (b - c)^2 / N) / N of the difference of paired proportions (N - 1 for N)."""
    right = {"both": 60, "first": 12, "second": 5, "none": 23}
    a = model([1] * 60 + [1] * 12 + [0] * 5 + [0] * 23)
    b = model([1] * 60 + [0] * 12 + [1] * 5 + [0] * 23)
    n = sum(right.values())
    found = compare_items({(0, None): a}, {(0, None): b})
    assert found is not None and found.interval is not None
    assert found.mean == pytest.approx(7 / n) and found.items == n
    [seed] = found.seeds
    assert (seed.seed, seed.first_only, seed.second_only) == (0, 12, 5) and seed.p_value == mcnemar(12, 5)
    variance = (17 - 49 / n) / (n - 1)
    half = stats.norm.ppf(0.975) * math.sqrt(variance / n)
    assert (found.interval.low, found.interval.high) == pytest.approx((0.07 - half, 0.07 + half))


def test_seeds_are_averaged_by_item_first() -> None:
    first = {(0, None): model([1, 1, 0, 0]), (1, None): model([1, 0, 1, 0])}
    second = {(0, None): model([0, 1, 0, 0]), (1, None): model([0, 0, 1, 1]), (2, None): model([1, 1, 1, 1])}
    found = compare_items(first, second)
    assert found is not None and found.interval is not None and len(found.seeds) == 2
    each = [1, 0, 0, -0.5]
    assert found.mean == pytest.approx(np.mean(each))
    half = stats.norm.ppf(0.975) * np.std(each, ddof=1) / 2
    assert found.interval.high == pytest.approx(np.mean(each) + half)


def test_folds_have_items_of_their_own_and_so_no_interval() -> None:
    first = {(0, 0): model([1, 0], [0, 1]), (0, 1): model([1, 1], [2, 2])}
    second = {(0, 0): model([0, 0], [0, 1]), (0, 1): model([1, 0], [2, 2])}
    found = compare_items(first, second)
    assert found is not None and found.interval is None and found.mean == 0.5 and len(found.seeds) == 2


def test_other_test_sets_are_not_compared() -> None:
    assert compare_items({(0, None): model([1, 0], [0, 1])}, {(0, None): model([1, 0], [1, 1])}) is None
    assert compare_items({(0, None): model([1])}, {(1, None): model([1])}) is None


def test_predictions_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    np.savez(path, prediction=np.array([1, 2, 3], np.int16), label=np.array([1, 2, 2], np.int16))
    found = read_predictions(path)
    assert found is not None and found.right.tolist() == [True, True, False]


class Trap:
    """Unpickling it would be seen."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a predictions file ran code",))


def damaged() -> dict[str, bytes]:
    def saved(**columns: object) -> bytes:
        content = io.BytesIO()
        np.savez_compressed(content, **columns)  # type: ignore[arg-type]
        return content.getvalue()

    one = np.zeros(3, np.int16)
    return {
        "no archive": b"PK nothing",
        "empty": b"",
        "no label": saved(prediction=one),
        "other lengths": saved(prediction=one, label=np.zeros(4, np.int16)),
        "points": saved(prediction=np.zeros((3, 5), np.int16), label=np.zeros((3, 5), np.int16)),
        "fractions": saved(prediction=one.astype(float), label=one),
        "objects": saved(prediction=np.array([Trap()] * 3, dtype=object), label=one),
        "negative": saved(prediction=one, label=one - 1),
        "no items": saved(prediction=one[:0], label=one[:0]),
        "a bomb": saved(prediction=np.zeros(LARGEST, np.int16), label=np.zeros(LARGEST, np.int16)),
    }


@pytest.mark.parametrize("what", list(damaged()))
def test_damaged_predictions_are_absent(what: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    path.write_bytes(damaged()[what])
    assert read_predictions(path) is None
    assert read_predictions(tmp_path / "none.npz") is None
