"""MLflow shows what the store holds, again and again the same, and never stands in a run's way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import mlflow_runs, tracking
from harness.atomic import write_atomically
from harness.errors import UserError
from harness.result import Compute, Memory, Metrics, Parameters, Result, Time
from harness.store import Store
from harness.text import flatten
from harness.tracking import Synced, start_mirror, sync

SUITE = "tiny"
START = 1_700_000_000.0
IDS = [f"{index:016x}" for index in range(6)]
STATUSES = ["done", "failed", "interrupted", "oom"]
"""Of the first four trials; the fifth runs, the sixth waits."""


def spec(identity: str) -> dict[str, Any]:
    return {
        "format": 1,
        "method": {"name": "lora", "settings": {"rank": 8, "targets": ["attn.qkv"], "note": None}},
        "train": {"epochs": 3, "learning_rate": 5e-4},
        "seed": int(identity, 16),
    }


def write_trial(store: Store, identity: str, status: Any, *, attempt: int = 1, accuracy: float = 0.75) -> None:
    """What a trial of three epochs leaves behind."""
    folder = store.trial(identity)
    (folder.path / "running.json").unlink(missing_ok=True)
    writer = folder.claim(spec(identity), replaces=folder.stamp())
    writer.begin(epochs=3, resumed=None)
    for epoch in range(3):
        writer.log_metrics({"epoch": epoch, "time": START + 100 * attempt + epoch, "train/loss": 1.0 / (epoch + 1)})
    writer.log_metrics({"epoch": 3, "time": START + 100 * attempt + 3, "train/loss": float("nan"), "note": "no number"})
    lease = folder.lease()
    assert lease is not None
    if status == "running":
        lease = lease.model_copy(update={"started": START, "attempt": attempt})
        write_atomically(folder.path / "running.json", lease.model_dump_json())
        return
    (folder.path / "log.txt").write_text("a line\n")
    dates = {"started": "2023-11-14T22:13:20+00:00", "ended": f"2023-11-14T22:{20 + attempt}:00+00:00"}
    result = Result(id=identity, spec=spec(identity), status=status)
    result.attempts = [dates | {"attempt": attempt, "status": status}]
    if status == "done":
        (folder.path / "adapter").mkdir(exist_ok=True)
        (folder.path / "adapter" / "adapter_config.json").write_text("{}")
        writer.write_predictions({"prediction": np.arange(4), "label": np.arange(4)})
        result.metrics = Metrics(accuracy=accuracy, correct=3, total=4)
        result.parameters = Parameters(trainable=1234)
        result.memory = Memory(host_peak=2**31)
        result.time = Time(step=0.25)
        result.compute = Compute(energy=float("inf"))
    else:
        result.error = f"{status}: what went wrong\nand where"
    write_atomically(folder.path / "result.json", result.model_dump_json())
    (folder.path / "running.json").unlink()


def write_index(store: Store, identities: list[str], *, suite: str = SUITE) -> None:
    labels = {"method": "lora", "backbone": "point_mae", "dataset": "sweethome12", "reference": False}
    trials = [labels | {"id": identity, "seed": seed} for seed, identity in enumerate(identities)]
    store.write_suite(name=suite, description="", digest="d1", text="format: 1\n", trials=trials)


@pytest.fixture(autouse=True)
def own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for key, value in mlflow_runs.QUIET.items():
        monkeypatch.setenv(key, value)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A new MLflow database, made once: it takes a second or two."""
    store = Store(tmp_path_factory.mktemp("empty"))
    store.prepare()
    write_index(store, [], suite="other")
    sync(store=store, suite="other", uri=f"sqlite:///{store.output}/mlflow.db")
    return (store.output / "mlflow.db").read_bytes()


@pytest.fixture
def store(tmp_path: Path, empty_database: bytes) -> Store:
    """Six trials, one of each kind, and a leaderboard."""
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    found = Store(tmp_path)
    found.prepare()
    write_index(found, IDS)
    for identity, status in zip(IDS, [*STATUSES, "running"], strict=False):
        write_trial(found, identity, status)
    (tmp_path / SUITE / "report").mkdir()
    (tmp_path / SUITE / "report" / "leaderboard.md").write_text("| method | accuracy |\n")
    return found


def client_of(store: Store) -> Any:
    return mlflow_runs.connect(tracking.tracking_uri(store))


def runs_of(store: Store) -> tuple[Any, dict[str, Any]]:
    """The suite's run, and the trials' by identity."""
    client = client_of(store)
    experiment = client.get_experiment_by_name(SUITE)
    runs = client.search_runs([experiment.experiment_id])
    children = {run.data.tags["harness.trial"]: run for run in runs if "harness.trial" in run.data.tags}
    (parent,) = [run for run in runs if "harness.suite" in run.data.tags]
    assert len(runs) == len(children) + 1
    return parent, children


