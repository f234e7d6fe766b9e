"""Results of part segmentation in the same reports: another headline, a table by category, nothing mixed."""

import copy
import csv
import json
from pathlib import Path

import pytest

from harness.result import Result
from harness.store import Entry, SuiteResults
from harness.trial_folder import failure
from reports import html, markdown, tidy
from reports.build import leaderboard
from reports.statistics import mean
from tests.reports.synthetic import DATASETS, METHODS, altered, changed, segmented, synthetic

DATASET, OTHER = DATASETS


def only(results: SuiteResults, dataset: str) -> SuiteResults:
    entries = tuple(entry for entry in results.entries if entry.dataset == dataset)
    return SuiteResults(results.name, results.description, results.digest, entries)


@pytest.fixture(scope="module")
def results() -> SuiteResults:
    return only(segmented(synthetic(), DATASET), DATASET)


def test_rows_are_ranked_by_instance_miou(results: SuiteResults) -> None:
    board = leaderboard(results)
    scores: dict[str, list[float]] = {}
    for entry in results.entries:
        assert entry.result is not None and entry.result.metrics.instance_miou is not None
        scores.setdefault(entry.method, []).append(entry.result.metrics.instance_miou)
    means = {method: mean(values) for method, values in scores.items()}
    assert [row.method for row in board.rows] == sorted(means, key=lambda method: -means[method])
    for row in board.rows:
        (cell,) = row.cells
        assert cell.summary is not None and cell.summary.mean == pytest.approx(means[row.method])
        assert cell.summary.n == 3 and cell.summary.interval is not None and cell.metric == "instance_miou"
    assert len(board.comparisons) == len(METHODS) * (len(METHODS) - 1) // 2 and board.rows[0].standing == "best"
    assert board.how_to_read.startswith("Each instance mIoU is the mean over n seeds")
    assert not any("cannot occur" in notice for notice in board.notices), "mIoUs are no whole number of items"


def test_class_miou_and_categories_stand_beside(results: SuiteResults) -> None:
    board = leaderboard(results)
    assert [aside.key for aside in board.asides()] == ["class_miou", "instance_miou_best_on_test"]
    (table,) = board.by_category
    assert (table.categories, table.title) == (("Airplane", "Chair", "Mug"), "instance mIoU")
    for row, (label, numbers) in zip(board.rows, table.rows, strict=True):
        summary = row.cells[0].summary
        assert label == row.method and summary is not None
        assert [n.mean - summary.mean for n in numbers if n is not None] == pytest.approx([-0.03, 0.05, -0.1])


def test_every_format_says_what_the_number_is(results: SuiteResults, tmp_path: Path) -> None:
    board = leaderboard(results)
    page, text = html.render(board), markdown.render(board)
    for words in ("instance mIoU by category", "class mIoU", "Mug"):
        assert words in page and words in text
    for written in (page, text):
        assert "accuracy" not in written.lower().replace("accuracy of scores", "")
    assert "<h3>Instance mIoU against trainable parameters</h3>" in page
    tidy.write_csv(results, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == DATASET]
    for row, line in zip(board.rows, rows, strict=True):
        summary = row.cells[0].summary
        assert summary is not None and line["metric"] == "instance_miou" and line["accuracy_mean"] == ""
        assert float(line["instance_miou_mean"]) == pytest.approx(summary.mean) and line["class_miou_mean"]
    tidy.write_json(results, tmp_path / "a.json")
    trials = json.loads((tmp_path / "a.json").read_text())["trials"]
    assert all(set(trial["metrics"]["category_miou"]) == {"Airplane", "Chair", "Mug"} for trial in trials)


def test_accuracy_and_miou_are_not_averaged() -> None:
    board = leaderboard(segmented(synthetic(), DATASET))
    assert board.datasets == (DATASET, OTHER) and board.measure is None
    assert all(row.overall is None for row in board.rows)
    assert [cell.metric for cell in board.rows[0].cells] == ["instance_miou", "accuracy"]
    assert f"on {DATASET}, instance mIoU; on {OTHER}, accuracy" in board.how_to_read
    assert not any(comparison.dataset == "overall" for comparison in board.comparisons)
    assert "Score, %" in html.render(board)


def test_pool_does_not_tell_rows_apart(results: SuiteResults) -> None:
    """The head reads patches, whatever a method would pool; augmentation still does."""

    def pooled(dapt: dict[str, object]) -> SuiteResults:
        def change(entry):  # type: ignore[no-untyped-def]
            spec = json.loads(json.dumps(entry.result.spec))
            spec["method"]["settings"]["pool"] = ["class"] if entry.method == "dapt" else ["class", "patch_max"]
            spec["train"] |= dapt if entry.method == "dapt" else {}
            return altered(entry.result).model_copy(update={"spec": spec})

        return changed(results, change)

    assert {row.section for row in leaderboard(pooled({})).rows} == {0}
    assert {row.section for row in leaderboard(pooled({"augment": "none"})).rows} == {0, 1}


def test_a_lost_trial_does_not_set_its_row_apart(results: SuiteResults) -> None:
    """As an earlier harness left it: written by a process that knew the specification alone, not the task."""

    def lose(entry: Entry) -> Result | None:
        assert entry.result is not None
        entry.result.spec["method"]["settings"]["pool"] = [entry.method]
        if (entry.method, entry.seed) != ("lora", 0):
            return entry.result
        return failure(entry.result.id, entry.result.spec, task="classification", status="lost", error="gone")

    board = leaderboard(changed(copy.deepcopy(results), lose))
    assert {row.section for row in board.rows} == {0} and not any("protocol" in notice for notice in board.notices)
