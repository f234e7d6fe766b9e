"""Reports of trials that are for what they cost, and of trials whose GPU was not theirs alone."""

from dataclasses import replace
from pathlib import Path

from harness.result import Memory, Result, Time
from harness.store import Entry, SuiteResults
from reports import markdown
from reports.build import leaderboard
from reports.provenance import recipe
from reports.trials import rows


def entry(method: str, seed: int = 0, *, task: str = "cost", environment: dict[str, object] | None = None) -> Entry:
    identity = f"{len(method)}{seed}".zfill(16)
    memory = Memory(estimated=7_000_000, train_peak=9_000_000)
    result = Result(id=identity, spec={}, status="done", task=task, memory=memory, time=Time(step=0.5))
    result.environment = environment or {}
    return Entry(identity, method, "batch_32", "synthetic", seed, False, result)


def results(*entries: Entry) -> SuiteResults:
    return SuiteResults(name="cost", description="", digest="", entries=entries)


def test_no_score_is_no_failure_where_there_is_none_to_have(tmp_path: Path) -> None:
    board = leaderboard(results(entry("full"), entry("lora")))
    assert (board.counts.done, board.counts.failed) == (2, 0) and not board.troubles
    assert all(not cell.failures and cell.summary is None for row in board.rows for cell in row.cells)
    markdown.write(results(entry("full"), entry("lora")), tmp_path / "a.md")
    text = (tmp_path / "a.md").read_text()
    assert "there are no scores" in text and "Of 2 trials" not in text and "for what they cost" in text


def test_a_score_that_is_missing_is_one() -> None:
    assert leaderboard(results(entry("full", task="classification"))).counts.failed == 1


def test_times_and_memory_on_a_shared_gpu_are_left_out() -> None:
    alone, shared = entry("full", 0), entry("full", 1, environment={"gpu_share": 0.25})
    assert shared.result is not None and alone.result is not None
    slow = replace(shared, result=shared.result.model_copy(update={"time": Time(step=9.0)}))
    (row,) = leaderboard(results(alone, slow)).rows
    assert row.cost("time.step").value == 0.5
    (row,) = leaderboard(results(slow)).rows
    assert row.cost("time.step").value is None and "shared" in (row.cost("time.step").reason or "")
    assert row.cost("memory.train_peak").value is None and row.cost("memory.estimated").value == 7_000_000
    assert any("ran on a GPU with others" in notice for notice in leaderboard(results(slow)).notices)
    busy = entry("full", environment={"gpu_busy": "1 other processes, 3.0 GB in use"})
    assert leaderboard(results(busy)).rows[0].cost("memory.train_peak").value is None


def test_activation_checkpointing_is_told() -> None:
    """Where all trials had it nothing is mixed, and every recipe names it."""
    plain, again = entry("full"), entry("lora")
    assert again.result is not None
    spec = {"resources": {"activation_checkpointing": True}}
    again = replace(again, result=again.result.model_copy(update={"spec": spec}))
    words = "1 trial had activation checkpointing"
    assert any(words in notice for notice in leaderboard(results(plain, again)).notices)
    assert not any(words in notice for notice in leaderboard(results(again)).notices)
    assert [row["activation_checkpointing"] for row in rows(results(plain, again))] == [None, "true"]
    assert recipe(spec) == "activation checkpointing" and "checkpointing" not in recipe({})
