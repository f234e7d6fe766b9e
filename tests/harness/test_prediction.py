"""What trials will cost: predicted once for all that cost the same, then from the cache, and equal to what they do."""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import prediction, registry
from harness.children import in_children
from harness.models.point_mae import PointMAE
from harness.prediction import Prediction, Predictions, Unpredictable, key_of, known, predict
from harness.store import Store
from harness.train import run_trial
from harness.trial import Trial
from tests.harness.test_flops import make_trial


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pointpeft-harness" / "predictions"


def with_train(trial: Trial, **changes: Any) -> Trial:
    return replace(trial, train=trial.train.model_copy(update=changes))


def key(trial: Trial, precision: str = "fp32") -> str:
    return key_of(trial, precision=precision)


def test_trials_that_cost_the_same_share_a_key() -> None:
    trial = make_trial("lora")
    pre_trained = PointMAE(**trial.backbone.model_dump() | {"weights": "point_mae_tiny_parts"})
    same = [
        replace(trial, seed=3),
        replace(trial, dataset=registry.get("datasets", "sweethome12_scanlike")),
        replace(trial, backbone=pre_trained),
        with_train(trial, epochs=7, learning_rate=0.1),
    ]
    assert {key(other) for other in same} == {key(trial)}
    other = [
        make_trial("lora", batch=8),
        make_trial("lora", points=256),
        make_trial("adapter"),
        with_train(trial, drop_path=0.0),
        replace(trial, method=type(trial.method)(rank=5)),
        replace(trial, resources=trial.resources.model_copy(update={"processes": 2})),
        replace(trial, protocol=trial.protocol.model_copy(update={"frozen_batchnorm": "batch"})),
    ]
    assert len({key(trial), key(trial, "bf16"), *map(key, other)}) == 2 + len(other)


def test_a_prediction_is_what_the_trial_then_does(tmp_path: Path, cache: Path) -> None:
    trial = make_trial("lora", batch=16)
    found = predict(trial, precision="fp32")
    assert isinstance(found, Prediction) and known(key(trial)) == found
    store = Store(tmp_path)
    store.prepare()
    result = run_trial(trial, store.trial(trial.identity).claim(trial.spec()))
    assert result.status == "done", result.error
    assert result.memory.estimated == found.peak
    assert "memory.estimated" not in result.reasons
    assert (result.compute.flops_forward, result.compute.flops_train) == (found.flops_forward, found.flops_train)
    assert (result.parameters.trainable, result.parameters.total) == (found.trainable, found.total)


def test_what_lies_in_the_cache_is_not_worked_out_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [replace(make_trial(name), seed=seed) for name in ("lora", "linear_probe") for seed in (0, 1)]
    predictions = Predictions(trials, gpu=False)
    assert len(predictions.missing) == 2 and predictions.of(trials[0]) is None
    told: list[tuple[int, int]] = []
    predictions.complete(lambda ready, of: told.append((ready, of)))
    assert told == [(1, 2), (2, 2)] and not predictions.missing
    monkeypatch.setattr(prediction, "in_children", None)
    again = Predictions(trials, gpu=False)
    assert not again.missing
    assert [again.of(trial) for trial in trials] == [predictions.of(trial) for trial in trials]
    assert again.of(trials[0]) == again.of(trials[1]) != again.of(trials[2])
    for file in cache.iterdir():
        file.write_text(file.read_text()[:-9])
    assert len(Predictions(trials, gpu=False).missing) == 2


def test_where_nothing_can_be_kept_predictions_still_come(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the way")
    trial = make_trial("linear_probe")
    assert isinstance(predict(trial, precision="fp32"), Prediction)
    assert known(key(trial)) is None


def test_what_cannot_be_predicted_says_why(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial("lora")

    def impossible(*_: Any, **__: Any) -> None:
        raise RuntimeError("looks at values\nthat are not there")

    monkeypatch.setattr(type(trial.method), "adapt", impossible)
    assert predict(trial, precision="fp32") == Unpredictable("RuntimeError: looks at values")
    assert not cache.exists()


def square(number: int) -> int:
    """What children do in the test below."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@pytest.mark.parametrize("workers", [2, pytest.param(9, marks=pytest.mark.slow)])
def test_a_thing_that_kills_its_process_takes_no_other_along(workers: int) -> None:
    outcomes = dict(in_children(square, range(5), preload="harness.errors", workers=workers))
    assert outcomes == {0: 0, 1: 1, 2: 4, 3: None, 4: 16}
    assert dict(in_children(square, [], preload="harness.errors", workers=workers)) == {}