def everything(store: Store) -> Any:
    parent, children = runs_of(store)
    return [run.to_dictionary() for run in (parent, *(children[identity] for identity in sorted(children)))]


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_importing_does_not_import_mlflow() -> None:
    code = "import sys, harness.tracking; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_shows_what_the_store_holds(store: Store) -> None:
    synced = sync(store=store, suite=SUITE)
    assert (synced.trials, synced.updated, synced.done, synced.failed, synced.running) == (5, 5, 1, 2, 1)
    parent, runs = runs_of(store)
    assert set(runs) == set(IDS[:5])
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in runs.values())
    found = {identity: run.info.status for identity, run in runs.items()}
    assert found == dict(zip(IDS, ["FINISHED", "FAILED", "KILLED", "FAILED", "RUNNING"], strict=False))

    run = runs[IDS[0]]
    assert run.info.run_name == "lora point_mae sweethome12 seed 0"
    assert run.info.start_time == START * 1000
    assert run.data.params["method.settings.rank"] == "8"
    assert run.data.params["method.settings.targets"] == '["attn.qkv"]'
    assert run.data.params["method.settings.note"] == "null"
    assert run.data.metrics == {
        "train/loss": pytest.approx(1 / 3),
        "metrics/accuracy": 0.75,
        "metrics/correct": 3,
        "metrics/total": 4,
        "parameters/trainable": 1234,
        "memory/host_peak": 2**31,
        "time/step": 0.25,
    }
    tags = {"method": "lora", "backbone": "point_mae", "dataset": "sweethome12", "seed": "0"}
    tags |= {"status": "done", "suite_digest": "d1", "attempt": "1"}
    assert tags.items() <= run.data.tags.items()
    assert runs[IDS[1]].data.tags["error"] == "failed: what went wrong"

    client = client_of(store)
    history = client.get_metric_history(run.info.run_id, "train/loss")
    expected = [(epoch, 1 / (epoch + 1), int((START + 100 + epoch) * 1000)) for epoch in range(3)]
    assert [(point.step, point.value, point.timestamp) for point in history] == expected
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"result.json", "spec.json", "predictions.npz", "log.txt", "adapter"}
    path = store.output / "mlartifacts" / SUITE / run.info.run_id / "artifacts" / "adapter" / "adapter_config.json"
    assert path.read_text() == "{}"


def test_the_suite_has_a_summary(store: Store) -> None:
    write_index(store, IDS[:4])
    write_trial(store, IDS[2], "done")
    sync(store=store, suite=SUITE)
    parent, _ = runs_of(store)
    assert parent.info.status == "FINISHED"
    assert {"trials": "4", "done": "2", "failed": "2"}.items() <= parent.data.tags.items()
    assert parent.data.tags["mlflow.note.content"] == "| method | accuracy |\n"
    files = {file.path for file in client_of(store).list_artifacts(parent.info.run_id, "report")}
    assert files == {"report/leaderboard.md"}
    experiment = client_of(store).get_experiment_by_name(SUITE)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_suite_is_described_by_its_summary_and_a_trial_by_its_score(store: Store) -> None:
    write_index(store, IDS[:2])
    (store.output / SUITE / "report" / "summary.md").write_text("short\n" + "a line\n" * 2000)
    sync(store=store, suite=SUITE)
    parent, runs = runs_of(store)
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("short\n") and len(note) <= 5000 and note.endswith("among the artifacts)")
    assert runs[IDS[0]].data.tags["mlflow.note.content"].startswith("done, accuracy **75.00 %** (3 of 4)")
    assert f"harness show trial {IDS[1]}" in runs[IDS[1]].data.tags["mlflow.note.content"]
    assert runs[IDS[1]].data.tags["mlflow.note.content"].startswith("failed\n")


def test_the_kind_that_somebody_chose_for_an_experiment_stays(store: Store) -> None:
    sync(store=store, suite=SUITE)
    client = client_of(store)
    experiment = client.get_experiment_by_name(SUITE)
    client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", "finetuning")
    sync(store=store, suite=SUITE)
    assert client.get_experiment_by_name(SUITE).tags["mlflow.experimentKind"] == "finetuning"


def test_a_second_sync_changes_nothing(store: Store) -> None:
    sync(store=store, suite=SUITE)
    before = everything(store)
    synced = sync(store=store, suite=SUITE)
    assert (synced.trials, synced.updated) == (5, 1), "only the trial that runs is looked at again"
    assert everything(store) == before


