"""Trials that are for what they cost: predicted where there is no GPU, and like any other where there is one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import registry
from harness.display import leaderboard_table
from harness.measure.latency import latency
from harness.result import Metrics, Result
from harness.run import to_run
from harness.store import Entry, Store, SuiteResults
from harness.suite import load_suite
from harness.tasks import task_of
from harness.train import Training, attempt, run_trial
from harness.trial import Trial
from harness.trial_folder import Onlooker
from tests.harness.test_flops import make_trial


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def of_cost(method: str = "lora") -> Trial:
    few = replace(registry.get("datasets", "synthetic"), train_items=48, test_items=8)
    return replace(make_trial(method, batch=16), dataset=few)


def test_without_a_gpu_it_is_predicted(tmp_path: Path) -> None:
    trial = of_cost()
    store = Store(tmp_path)
    store.prepare()
    result = run_trial(trial, store.trial(trial.identity).claim(trial.spec()))
    assert result.status == "done" and result.task == "cost"
    assert result.memory.estimated and result.compute.flops_train and result.parameters.trainable
    assert result.metrics == Metrics() and result.score is None
    assert (
        "predicted, not run" in result.reasons["time.step"]
        and "predicted, not run" in result.reasons["memory.train_peak"]
    )
    assert set(result.reasons) >= {f"metrics.{key}" for key in Metrics.model_fields}
    assert to_run([trial], store) == [], "and it is not stale"


def test_where_it_runs_it_has_costs_and_no_score(tmp_path: Path) -> None:
    trial = of_cost()
    store = Store(tmp_path)
    store.prepare()
    result = Training(trial, store.trial(trial.identity).claim(trial.spec())).run(None)
    assert result.metrics == Metrics() and result.digests["data"] == task_of(trial.dataset).digest(trial.dataset)
    assert result.time.step and result.time.latency and result.time.latency_32
    assert result.compute.flops_train


def test_its_clouds_are_the_same_every_time(tmp_path: Path) -> None:
    few = of_cost().dataset
    assert isinstance(few, type(registry.get("datasets", "synthetic")))
    train, again = few.load("train", tmp_path), few.load("train", tmp_path)
    assert (train.points == again.points).all() and train.points.shape == (48, 2048, 3)
    assert not (few.load("test", tmp_path).points[:8] == train.points[:8]).all()


def test_the_suite_has_every_batch_size_of_every_method() -> None:
    trials = load_suite("cost").trials
    sizes = {(t.method_label, t.train.batch_size) for t in trials if t.data.points == 2048}
    assert {size for _, size in sizes} == {32, 64, 128, 256, 512} and len(sizes) == 5 * 7
    assert {t.train.batch_size for t in trials if t.data.points == 1024} == {32}


@pytest.mark.parametrize("changes", [{"selection": "paper"}, {"vote": 2}])
def test_what_needs_a_score_is_refused(changes: dict[str, object]) -> None:
    trial = of_cost()
    trial = replace(trial, protocol=trial.protocol.model_copy(update=changes))
    ((field, message),) = task_of(trial.dataset).problems(trial)
    assert field == f"protocol.{next(iter(changes))}" and "no score" in message


def test_the_short_leaderboard_shows_what_there_is(tmp_path: Path) -> None:
    trial = of_cost("linear_probe")
    result = attempt(trial, Onlooker(tmp_path))
    entry = Entry(**trial.row(), result=result)
    table = leaderboard_table(SuiteResults(name="cost", description="", digest="", entries=(entry,)))
    titles = [str(column.header) for column in table.columns]
    assert "GPU, estimated (MB)" in titles and "synthetic" not in titles


def test_latency_is_of_one_pass() -> None:
    passes: list[int] = []

    class Counted(torch.nn.Module):
        def forward(self, clouds: torch.Tensor) -> torch.Tensor:
            passes.append(len(clouds))
            return clouds

    assert latency(Counted(), [torch.zeros(32, 4, 3)]) > 0
    assert passes == [32] * 4


def test_results_of_a_newer_harness_without_their_score_are_read() -> None:
    assert Result(id="0" * 16, spec={}, status="done", task="cost").score is None
