"""`harness report --merge` and `--watch`: folders of several machines as one suite; a report that follows a run."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.merging import merged
from harness.reporting import follow
from harness.result import Result
from harness.store import Entry, SuiteResults
from reports import evidence
from reports.build import leaderboard
from tests.reports.folders import with_files
from tests.reports.synthetic import altered, changed, synthetic, write_folder
from tests.reports.test_report_command import run

Change = Callable[[Entry], Result | None]


def only(keep: Callable[[Entry], bool]) -> SuiteResults:
    """The synthetic suite with the results of some trials."""
    return changed(synthetic(), lambda entry: entry.result if keep(entry) else None)


def fingerprint(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): f"{path.stat().st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files}


@pytest.fixture
def halves(tmp_path: Path) -> tuple[Path, Path]:
    """Two machines: seeds 0 and 1 on one, 1 and 2 on the other."""
    write_folder(only(lambda entry: entry.seed in (0, 1)), tmp_path / "a")
    write_folder(only(lambda entry: entry.seed in (1, 2)), tmp_path / "b")
    return tmp_path / "a", tmp_path / "b"


def test_two_halves_make_the_whole_and_each_trial_counts_once(halves: tuple[Path, Path]) -> None:
    found, whole = leaderboard(merged(halves, "quickstart")), leaderboard(synthetic())
    assert found.rows == whole.rows and found.counts == whole.counts
    notice = "Put together from 2 results folders: results of 34 of folder 1, 32 of folder 2; 16 of them were run in"
    assert found.notices[0].startswith(notice) and len(found.notices) == 1


def test_the_command_writes_beside_and_leaves_the_sources_as_they_are(
    halves: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fingerprint(halves[0]) | fingerprint(halves[1])
    together = tmp_path / "together"
    merge = [word for half in halves for word in ("--merge", str(half))]
    assert run("report", *merge, "-o", str(together), "--format", "json,trials_csv") == 0
    said = capsys.readouterr()
    assert said.out.split() == [
        str(together / "quickstart" / "report" / name) for name in ("leaderboard.json", "trials.csv")
    ]
    assert f"folder 1: {halves[0]}" in said.err
    assert fingerprint(halves[0]) | fingerprint(halves[1]) == before
    assert {path.name for path in together.rglob("*") if path.is_file()} == {"leaderboard.json", "trials.csv"}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_contradiction_is_named_and_the_first_folder_believed(order: tuple[int, int], tmp_path: Path) -> None:
    def worse(entry: Entry) -> Result | None:
        if entry.result is None or (entry.method, entry.dataset, entry.seed) != ("lora", "sweethome12", 0):
            return entry.result
        return altered(entry.result, metrics={"accuracy": 70 / 139, "correct": 70})

    for name, change in (("a", lambda entry: entry.result), ("b", worse)):
        write_folder(changed(synthetic(), change), tmp_path / name)
    folders = [tmp_path / "ab"[number] for number in order]
    results = merged(folders, "quickstart")
    told = [notice for notice in results.notices if "came out differently" in notice]
    assert len(told) == 1 and "lora point_mae sweethome12 seed 0" in told[0] and "50.36 % in folder" in told[0]
    assert told[0].endswith("folder 1 is counted.")
    score = next(
        e.result.score
        for e in results.entries
        if (e.method, e.dataset, e.seed) == ("lora", "sweethome12", 0)
        if e.result
    )
    assert (score == 70 / 139) == (order == (1, 0))


def test_equal_scores_of_other_data_contradict(tmp_path: Path) -> None:
    for name in "ab":

        def digested(entry: Entry, name: str = name) -> Result | None:
            return entry.result.model_copy(update={"digests": {"data": name}}) if entry.result else None

        write_folder(changed(synthetic(seeds=(0,)), digested), tmp_path / name)
    notices = merged([tmp_path / "a", tmp_path / "b"], "quickstart").notices
    assert "the same with another digest of data in folder 2" in notices[1]
    assert len(notices) == 7 and notices[-1] == "13 more trials came out differently in different folders."


def test_other_bits_of_what_was_trained_are_no_contradiction(tmp_path: Path) -> None:
    for name in "ab":

        def digested(entry: Entry, name: str = name) -> Result | None:
            return entry.result.model_copy(update={"digests": {"data": "x", "adapter": name}}) if entry.result else None

        write_folder(changed(synthetic(seeds=(0,)), digested), tmp_path / name)
    assert len(merged([tmp_path / "a", tmp_path / "b"], "quickstart").notices) == 1


def test_what_is_done_goes_before_what_failed(tmp_path: Path) -> None:
    def failing(entry: Entry) -> Result | None:
        assert entry.result is not None
        return Result(id=entry.id, spec=entry.result.spec, status="oom", error="out of memory")

    write_folder(changed(synthetic(seeds=(0,)), failing), tmp_path / "a")
    write_folder(synthetic(seeds=(0,)), tmp_path / "b")
    results = merged([tmp_path / "a", tmp_path / "b"], "quickstart")
    assert all(entry.result is not None and entry.result.status == "done" for entry in results.entries)
    assert "failed in one folder and are done in another: 18" in results.notices[1]


def test_machines_are_never_ranked_together(tmp_path: Path) -> None:
    def on_a_gpu(entry: Entry) -> Result | None:
        if entry.result is None or entry.method not in ("lora", "dapt"):
            return None
        return entry.result.model_copy(update={"environment": entry.result.environment | {"gpu": "NVIDIA H200"}})

    write_folder(only(lambda entry: entry.method not in ("lora", "dapt")), tmp_path / "cpu")
    write_folder(changed(synthetic(), on_a_gpu), tmp_path / "gpu")
    board = leaderboard(merged([tmp_path / "cpu", tmp_path / "gpu"], "quickstart"))
    assert {row.method for row in board.rows if row.section == 1} == {"lora", "dapt"}
    assert any("hardware NVIDIA H200" in notice for notice in board.notices)
    assert not any({"lora", "full"} == {c.first.method, c.second.method} for c in board.comparisons)


def test_what_trials_left_is_read_where_it_lies(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        with_files(only(lambda entry, seed=seed: entry.seed == seed), tmp_path / name)  # type: ignore[misc]
    known = evidence.predictions(merged([tmp_path / "a", tmp_path / "b"], "quickstart"))
    assert len(known) == 34


def test_a_folder_twice_is_one_folder(
    halves: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = str(halves[0] / ".." / "a")
    command = ["report", "--merge", str(halves[0]), "--merge", again, "-o", str(tmp_path / "c"), "--format", "json"]
    assert run(*command) == 0 and "folder 2" not in capsys.readouterr().err


def test_wrong_folders_are_named_all_at_once(
    halves: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge = ["--merge", str(halves[0]), "--merge", str(tmp_path / "x"), "--merge", str(tmp_path / "y")]
    assert run("report", "quickstart", *merge, "-o", str(tmp_path / "c")) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'x'}: holds no results" in said and f"{tmp_path / 'y'}: holds no results" in said
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("place", [["-o", "a"], ["-o", "c", "--to", "b/report"], ["-o", "own"]])
def test_a_merged_report_never_lies_in_a_results_folder(
    place: list[str], halves: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(synthetic(), tmp_path / "own")
    before = fingerprint(tmp_path)
    where = [str(tmp_path / word) if not word.startswith("-") else word for word in place]
    assert run("report", "quickstart", "--merge", str(halves[0]), "--merge", str(halves[1]), *where) == 2
    assert "choose another --output" in capsys.readouterr().err and fingerprint(tmp_path) == before


def test_the_only_suite_needs_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", "-o", str(tmp_path)) == 2
    assert "no suite ran into this folder yet" in capsys.readouterr().err
    write_folder(synthetic(seeds=(0,)), tmp_path)
    assert run("report", "-o", str(tmp_path), "--format", "json") == 0
    write_folder(replace(synthetic(seeds=(0,)), name="other"), tmp_path)
    assert run("report", "-o", str(tmp_path), "--format", "json") == 2
    assert "several suites ran there, name one: other, quickstart" in capsys.readouterr().err


def test_following_writes_when_something_changed_and_then_only() -> None:
    stamps, actives, written = iter([1, 1, 2, 2, 3]), iter([True, True, True, True, False]), []
    follow(lambda: written.append(None), stamp=lambda: next(stamps), active=lambda: next(actives), every=0)
    assert len(written) == 3


def test_a_stamp_changes_with_every_result(tmp_path: Path) -> None:
    store = write_folder(synthetic(seeds=(0,)), tmp_path)
    first = store.stamp("quickstart")
    assert store.stamp("quickstart") == first
    entry = store.load("quickstart").entries[0]
    path = store.trial(entry.id).path / "result.json"
    path.write_text(path.read_text() + "\n")
    second = store.stamp("quickstart")
    path.unlink()
    assert len({first, second, store.stamp("quickstart")}) == 3


def test_watching_ends_by_itself_when_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(synthetic(seeds=(0,)), tmp_path)
    index = tmp_path / "quickstart" / "suite.json"  # its driver is this process, which lives
    index.write_text(
        json.dumps({key: value for key, value in json.loads(index.read_text()).items() if key != "driver"})
    )
    assert run("report", "quickstart", "-o", str(tmp_path), "--watch", "--format", "html") == 0
    page = tmp_path / "quickstart" / "report" / "leaderboard.html"
    assert capsys.readouterr().out == f"18 of 18 trials done: {page}\n"


@pytest.mark.slow
def test_watching_follows_a_run_and_ends_quietly_by_hand(tmp_path: Path) -> None:
    """This process, which wrote the folder, stands for the run's driver: it lives."""
    store = write_folder(only(lambda entry: entry.seed == 0), tmp_path)
    program = "from harness.cli import main; main()"
    words = ["report", "quickstart", "-o", str(tmp_path), "--watch", "--every", "0.2", "--format", "json"]
    command = [sys.executable, "-c", program, *words]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background may ignore Ctrl-C
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("18 of 50 trials done")
        entry = next(entry for entry in synthetic().entries if entry.seed == 1)
        folder = store.trial(entry.id).path
        folder.mkdir(parents=True, exist_ok=True)
        assert entry.result is not None
        partial = folder / ".new"
        partial.write_text(entry.result.model_dump_json())
        partial.replace(folder / "result.json")
        assert process.stdout.readline().startswith("19 of 50 trials done")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130 and process.stderr.read() == ""