def test_a_finished_trial_costs_no_more_calls(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_index(store, IDS[:4])
    sync(store=store, suite=SUITE)
    calls = []

    class Counting:
        """Notes what is asked of MLflow."""

        def __init__(self, client: Any) -> None:
            self.client = client

        def __getattr__(self, name: str) -> Any:
            calls.append(name)
            return getattr(self.client, name)

    monkeypatch.setattr(tracking, "connect", lambda uri: Counting(mlflow_runs.connect(uri)))
    sync(store=store, suite=SUITE)
    assert calls == ["get_experiment_by_name", "search_runs"]


def test_a_retried_trial_keeps_its_run(store: Store) -> None:
    sync(store=store, suite=SUITE)
    _, before = runs_of(store)
    write_trial(store, IDS[1], "done", attempt=2, accuracy=0.5)
    write_trial(store, IDS[0], "running", attempt=2)
    assert sync(store=store, suite=SUITE).updated == 3  # with the one that runs
    _, after = runs_of(store)
    assert {key: run.info.run_id for key, run in after.items()} == {key: r.info.run_id for key, r in before.items()}
    run = after[IDS[1]]
    assert (run.info.status, run.data.metrics["metrics/accuracy"]) == ("FINISHED", 0.5)
    assert (run.data.tags["status"], run.data.tags["attempt"], run.data.tags["error"]) == ("done", "2", "")
    assert run.info.end_time > before[IDS[1]].info.end_time
    assert after[IDS[0]].info.status == "RUNNING"
    write_trial(store, IDS[0], "failed", attempt=3)
    sync(store=store, suite=SUITE)
    run = runs_of(store)[1][IDS[0]]
    assert run.info.status == "FAILED"
    assert np.isnan(run.data.metrics["metrics/accuracy"]), "a number of the attempt before would be a lie"


def test_a_sync_that_broke_off_is_repeated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_runs, "_end", fail)
        with pytest.raises(UserError, match=f"harness sync {SUITE}"):
            sync(store=store, suite=SUITE)
    sync(store=store, suite=SUITE)
    _, runs = runs_of(store)
    history = client_of(store).get_metric_history(runs[IDS[0]].info.run_id, "train/loss")
    assert (runs[IDS[0]].info.status, len(history)) == ("FINISHED", 3)


@pytest.mark.parametrize(
    "words",
    ["(sqlite3.IntegrityError) UNIQUE constraint failed: tags.key", "duplicate key value violates unique constraint"],
)
def test_what_another_machine_wrote_meanwhile_is_written_again(
    words: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    refused: list[str] = []

    def refused_once(call: Callable[..., Any]) -> Callable[..., Any]:
        def once(*given: Any, **named: Any) -> Any:
            if call.__name__ not in refused:
                refused.append(call.__name__)
                raise MlflowException(f"BAD_REQUEST: {words}")
            return call(*given, **named)

        return once

    for name in ("set_tag", "log_batch"):
        monkeypatch.setattr(MlflowClient, name, refused_once(getattr(MlflowClient, name)))
    sync(store=store, suite=SUITE)
    assert sorted(refused) == ["log_batch", "set_tag"]
    assert runs_of(store)[1][IDS[0]].data.tags["harness.synced"]


def test_what_a_server_refuses_for_another_reason_is_not_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    asked = []

    def refuse(*_: object, **__: object) -> None:
        asked.append(1)
        raise MlflowException("no such thing")

    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    with pytest.raises(UserError, match="no such thing"):
        sync(store=store, suite=SUITE)
    assert len(asked) == 1


def test_later_duplicates_go(store: Store) -> None:
    sync(store=store, suite=SUITE)
    parent, runs = runs_of(store)
    tags = {"harness.trial": IDS[0], "mlflow.parentRunId": parent.info.run_id}
    client_of(store).create_run(parent.info.experiment_id, start_time=int(time.time() * 1000), tags=tags)
    sync(store=store, suite=SUITE)
    assert runs_of(store)[1][IDS[0]].info.run_id == runs[IDS[0]].info.run_id


def test_many_and_long_parameters(tmp_path: Path, empty_database: bytes) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_database)
    store = Store(tmp_path)
    store.prepare()
    write_index(store, IDS[:1])
    folder = store.trial(IDS[0])
    settings = {f"key {number}": number for number in range(250)} | {"what?": 1, "long": "x" * 7000}
    writer = folder.claim({"settings": settings})
    for epoch in range(1000):
        writer.log_metrics({"epoch": epoch, "train/loss": epoch, "train/rate": 0.1})
    writer.finish(Result(id=IDS[0], spec={"settings": settings}, status="done"))
    sync(store=store, suite=SUITE)
    run = runs_of(store)[1][IDS[0]]
    assert len(run.data.params) == 252
    assert run.data.params["settings.what_"] == "1"
    attached = run.data.params["settings.long"].removeprefix("attached: ")
    text = (store.output / "mlartifacts" / SUITE / run.info.run_id / "artifacts" / attached).read_text()
    assert text == "x" * 7000
    assert len(client_of(store).get_metric_history(run.info.run_id, "train/rate")) == 1000


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": {}}, "d": [1, None], "e": "text", "f": None, "g": 5e-4}
    assert flatten(nested) == {"a.b": "1", "a.c": "{}", "d": "[1, null]", "e": "text", "f": "null", "g": "0.0005"}


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def test_a_dead_server_is_said_soon(store: Store, closed_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=rf"127.0.0.1:{closed_port} does not answer.*harness sync {SUITE}"):
        sync(store=store, suite=SUITE, uri=f"http://127.0.0.1:{closed_port}")
    assert time.monotonic() - started < 8


