"""Which trials run: those without a result, unfinished ones, those asked for, and those of other data or weights."""

import json
from collections.abc import Sequence
from pathlib import Path

from typer.testing import CliRunner

from harness.cli import app
from harness.result import Result, Status
from harness.run import DigestsAtHand, to_run
from harness.store import Store
from harness.suite import load_suite
from harness.trial import Trial


def finish(store: Store, trial: Trial, status: Status = "done", **digests: str) -> None:
    at_hand = DigestsAtHand()
    right = {"data": at_hand.data(trial.dataset)}
    if trial.backbone.weights != "random":
        right["weights"] = at_hand.weights(trial.backbone.weights)
    writer = store.trial(trial.identity).claim(trial.spec())
    writer.finish(Result(id=trial.identity, spec=trial.spec(), status=status, digests=right | digests))


def left_to_run(trials: Sequence[Trial], store: Store, retry: Sequence[str] = ()) -> list[Trial]:
    return [job.trial for job in to_run(trials, store, retry=retry)]


def test_what_is_left_to_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    trials = load_suite("quickstart").only(["method=lora,nearest_neighbour", "dataset=sweethome12"])
    done, stale, data, baseline = trials
    assert left_to_run(trials, store) == list(trials)
    finish(store, done)
    finish(store, stale, weights="of other weights")
    finish(store, data, data="of other clouds")
    finish(store, baseline)
    assert left_to_run(trials, store) == [stale, data]


def test_unfinished_and_failed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second, third = load_suite("quickstart").only(["method=lora", "dataset=sweethome12"])
    finish(store, first, "interrupted")
    finish(store, second, "lost")
    finish(store, third, "failed")
    assert left_to_run([first, second, third], store) == [first, second]
    assert left_to_run([first, second, third], store, retry=["failed"]) == [first, second, third]


def test_plan_says_what_is_stale(tmp_path: Path) -> None:
    store = Store(tmp_path)
    done, stale, data = load_suite("quickstart").only(["method=lora", "dataset=sweethome12"])
    finish(store, done)
    finish(store, stale, weights="of other weights")
    finish(store, data, data="of other clouds")
    chosen = ["--only", "method=lora", "--only", "dataset=sweethome12", "--output", str(tmp_path)]
    planned = CliRunner().invoke(app, ["plan", "quickstart", *chosen, "--json"])
    assert [trial["status"] for trial in json.loads(planned.stdout)["trials"]] == ["done", "stale", "stale"]
    shown = CliRunner().invoke(app, ["plan", "quickstart", *chosen]).stdout
    assert "1/3" in shown and "stale: 2" in shown
