"""The store: whole files or none, and damaged results are no results."""

from pathlib import Path

import pytest

from harness.atomic import write_atomically
from harness.errors import UserError
from harness.result import Result
from harness.store import Store
from harness.trial_folder import TrialFolder


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