def test_a_database_of_another_version_is_said(store: Store) -> None:
    import sqlite3

    with sqlite3.connect(store.output / "mlflow.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'of_tomorrow'")
    connection.close()
    with pytest.raises(UserError, match="another MLflow version; `mlflow db upgrade sqlite:"):
        sync(store=store, suite=SUITE)


def test_a_file_that_is_no_database_is_said_at_once(store: Store) -> None:
    (store.output / "mlflow.db").write_text("these are notes\n" * 100)
    with pytest.raises(UserError, match=r"mlflow.db refuses \(DatabaseError: file is not a database\)"):
        sync(store=store, suite=SUITE)


def test_a_suite_that_never_ran_is_said(store: Store) -> None:
    with pytest.raises(UserError, match="no results of a suite 'other'"):
        sync(store=store, suite="other")


@pytest.mark.slow
def test_two_syncs_at_once_make_one_run_per_trial(store: Store) -> None:
    code = (
        "from pathlib import Path; from harness.store import Store; from harness.tracking import sync\n"
        f"sync(store=Store(Path({str(store.output)!r})), suite={SUITE!r})"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    parent, runs = runs_of(store)
    everything = client_of(store).search_runs([parent.info.experiment_id], run_view_type=3)
    assert len(everything) == len(runs) + 1 == 6, "and none was deleted"


def test_waits_for_the_other_writer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "LOCK_SECONDS", 0.2)
    with tracking._only_writer(store), pytest.raises(UserError, match="another process keeps writing"):
        sync(store=store, suite=SUITE)
    sync(store=store, suite=SUITE)


def test_the_mirror_follows_a_run(store: Store) -> None:
    mirror = start_mirror(store, SUITE)
    try:
        wait_for(lambda: "RUNNING" in shown(store).values())
        assert runs_of(store)[0].info.status == "RUNNING"
        write_trial(store, IDS[4], "done")
        wait_for(lambda: shown(store).get(IDS[4]) == "FINISHED")
        write_trial(store, IDS[5], "done")
    finally:
        synced = mirror.finish()
    assert isinstance(synced, Synced), (synced, mirror.log.read_text())
    assert (synced.trials, synced.done, synced.running) == (6, 3, 0)
    assert shown(store)[IDS[5]] == "FINISHED"
    assert "mlflow.note.content" in runs_of(store)[0].data.tags
    assert isinstance(mirror.finish(), str)
    assert sync(store=store, suite=SUITE).updated == 0


def shown(store: Store) -> dict[str, str]:
    """Status by trial, while the mirror may not have got that far."""
    client = client_of(store)
    experiment = client.get_experiment_by_name(SUITE)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return {run.data.tags.get("harness.trial", SUITE): run.info.status for run in runs}


def test_the_mirror_of_a_dead_server_gives_a_reason(store: Store, closed_port: int) -> None:
    mirror = start_mirror(store, SUITE, uri=f"http://127.0.0.1:{closed_port}")
    reason = mirror.finish(timeout=20)
    assert isinstance(reason, str) and "does not answer" in reason


def test_finishing_takes_no_longer_than_it_may(store: Store) -> None:
    with socket.socket() as silent:  # takes connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        mirror = start_mirror(store, SUITE, uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        reason = mirror.finish(timeout=1)
        assert time.monotonic() - started < 3
    assert isinstance(reason, str) and "within 1 s" in reason


@pytest.mark.slow
def test_the_mirror_dies_with_its_parent(store: Store) -> None:
    code = (
        "import sys, time; from pathlib import Path; from harness.store import Store\n"
        "from harness.tracking import start_mirror\n"
        f"mirror = start_mirror(Store(Path({str(store.output)!r})), {SUITE!r})\n"
        "print(mirror.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    mirror = int(parent.stdout.readline())
    wait_for(lambda: SUITE in shown(store))
    assert alive(mirror)
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    wait_for(lambda: not alive(mirror), seconds=10)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
