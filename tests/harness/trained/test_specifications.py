"""A specification is a trial."""

import json
import re
from dataclasses import replace

import pytest

from harness import registry
from harness.errors import UserError
from harness.settings import Train
from harness.trial import Trial
from tests.harness.test_train import make_trial
from tests.harness.trained.finished import on

METHODS = registry.names("methods")
EVERY_TIME = ("full", "linear_probe", "lora", "dapt", "point_peft")
"""The methods that these tests take every time; the others go with the slow tests."""
SOME = [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


@pytest.mark.parametrize("method", SOME)
def test_a_specification_reads_back(method: str) -> None:
    trial = make_trial(method, seed=3, train=Train(epochs=7, learning_rate=1e-4), keep="none")
    again = Trial.from_spec(json.loads(json.dumps(trial.spec())))
    assert (again.identity, again.spec(), again.method) == (trial.identity, trial.spec(), trial.method)


def test_a_specification_that_is_none_here(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial("lora")
    spec = trial.spec()
    with pytest.raises(UserError, match="baseline 'nearest_neighbour' trains nothing"):
        Trial.from_spec(replace(trial, baseline="nearest_neighbour").spec())
    for section, changes, words in (
        ("method", {"name": "lroa"}, "unknown method 'lroa'; did you mean 'lora'"),
        ("method", {"version": 2}, "method 'lora' is of version 1 here, and version 2 is needed"),
        ("method", {"settings": {"rnk": 3}}, "rnk"),
        ("backbone", {"version": 9}, "backbone 'point_mae' is of version 1 here"),
        ("dataset", {"name": "nope"}, "unknown dataset 'nope'"),
        ("resources", {"processes": 0}, "processes"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            Trial.from_spec(spec | {section: spec[section] | changes})
    with pytest.raises(UserError, match="weights_version would be different here"):
        Trial.from_spec(spec | {"weights_version": 5})
    with pytest.raises(UserError, match="unknown weights 'mine'"):
        Trial.from_spec(make_trial(backbone=on("mine")).spec())
