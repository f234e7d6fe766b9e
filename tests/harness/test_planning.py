"""The plan of a suite: work, memory, time and disk."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.hardware import GPUS, Hardware, find_gpu
from harness.planning import Planner, evaluations, makespan, steps, total
from harness.prediction import Predictions
from harness.result import Compute, Result, Time
from harness.settings import Resources
from harness.sharing import at_once
from harness.store import Store
from harness.trial import Trial
from tests.harness.test_cli import harness
from tests.harness.test_flops import make_trial


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def with_protocol(trial: Trial, **changes: object) -> Trial:
    return replace(trial, protocol=trial.protocol.model_copy(update=changes))


def test_steps_and_evaluations_are_those_of_the_training() -> None:
    trial = make_trial("lora", batch=16)
    trial = replace(trial, train=trial.train.model_copy(update={"epochs": 10}))
    train, test = trial.dataset.train_items, trial.dataset.test_items
    assert (steps(trial), evaluations(trial)) == (10 * (train // 16), test)
    assert evaluations(with_protocol(trial, vote=10)) == 11 * test
    assert evaluations(with_protocol(trial, selection="paper")) == 11 * test
    chosen = with_protocol(trial, selection="validation", validation_fraction=0.25)
    assert evaluations(chosen) == test + 10 * round(train * 0.25)
    assert steps(chosen) == 10 * ((train - round(train * 0.25)) // 16)


def test_a_cost_is_the_counted_work_at_an_assumed_speed_or_at_that_of_an_equal_trial(tmp_path: Path) -> None:
    gpu, store = Hardware("Some GPU", 10**10, {"fp32": 1e12}), Store(tmp_path)
    first, second = make_trial("linear_probe"), replace(make_trial("linear_probe"), seed=1)
    predictions = Predictions([first, second], gpu=True)
    unknown = Planner(predictions, hardware=gpu, store=store)
    assert unknown.cost(first).flops is None
    assert total([first], [unknown.cost(first)], slots=1).unknown == 1
    predictions.complete()
    cost = Planner(predictions, hardware=gpu, store=store).cost(second)
    assert cost.flops_step is not None and cost.flops is not None and cost.memory is not None
    assert cost.flops > steps(second) * cost.flops_step
    assert cost.seconds == pytest.approx(cost.flops / 0.2e12) and not cost.measured
    assert cost.at_once == at_once(cost.memory, 10**10)
    ran = Result(
        id=first.identity,
        spec=first.spec(),
        status="done",
        environment={"gpu": "Some GPU"},
        compute=Compute(flops_forward=0, flops_train=1000),
        time=Time(total=7.0),
    )
    store.trial(first.identity).claim(first.spec()).finish(ran)
    measured = Planner(predictions, hardware=gpu, store=store).cost(second)
    assert measured.measured and measured.seconds == pytest.approx(cost.flops / (1000 * steps(first) / 7))
    elsewhere = Planner(predictions, hardware=replace(gpu, name="Another"), store=store).cost(second)
    assert not elsewhere.measured


def test_blocks_that_run_again_take_time(tmp_path: Path) -> None:
    """But are no arithmetic of the model's; and a linear probe has none."""
    trials = [
        replace(make_trial(method), resources=Resources(activation_checkpointing=again))
        for method in ("lora", "linear_probe")
        for again in (False, True)
    ]
    predictions = Predictions(trials, gpu=True)
    predictions.complete()
    planner = Planner(predictions, hardware=Hardware("Some GPU", 10**10, {"fp32": 1e12}), store=Store(tmp_path))
    lora, lora_again, probe, probe_again = map(planner.cost, trials)
    assert lora.flops == lora_again.flops and probe.flops == probe_again.flops
    assert lora.seconds is not None and lora_again.seconds is not None
    assert 1 < lora_again.seconds / lora.seconds < 1.5 and probe.seconds == probe_again.seconds


def test_the_whole_is_the_longest_first_on_the_slots() -> None:
    assert makespan([5, 4, 3, 3, 1], slots=2) == 8
    assert makespan([4, 3], slots=5) == 4
    assert makespan([], slots=3) == 0


def test_gpus_are_found_by_any_spelling() -> None:
    assert find_gpu("rtx-3090") is GPUS["RTX 3090"] and find_gpu("h100") is GPUS["H100"]
    with pytest.raises(UserError, match="T4, V100"):
        find_gpu("H101")


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """What is missing is said, worked out on demand, and comes from the cache afterwards."""
    only = ("--only", "method=lora,vpt", "--only", "dataset=sweethome12", "--json")
    nothing = harness("plan", "quickstart", *only[:-1], "--gpu", "A100", cwd=tmp_path).stdout
    assert "--estimate works them out" in nothing and "hours" not in nothing and "FLOP" not in nothing
    before = json.loads(harness("plan", "quickstart", *only, cwd=tmp_path).stdout)
    assert before["unpredicted"] == 2 and before["cost"]["to_run"]["unknown"] == len(before["trials"])
    for words in (("--gpu", "A100", "--gpus", "2", "--estimate"), ("--gpu", "A100", "--gpus", "2")):
        plan = json.loads(harness("plan", "quickstart", *only, *words, cwd=tmp_path).stdout)
        assert plan["unpredicted"] == 0
        sums = plan["cost"]["to_run"]
        assert sums["trials"] == len(plan["trials"]) and sums["unknown"] == 0
        assert sums["processor_seconds"] / 2 <= sums["wall_seconds"] <= sums["processor_seconds"]
    here = harness("plan", "quickstart", *only[:-1], "--on", "this", cwd=tmp_path)
    assert "estimated:" in here.stdout and "to run: " in here.stdout
    for words in (("--gpu", "H101"), ("--gpu", "H100", "--on", "this"), ("--on", "that")):
        refused = harness("plan", "quickstart", *words, cwd=tmp_path)
        assert refused.returncode == 2 and "Traceback" not in refused.stderr


LARGE = """\
format: 1
name: large
seeds: 1
datasets: [synthetic]
backbones: {point_mae: {preset: tiny, depth: 24}}
methods: {full: {}}
train: {epochs: 1, warmup_epochs: 0, batch_size: 5120}
"""


def test_what_does_not_fit_is_said_and_how_it_may(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text(LARGE)
    words = ("plan", "large.yaml", "--gpu", "T4", "--estimate")
    assert "predicted too large for this GPU: 1 trial; take" in " ".join(harness(*words, cwd=tmp_path).stdout.split())
    again = harness(*words, "--set", "resources.activation_checkpointing=true", cwd=tmp_path).stdout
    assert "hours" in again and "too large" not in again
