"""`harness compare`: what changed between two runs or methods, and whether the difference is real."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.errors import UserError
from harness.result import Result
from harness.store import Entry, Store, SuiteResults
from reports.build import leaderboard
from reports.contrast import contrast
from reports.sides import Side, sides
from tests.reports.folders import HOSTILE, broken, hostile, with_files
from tests.reports.synthetic import altered, changed, segmented, synthetic, write_folder
from tests.reports.test_report_command import run


def score(results: SuiteResults, method: str, dataset: str = "sweethome12") -> np.ndarray:
    found = {e.seed: e.result.score for e in results.entries if (e.method, e.dataset) == (method, dataset) if e.result}
    return np.array([found[seed] for seed in sorted(found)])


def later(entry: Entry) -> Result | None:
    """The suite as it ran later: lora better, another PyTorch, rate and, for dapt, augmentation; two trials failed."""
    result = entry.result
    assert result is not None
    if (entry.method, entry.seed) == ("vpt", 2):
        return None
    if (entry.method, entry.dataset, entry.seed) == ("full", "sweethome12", 0):
        return Result(id=entry.id, spec=result.spec, status="oom", error="CUDA out of memory")
    spec = copy.deepcopy(result.spec)
    if "train" in spec:
        spec["train"]["learning_rate"] = 1e-3
    if entry.method == "dapt":
        spec["train"]["augment"] = "none"
    if entry.method == "lora":
        correct = (result.metrics.correct or 0) + 9 + entry.seed
        numbers = {"correct": correct, "accuracy": correct / 139}
        result = altered(result, metrics=numbers, time={"step": 2 * (result.time.step or 0)})
    return result.model_copy(update={"spec": spec, "environment": result.environment | {"torch": "2.14.0"}})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("compare")
    with_files(synthetic(), home / "before")
    with_files(changed(synthetic(), later), home / "after")
    return home


def found(first: str, second: str, output: Path, suite: str | None = None) -> Any:
    return contrast(*sides(first, second, output=output, suite=suite))


def test_a_difference_is_that_of_the_pairs(folders: Path) -> None:
    both = found(str(folders / "before"), str(folders / "after"), folders)
    pair = next(p for p in both.pairs if (p.method, p.dataset) == ("lora", "sweethome12"))
    differences = np.array([9, 10, 11]) / 139
    low, high = stats.t.interval(0.95, 2, differences.mean(), differences.std(ddof=1) / 3**0.5)
    assert pair.against.difference.mean == pytest.approx(differences.mean())
    assert (pair.against.difference.interval.low, pair.against.difference.interval.high) == pytest.approx((low, high))
    assert pair.against.items is not None and pair.against.items.mean == pytest.approx(differences.mean())
    assert pair.verdict == "differs over seeds and test items"
    adapter = next(p for p in both.pairs if p.method == "adapter")
    assert adapter.verdict == "no difference" and adapter.against.difference.mean == 0


def test_methods_of_a_suite_get_the_numbers_of_its_report(folders: Path) -> None:
    both = found("full", "lora", folders / "before")
    report = leaderboard(replace(Store(folders / "before").load("quickstart"), yardstick="full")).versus
    assert report is not None
    for pair in both.pairs:
        there = next(a for a in report.each if (a.method.method, a.dataset) == ("lora", pair.dataset))
        assert pair.against.difference == there.difference and pair.against.items == there.items
        assert pair.against.bootstrap == there.bootstrap
    overall = next(a for a in report.overall if a.method.method == "lora")
    assert (both.overall[0].difference, both.overall[0].interval) == (overall.difference, overall.interval)
    assert found("lora", "full", folders / "before").overall[0].difference == pytest.approx(-overall.difference)


def test_only_what_is_done_on_both_sides_counts_and_the_rest_is_told(folders: Path) -> None:
    both = found(str(folders / "before"), str(folders / "after"), folders)
    full = next(p for p in both.pairs if (p.method, p.dataset) == ("full", "sweethome12"))
    assert full.first.n == full.second.n == full.against.difference.n == 2
    assert full.first.mean == pytest.approx(score(synthetic(), "full")[1:].mean())
    assert (both.common, both.paired, both.first.done, both.second.done) == (42, 39, 42, 39)
    assert [(t.status, t.method, t.error) for t in both.second.troubles] == [
        ("oom", "full", "CUDA out of memory"),
        ("missing", "vpt", ""),
        ("missing", "vpt", ""),
    ]


def test_failures_of_a_method_bear_its_name(folders: Path) -> None:
    both = found("full", "vpt", folders / "after")
    assert [t.method for t in (*both.first.troubles, *both.second.troubles)] == ["full", "vpt", "vpt"]
    assert (both.common, both.paired) == (6, 3)


def test_what_changed_is_told_once_with_its_pairs(folders: Path) -> None:
    told = found(str(folders / "before"), str(folders / "after"), folders).changes
    assert [(c.kind, c.name, c.first, c.second, c.pairs) for c in told] == [
        ("protocol", "training augmentation", "scale_translate", "none", 3),
        ("protocol", "training augmentation", "rotate", "none", 3),
        ("setting", "train.learning_rate", "0.002", "0.001", 39),
        ("version", "PyTorch", "2.13.0+cpu", "2.14.0", None),
    ]


def test_other_data_under_the_same_name_is_told() -> None:
    def digested(entry: Entry) -> Result | None:
        digests = {"data": f"{len(entry.dataset):064x}"[::-1], "adapter": "x"}
        return entry.result.model_copy(update={"digests": digests}) if entry.result else None

    both = contrast(Side("a", synthetic()), Side("b", changed(synthetic(), digested)))
    assert {(c.kind, c.name, c.first, c.pairs) for c in both.changes} == {("content", "data", "not there", 21)}
    assert "The content of sweethome12 is not the same on both sides (digests differ in 21 pairs)." in both.notes


def test_another_protocol_is_marked(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", str(folders / "before"), str(folders / "after")) == 0
    said = capsys.readouterr().out
    assert "dapt ≠" in said and "lora ≠" not in said
    assert "≠ The sides follow different protocols (training augmentation)" in said
    assert "B: oom, full on sweethome12 (point_mae), seed 0: CUDA out of memory" in said


def test_costs_stand_beside_each_other_with_their_ratio(folders: Path) -> None:
    costs = found(str(folders / "before"), str(folders / "after"), folders).costs
    step = next(c for c in costs if (c.method, c.key) == ("lora", "time.step"))
    assert step.ratio == pytest.approx(2) and step.second == pytest.approx(2 * step.first)
    assert all(c.ratio == 1 for c in costs if c.key == "parameters.trainable")


def test_trials_of_one_side_alone_are_named(tmp_path: Path) -> None:
    few = [e for e in synthetic().entries if e.method in ("lora", "vpt")]
    other = replace(synthetic(), entries=tuple(e for e in few if e.method == "vpt" or e.seed == 0))
    both = contrast(Side("a", replace(synthetic(), entries=tuple(few))), Side("b", other))
    assert both.common == 8 and len(both.first.alone) == 4 and both.second.alone == ()
    assert both.first.alone[0] == "lora point_mae sweethome12 seed 1"


def test_one_seed_and_equal_differences_show_nothing(tmp_path: Path) -> None:
    def better(entry: Entry) -> Result | None:
        assert entry.result is not None
        correct = (entry.result.metrics.correct or 0) + 5
        return altered(entry.result, metrics={"correct": correct, "accuracy": correct / 139})

    one = synthetic(seeds=(0,))
    both = contrast(Side("a", one), Side("b", changed(one, better)))
    assert {p.verdict for p in both.pairs} == {"not shown (one seed)"}
    assert any("One common seed has no spread" in note for note in both.notes)
    three = contrast(Side("a", synthetic()), Side("b", changed(synthetic(), better)))
    assert {p.verdict for p in three.pairs} == {"the same on every seed: no spread to judge by"}


def test_nothing_done_is_told_and_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failing(entry: Entry) -> Result | None:
        assert entry.result is not None
        return Result(id=entry.id, spec=entry.result.spec, status="oom", error="out of memory")

    write_folder(changed(synthetic(seeds=(0,)), failing), tmp_path / "a")
    write_folder(synthetic(seeds=(0,)), tmp_path / "b")
    assert run("compare", str(tmp_path / "a"), str(tmp_path / "b")) == 0
    said = capsys.readouterr().out
    assert (
        "Compared: 0 trials done on both sides, of 14 in both lists." in said and "A: oom, lora on sweethome12" in said
    )
    assert "Differences" not in said


def test_different_numbers_are_not_compared() -> None:
    both = contrast(Side("a", synthetic()), Side("b", segmented(synthetic(), "sweethome12")))
    verdicts = {(p.dataset, p.verdict, p.against is None) for p in both.pairs}
    assert verdicts == {
        ("sweethome12", "not compared: accuracy, instance mIoU", True),
        ("sweethome12_scanlike", "no difference", False),
    }
    assert any("and 1 dataset cannot give a p below" in note for note in both.notes)


def test_json_has_it_all(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compare", str(folders / "before"), str(folders / "after"), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["paired"] == 39 and len(told["pairs"]) == 14 and told["changes"][0]["kind"] == "protocol"
    assert told["overall"][0]["method"]["method"] == told["pairs"][0]["method"] == "lora"


def test_hostile_names_move_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def shouting(results: SuiteResults) -> SuiteResults:
        return replace(results, entries=tuple(replace(e, method=f"\x1b[2J[red]{e.method}") for e in results.entries))

    with_files(shouting(hostile()), tmp_path / "a")
    with_files(shouting(broken()), tmp_path / "b")
    with_files(shouting(synthetic()), tmp_path / "c")
    assert run("compare", str(tmp_path / "b"), str(tmp_path / "c")) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\N{REPLACEMENT CHARACTER}[2J[red]lora" in said
    with pytest.raises(UserError, match="no trial in common") as refused:
        found(str(tmp_path / "a"), str(tmp_path / "c"), tmp_path)
    assert HOSTILE[:8] in str(refused.value) and "\x1b" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["before", "befor"], "befor: no results are found there"),
        (["before", "before/../before"], "are the same results"),
        (["before", "empty"], "empty: is a folder, but no suite ran into it"),
        (["before:quick", "after"], "holds no results of a suite 'quick' (found: quickstart)"),
        (["two", "two:other"], "two: several suites ran there; name one of them: two:other, two:quickstart"),
        (["lora", "dapr", "-o", "before"], "has no method 'dapr'; did you mean 'dapt'?"),
        (["lora", "lora", "-o", "before"], "are the same method"),
        (["lora", "dapt", "-o", "before", "--suite", "slow"], "holds no results of a suite 'slow'"),
        (
            ["quickstart", "othr", "-o", "two"],
            "othr: no results are found there; name FOLDER, FOLDER:SUITE, or a suite",
        ),
        (["lora", "dapt", "-o", "two"], "--suite SUITE"),
        (["lora", "dapt", "-o", "empty"], "(which holds none)"),
    ],
)
def test_a_wrong_name_is_one_clear_error(
    words: list[str],
    told: str,
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("before", "after"):
        (tmp_path / name).symlink_to(folders / name)
    (tmp_path / "empty").mkdir()
    for name in ("quickstart", "other"):
        write_folder(replace(synthetic(seeds=(0,)), name=name), tmp_path / "two")
    assert run("compare", *words) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("spelling", ["before:quickstart", "before/quickstart", "before"])
def test_spellings_of_a_side(spelling: str, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folders)
    assert sides(spelling, "after", output=Path("results"), suite=None)[0].results.name == "quickstart"
    one, other = sides("quickstart", "after", output=Path("before"), suite=None)
    assert (one.title, other.title) == ("quickstart", "after")
