"""The store: whole files or none, and damaged results are no results."""

import os
import time
from pathlib import Path

import pytest

from harness.atomic import write_atomically
from harness.errors import UserError
from harness.result import Result
from harness.store import Store
from harness.trial_folder import SILENCE, Finished, LeaseLost, Taken, TrialFolder

pytestmark = pytest.mark.faults


def result(identity: str = "abc", **changes: object) -> Result:
    return Result(id=identity, spec={"seed": 0}, status="done", **changes)  # type: ignore[arg-type]


def test_a_result_comes_back_as_written(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "abc")
    writer = folder.claim({"seed": 0})
    assert folder.running() is not None
    written = result(error="ä\n<b>")
    writer.finish(written)
    assert folder.result() == written
    assert [attempt["status"] for attempt in written.attempts] == ["done"]
    assert folder.lease() is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"id": "abc"}', '{"id": "other", "spec": {}, "status": "done"}'])
def test_damaged_results_do_not_count(content: str, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "abc")
    folder.claim({})
    (folder.path / "result.json").write_text(content)
    assert folder.result() is None


def test_a_lease_is_held_by_a_live_process(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "abc")
    writer = folder.claim({})
    with pytest.raises(Taken):
        folder.claim({})
    running = folder.path / "running.json"
    lease = folder.lease()
    assert lease is not None
    running.write_text(lease.model_copy(update={"created": "another boot 1"}).model_dump_json())
    second = folder.claim({})  # the number is another process's by now
    for write in (
        lambda: writer.progress(1),
        lambda: writer.log_metrics({"epoch": 0}),
        lambda: writer.write_file("checkpoint.safetensors", b"x"),
        lambda: writer.begin(epochs=2, resumed=None),
        lambda: writer.finish(result()),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert sorted(path.name for path in folder.path.iterdir()) == [".lock", "running.json", "spec.json"]
    second.finish(result())
    found = folder.result()
    assert found is not None and [attempt["status"] for attempt in found.attempts] == ["lost", "done"]


@pytest.mark.parametrize("silent", [False, True])
def test_a_process_on_another_host_is_given_up_when_it_is_silent(silent: bool, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "abc")
    folder.claim({})
    lease = folder.lease()
    assert lease is not None
    running = folder.path / "running.json"
    running.write_text(lease.model_copy(update={"host": "elsewhere"}).model_dump_json())
    if silent:
        os.utime(running, (time.time() - SILENCE - 5,) * 2)
        folder.claim({})
    else:
        with pytest.raises(Taken):
            folder.claim({})


def test_a_final_result_is_only_replaced_when_it_is_meant(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "abc")
    folder.claim({}).finish(result())
    with pytest.raises(Finished):
        folder.claim({})
    with pytest.raises(Finished):
        folder.claim({}, replaces="another one")
    first = (folder.path / "result.json").read_bytes()
    folder.claim({}, replaces=folder.stamp())
    assert folder.result() is None
    assert (folder.path / "replaced.json").read_bytes() == first


def test_an_unfinished_result_is_simply_run_again(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "abc")
    writer = folder.claim({})
    assert folder.close({}, task="part segmentation", status="interrupted", error="x") is None, "its process lives"
    lease = folder.lease()
    assert lease is not None
    (folder.path / "running.json").write_text(lease.model_copy(update={"pid": 2**22 + 1}).model_dump_json())
    assert folder.close({}, task="part segmentation", status="interrupted", error="x") is not None
    with pytest.raises(LeaseLost):
        writer.progress(1)
    folder.claim({}).finish(result())
    found = folder.result()
    assert found is not None and [attempt["status"] for attempt in found.attempts] == ["interrupted", "done"]


@pytest.mark.parametrize("content", ["", "[]", '{"token": 1}', '{"token": "x", "host": "h", "pid": "many"}'])
def test_a_damaged_lease_is_no_lease(content: str, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "abc")
    folder.claim({})
    (folder.path / "running.json").write_text(content)
    assert folder.running() is None
    folder.claim({})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_systems_clock_decides_who_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = TrialFolder(tmp_path / "abc")
    writer = folder.claim({})
    lease = folder.lease()
    assert lease is not None
    (folder.path / "running.json").write_text(lease.model_copy(update={"host": "elsewhere"}).model_dump_json())
    monkeypatch.setattr("harness.trial_folder.time.time", lambda: time.monotonic() + 1e10)  # this host's clock is wrong
    with pytest.raises(Taken):
        folder.claim({})
    assert folder.close({}, task="part segmentation", status="lost", error="x") is None
    with folder.unclaimed() as free:
        assert not free
    writer.progress(1)


def test_a_replaced_result_can_be_closed(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "abc")
    folder.claim({}).finish(result())
    assert folder.close({}, task="part segmentation", status="lost", error="x") is None
    closed = folder.close({}, task="part segmentation", status="lost", error="x", replaces=folder.stamp())
    assert closed is not None and closed.status == "lost"


@pytest.mark.parametrize("line", ["3", "[]", "\udcff", "[" * 5000])
def test_a_strange_line_of_metrics_is_left_out(line: str, tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "abc")
    writer = folder.claim({})
    writer.log_metrics({"epoch": 0})
    with (folder.path / "metrics.jsonl").open("a", errors="surrogateescape") as file:
        file.write(line + "\n")
    assert folder.metrics() == [{"epoch": 0}]
    writer.begin(epochs=3, resumed=1)


@pytest.mark.parametrize("content", ["{", "{}", '{"trials": [{}], "name": 1, "description": 2, "digest": 3}'])
def test_a_damaged_suite_is_said(content: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "trials" / "abc").mkdir(parents=True)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "suite.json").write_text(content)
    with pytest.raises(UserError):
        store.load("s")
    assert store.entry("abc") is None


def test_a_cut_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    folder = TrialFolder(tmp_path / "abc")
    folder.claim({}).log_metrics({"epoch": 0})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1')
    assert folder.metrics() == [{"epoch": 0}]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output"):
        Store(tmp_path / "file").prepare()


def test_a_suite_that_never_ran(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results of a suite 'x'"):
        Store(tmp_path).load("x")
