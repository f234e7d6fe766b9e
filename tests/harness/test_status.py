"""Where a suite stands, from the disk alone; what `status`, `logs` and `clean` show and remove."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.result import Metrics, Result, Time
from harness.run import remember_suite
from harness.status import suite_status
from harness.store import Store
from harness.suite import Suite, load_suite
from harness.trial import Trial
from harness.trial_folder import ADAPTER, CHECKPOINT, TrialWriter

SETTINGS = ["train.epochs=10", "seeds=2"]


@pytest.fixture
def suite() -> Suite:
    return load_suite("quickstart", SETTINGS)


@pytest.fixture
def store(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    store = Store(Path("results"))
    store.prepare()
    arguments = ["quickstart", *(word for setting in SETTINGS for word in ("--set", setting)), "--output", "results"]
    remember_suite(suite, store, chosen=suite.only(["method=lora"]), command=arguments)
    return store


def lora(suite: Suite) -> list[Trial]:
    return list(suite.only(["method=lora"]))


def claim(store: Store, trial: Trial) -> TrialWriter:
    return store.trial(trial.identity).claim(trial.spec())


def finish(store: Store, trial: Trial, **fields: Any) -> None:
    claim(store, trial).finish(Result(id=trial.identity, spec=trial.spec(), **({"status": "done"} | fields)))


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_counts_best_and_time_left(store: Store, suite: Suite) -> None:
    first, second, third, fourth = lora(suite)
    finish(store, first, metrics=Metrics(accuracy=0.7), time=Time(total=20.0))
    finish(store, second, metrics=Metrics(accuracy=0.6), time=Time(total=10.0))
    writer = claim(store, third)
    writer.begin(epochs=10, resumed=None)
    writer.progress(4)
    status = suite_status(store, "quickstart")
    assert status.statuses == {"done": 2, "running": 1, "waiting": len(suite.trials) - 3}
    cell = status.cells["lora", "point_mae", first.dataset.name]
    assert (cell.trials, cell.done, cell.running, cell.best) == (2, 2, 0, 0.7)
    # the chosen trials alone: 6 of 10 epochs of one, and one whole, on one slot, 15 s each
    assert status.seconds_left == pytest.approx(0.6 * 15 + 15)
    assert fourth.identity not in {entry.id for entry, _ in status.running}


def test_time_left_is_unknown_when_nothing_runs(store: Store, suite: Suite) -> None:
    finish(store, lora(suite)[0], time=Time(total=20.0))
    assert suite_status(store, "quickstart").seconds_left is None


def test_failures_are_grouped_by_cause(store: Store, suite: Suite) -> None:
    first, second, third, fourth = lora(suite)
    finish(store, first, status="oom", error="out of memory: tried to allocate 1.50 GiB")
    finish(store, second, status="oom", error="out of memory: tried to allocate 2.25 GiB")
    finish(store, third, status="failed", error="ValueError: no\nTraceback …")
    finish(store, fourth, status="interrupted", error="interrupted")
    status = suite_status(store, "quickstart")
    assert [(cause.status, len(cause.entries)) for cause in status.causes] == [("oom", 2), ("failed", 1)]
    assert status.retry == (
        "harness run quickstart --set train.epochs=10 --set seeds=2 --output results --retry failed,oom"
    )
    shown = invoke("status", "quickstart")
    assert "2 x oom" in shown and f"harness logs {first.identity}" in shown and str(status.retry) in shown
    parsed = json.loads(invoke("status", "quickstart", "--json"))
    assert parsed["failures"][0]["trials"] == [first.identity, second.identity]
    assert parsed["statuses"]["interrupted"] == 1


def test_what_vanished_is_tried_again_without_being_asked(store: Store, suite: Suite) -> None:
    finish(store, lora(suite)[0], status="lost", error="it vanished")
    assert str(suite_status(store, "quickstart").retry).endswith("--output results")


def test_watching_ends_when_no_run_goes_on(store: Store, suite: Suite) -> None:
    finish(store, lora(suite)[0], metrics=Metrics(accuracy=0.7))
    assert "a run goes on" in invoke("status"), "that of this process"
    index = Path("results/quickstart/suite.json")
    index.write_text(index.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {2**22 + 1}'))
    shown = invoke("status", "--watch")
    assert "70.0 %" in shown
    assert "no run goes on; this takes up what is left: harness run quickstart --set train.epochs=10" in shown


def test_logs(store: Store, suite: Suite) -> None:
    trial = lora(suite)[0]
    finish(store, trial, status="failed", error="ValueError: no\nTraceback …")
    (store.trial(trial.identity).path / "log.txt").write_text("a warning\n")
    shown = invoke("logs", trial.identity[:6])
    for words in (trial.identity, trial.name, "attempt 1: failed", "ValueError: no", "Traceback …", "a warning"):
        assert words in shown


def test_clean(store: Store, suite: Suite) -> None:
    ended, interrupted, running, _ = lora(suite)
    unlisted = replace(ended, seed=77)
    for trial in (ended, interrupted, unlisted):
        writer = claim(store, trial)
        writer.write_file(CHECKPOINT, b"1234")
        writer.write_file(ADAPTER, b"12")
        status: Any = "interrupted" if trial is interrupted else "done"
        writer.finish(Result(id=trial.identity, spec={}, status=status))
    claim(store, running).write_file(CHECKPOINT, b"12")
    stray = store.trial(ended.identity).path / ".result.json.xyz"
    stray.write_text("half")

    def left() -> set[str]:
        return {str(path.relative_to("results/trials")) for path in Path("results/trials").rglob("*.safetensors")}

    everything = left()
    assert "would free" in invoke("clean", "--checkpoints", "--dry-run")
    assert left() == everything and stray.exists()
    invoke("clean")
    assert left() == everything and not stray.exists(), "a retry may go on from any checkpoint"
    invoke("clean", "--checkpoints")
    gone = {f"{trial.identity}/{CHECKPOINT}" for trial in (ended, unlisted)}
    assert left() == everything - gone
    invoke("clean", "--unlisted")
    assert not store.trial(unlisted.identity).path.exists()
    invoke("clean", "--adapters")
    assert left() == {
        f"{interrupted.identity}/{CHECKPOINT}", f"{interrupted.identity}/{ADAPTER}", f"{running.identity}/{CHECKPOINT}"
    }  # fmt: skip
    assert store.trial(ended.identity).result() is not None


def test_a_reporter_that_fails_takes_no_other_down(store: Store, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import registry
    from harness.reporting import write_reports

    def broken(results: Any, path: Path) -> None:
        raise ZeroDivisionError("oh")

    real = registry.get
    monkeypatch.setattr(registry, "names", lambda kind: ["csv", "broken", "md"])
    monkeypatch.setattr(registry, "get", lambda kind, name: broken if name == "broken" else real(kind, name))
    finish(store, lora(suite)[0], metrics=Metrics(accuracy=0.7, correct=7, total=10))
    paths, problems = write_reports(store, "quickstart")
    assert [path.suffix for path in paths] == [".csv", ".md"]
    assert len(problems) == 1 and "reporter 'broken' failed: ZeroDivisionError: oh" in problems[0]


def test_what_killed_runs_left_elsewhere_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.cleaning import scratch_prefix, sweep_scratch

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = [f"{scratch_prefix()}y", "z", f"harness-tune-{'9' * 24}-x", "harness-tune-²-x"]
    kept = [tmp_path / name for name in names]
    for folder in (tmp_path / f"harness-tune-{2**22 + 1}-x", *kept):
        folder.mkdir()
    sweep_scratch()
    assert sorted(tmp_path.iterdir()) == sorted(kept)
