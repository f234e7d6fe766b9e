"""What a trial got wrong: counted, ordered, and read from files that may hold anything."""

from __future__ import annotations

import numpy as np
import pytest

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

LABEL = np.array([0, 0, 0, 1, 1, 2, 2, 2], np.int32)
TOLD = np.array([0, 1, 1, 1, 0, 2, 0, 1], np.int32)
SURE = np.array([0.9, 0.4, 0.8, 0.99, 0.5, 0.99, 0.95, 0.3], np.float32)


def test_pairs_are_counted_and_the_most_frequent_come_first() -> None:
    found = confused(Predictions(TOLD, LABEL), 10)
    assert found[0] == Confusion(0, 1, 2) and sum(pair.items for pair in found) == 5
    assert {(p.true, p.predicted) for p in found} == {(0, 1), (1, 0), (2, 0), (2, 1)}
    assert len(confused(Predictions(TOLD, LABEL), 2)) == 2
    assert confused(Predictions(LABEL, LABEL), 3) == [] and worst(Predictions(LABEL, LABEL), 3) == []


def test_the_worst_are_those_that_the_model_was_surest_of_else_those_of_frequent_mistakes() -> None:
    assert worst(Predictions(TOLD, LABEL, SURE), 3) == [6, 2, 4]
    assert worst(Predictions(TOLD, LABEL), 3) == [1, 2, 4], "0 taken for 1 comes twice, the others once"
    unknown = np.where(LABEL == 2, np.nan, SURE).astype(np.float32)
    assert worst(Predictions(TOLD, LABEL, unknown), 3) == [1, 2, 4]


def test_confidence_is_read_where_it_is_stored_and_of_its_shape(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "predictions.npz"
    np.savez(path, prediction=TOLD, label=LABEL, confidence=SURE.astype(np.float16))
    found = read_predictions(path)
    assert found is not None and found.confidence is not None and found.confidence == pytest.approx(SURE, abs=1e-3)
    for strange in (SURE[:3], LABEL, np.array(["a"] * 8)):
        np.savez(path, prediction=TOLD, label=LABEL, confidence=strange)
        found = read_predictions(path)
        assert found is not None and found.confidence is None


def test_parts_are_read_and_what_is_none_is_absent(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "predictions.npz"
    good = {"prediction": np.ones((2, 5), np.uint8), "label": np.ones((2, 5), np.uint8), "category": np.zeros(2, int)}
    np.savez(path, **good)
    assert isinstance(read_part_predictions(path), PartPredictions) and read_predictions(path) is None
    for name, strange in (
        ("label", np.ones((2, 4), np.uint8)),
        ("category", np.zeros(3, int)),
        ("label", np.ones((2, 5))),
        ("prediction", np.full((2, 5), 2**40)),
        ("category", np.array([-1, 0])),
    ):
        np.savez(path, **(good | {name: strange}))
        assert read_part_predictions(path) is None, (name, strange.dtype)
    path.write_bytes(b"PK no")
    assert read_part_predictions(path) is None and read_part_predictions(tmp_path / "none") is None


def test_shape_miou_by_hand() -> None:
    label = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    told = np.array([[0, 1, 1, 1], [2, 2, 2, 2]])
    predictions = PartPredictions(told, label, np.array([0, 1]))
    own = own_parts(predictions)
    assert own.tolist() == [[True, True, False], [False, False, True]]
    assert shape_miou(told, label, own) == pytest.approx([(1 / 2 + 2 / 3) / 2, 1.0])
