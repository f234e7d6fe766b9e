"""The leaderboard: what it counts, ranks, refuses to rank and says."""

from __future__ import annotations

import itertools
import random
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from harness.result import Result
from harness.store import Entry, SuiteResults
from reports.build import leaderboard
from reports.leaderboard import Cell, Leaderboard, Row
from reports.panels import Panel, linear_ticks, log_ticks, panels, spread
from tests.reports.synthetic import (
    DATASETS,
    ENVIRONMENT,
    METHODS,
    altered,
    changed,
    spec_of,
    synthetic,
    with_asides,
)


def row_of(board: Leaderboard, method: str) -> Row:
    return next(row for row in board.rows if row.method == method)


def cell_of(board: Leaderboard, method: str, dataset: str) -> Cell:
    return next(cell for cell in row_of(board, method).cells if cell.dataset == dataset)


def failed(entry: Entry, status: str = "oom", error: str = "boom") -> Result:
    assert entry.result is not None
    return Result.model_validate({"id": entry.id, "spec": entry.result.spec, "status": status, "error": error})


def test_cells_hold_the_trials_statistics(suite: SuiteResults) -> None:
    board = leaderboard(suite)
    for method in METHODS:
        for dataset, total in DATASETS.items():
            values = [
                e.result.metrics.accuracy or 0.0
                for e in suite.entries
                if e.result and (e.method, e.dataset) == (method, dataset)
            ]
            cell = cell_of(board, method, dataset)
            assert cell.summary is not None
            assert cell.summary.mean == pytest.approx(np.mean(values))
            assert cell.summary.sd == pytest.approx(np.std(values, ddof=1))
            assert [(seed.seed, seed.total) for seed in cell.seeds] == [(0, total), (1, total), (2, total)]
            assert (cell.trials, cell.missing, cell.failures) == (3, 0, ())


def test_costs_are_put_together_over_trials(suite: SuiteResults) -> None:
    board = leaderboard(suite)
    results = [e.result for e in suite.entries if e.result and e.method == "lora"]
    row = row_of(board, "lora")
    assert row.cost("time.step").value == pytest.approx(np.median([r.time.step for r in results]))
    assert row.cost("memory.host_peak").value == max(r.memory.host_peak or 0 for r in results)
    assert row.cost("parameters.trainable").value == METHODS["lora"][0]
    parameters = results[0].parameters
    assert row.cost("parameters.percent").value == pytest.approx(
        100 * (parameters.trainable or 0) / (parameters.total or 1)
    )
    assert row.cost("memory.train_peak").value is None
    assert row.cost("memory.train_peak").reason == "no GPU in this trial"
    assert ("GPU peak", "no GPU in this trial") in [(c.title, why) for c, why in board.empty_columns()]


def test_methods_come_by_mean_and_references_last_and_unranked(suite: SuiteResults) -> None:
    board = leaderboard(suite)
    methods = [row for row in board.rows if not row.reference]
    means = [row.overall.mean for row in methods if row.overall is not None]
    assert len(methods) == 7 and means == sorted(means, reverse=True)
    assert {row.method for row in board.rows[7:]} == {"nearest_neighbour", "random_probe"}
    assert all(row.standing is None and cell.standing is None for row in board.rows[7:] for cell in row.cells)
    named = {key.method for c in board.comparisons for key in (c.first, c.second)}
    assert named == set(METHODS)


def test_order_of_entries_does_not_matter(suite: SuiteResults) -> None:
    board = leaderboard(suite)
    for seed in range(5):
        entries = tuple(random.Random(seed).sample(suite.entries, len(suite.entries)))
        assert leaderboard(replace(suite, entries=entries)) == board


def test_leaderboard_is_frozen(suite: SuiteResults) -> None:
    with pytest.raises(FrozenInstanceError):
        leaderboard(suite).name = "other"  # type: ignore[misc]


def set_accuracies(suite: SuiteResults, values: dict[str, list[float]]) -> SuiteResults:
    def change(entry: Entry) -> Result | None:
        if entry.result is None or entry.method not in values:
            return None
        return altered(entry.result, metrics={"accuracy": values[entry.method][entry.seed]})

    kept = tuple(e for e in suite.entries if e.method in values and e.dataset == "sweethome12")
    return changed(replace(suite, entries=kept), change)


def test_findings_name_what_is_and_what_is_not_separated(suite: SuiteResults) -> None:
    values = {"dapt": [0.80, 0.82, 0.81], "lora": [0.81, 0.80, 0.80], "full": [0.70, 0.73, 0.70]}
    board = leaderboard(set_accuracies(suite, values))
    [sentence] = board.findings
    assert sentence.startswith("On sweethome12 the best mean is that of dapt (81.0 %); lora is not separated from it")
    assert "include zero, n = 3 seeds" in sentence
    assert "full is separated from it" in sentence
    assert [row.standing for row in board.rows] == ["best", "level", "separated"]
    assert any("smallest two-sided p" in caveat and "0.25" in caveat for caveat in board.caveats)


def test_a_sentence_does_not_list_dozens_of_methods(suite: SuiteResults) -> None:
    some = [entry for entry in suite.entries if entry.method == "lora" and entry.dataset == "sweethome12"]
    many = tuple(replace(e, method=f"lora_{i:02}", id=f"{i:02}{e.id}") for i in range(12) for e in some)
    [sentence] = leaderboard(replace(suite, entries=many)).findings
    assert "lora_01, lora_02, lora_03, lora_04, lora_05, lora_06 and 5 others are not separated" in sentence


def test_an_interval_without_width_is_explained(suite: SuiteResults) -> None:
    flat = leaderboard(set_accuracies(suite, {"dapt": [0.8, 0.8, 0.8], "lora": [0.7, 0.71, 0.69]}))
    usual = leaderboard(set_accuracies(suite, {"dapt": [0.8, 0.8, 0.81], "lora": [0.7, 0.71, 0.69]}))
    assert any("all seeds gave the same score" in caveat for caveat in flat.caveats)
    assert not any("all seeds gave the same score" in caveat for caveat in usual.caveats)


def test_the_same_difference_on_every_seed_separates_nothing(suite: SuiteResults) -> None:
    board = leaderboard(set_accuracies(suite, {"dapt": [0.8, 0.7, 0.6], "lora": [0.7, 0.6, 0.5]}))
    assert "lora is not called separated" in board.findings[0]


def test_a_single_seed_is_not_called_best_before_several(suite: SuiteResults) -> None:
    results = set_accuracies(suite, {"dapt": [0.9, 0.9, 0.9], "lora": [0.8, 0.81, 0.8], "full": [0.7, 0.73, 0.7]})
    board = leaderboard(changed(results, lambda e: None if e.method == "dapt" and e.seed else e.result))
    assert "the best mean of at least two seeds is that of lora" in board.findings[0]
    assert "dapt is not compared with it: fewer than two common seeds" in board.findings[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_points": 1024}, "points per cloud 1024"),
        ({"train_augment": "none"}, "training augmentation none"),
        ({"data_sampling": "fps"}, "point sampling fps"),
        ({"protocol_selection": "validation"}, "selection validation"),
        ({"protocol_selection": "paper"}, "selection paper"),
        ({"protocol_vote": 10}, "votes 10"),
        ({"protocol_validation_seed": 3}, "validation seed 3"),
        ({"method_settings": {"pool": ["class"]}}, "head inputs (a method's own prompts apart) class"),
        ({"resources_precision": "bf16"}, "precision bf16"),
        ({"resources_processes": 2}, "processes 2"),
        ({"protocol_batchnorm": "global"}, "batch norms over processes global"),
    ],
)
def test_other_protocols_are_not_ranked_together(suite: SuiteResults, change: dict[str, object], words: str) -> None:
    def other(entry: Entry) -> Result | None:
        if entry.method != "dapt" or entry.result is None or entry.dataset != "sweethome12":
            return entry.result
        return entry.result.model_copy(update={"spec": spec_of("dapt", entry.dataset, entry.seed, **change)})

    board = leaderboard(changed(suite, other))
    [notice] = board.notices
    assert notice.startswith("On sweethome12 methods follow different protocols and are not ranked together")
    assert f"B (dapt): {words}" in notice
    assert cell_of(board, "dapt", "sweethome12").protocol == "B"
    assert cell_of(board, "lora", "sweethome12").protocol == "A"
    assert cell_of(board, "dapt", "sweethome12_scanlike").protocol is None
    pairs = [(c.dataset, c.first.method, c.second.method) for c in board.comparisons]
    assert {dataset for dataset, *names in pairs if "dapt" in names} == {"sweethome12_scanlike"}
    assert row_of(board, "dapt").section != row_of(board, "lora").section


def test_auto_is_the_precision_that_it_came_to(suite: SuiteResults) -> None:
    def other(entry: Entry) -> Result | None:
        if entry.result is None or entry.reference:
            return entry.result
        spec = spec_of(entry.method, entry.dataset, entry.seed, resources_precision="auto")
        environment = entry.result.environment | ({"precision": "bf16"} if entry.method == "dapt" else {})
        return entry.result.model_copy(update={"spec": spec, "environment": environment})

    board = leaderboard(changed(suite, other))
    assert cell_of(board, "dapt", "sweethome12").protocol == "B"
    assert any("B (dapt): precision bf16" in notice for notice in board.notices)


def test_prompts_among_a_heads_inputs_are_the_methods_own(suite: SuiteResults) -> None:
    heads = {"dapt": ["class", "prompt_mean", "patch_max"], "lora": ["patch_max", "class"], "vpt": ["class"]}

    def pooled(entry: Entry) -> Result | None:
        assert entry.result is not None
        settings = {"pool": heads.get(entry.method, ["class", "patch_max"])}
        spec = spec_of(entry.method, entry.dataset, entry.seed, method_settings=settings)
        return entry.result if entry.reference else entry.result.model_copy(update={"spec": spec})

    board = leaderboard(changed(suite, pooled))
    assert {cell_of(board, method, "sweethome12").protocol for method in ("dapt", "lora", "full")} == {"A"}
    assert cell_of(board, "vpt", "sweethome12").protocol == "B", "without the patches it is another head"


def test_numbers_beside_the_headline_are_shown_and_rank_nothing(suite: SuiteResults) -> None:
    plain, board = leaderboard(suite), leaderboard(with_asides(suite))
    assert [aside.key for aside in plain.asides()] == []
    assert [aside.key for aside in board.asides()] == ["accuracy_best_on_test", "accuracy_vote"]
    cell = cell_of(board, "lora", "sweethome12")
    best, vote = cell.aside("accuracy_best_on_test"), cell.aside("accuracy_vote")
    assert cell.summary is not None and best is not None and vote is not None
    assert best.summary.mean == pytest.approx(cell.summary.mean + 0.1) and best.votes == ()
    assert vote.summary.mean == pytest.approx(cell.summary.mean + 0.05) and vote.votes == (10,)
    assert cell_of(board, "full", "sweethome12").aside("accuracy_vote") is None
    assert any("Best on test is the papers' number" in notice for notice in board.notices)
    key = [(row.method, row.standing, [(c.summary, c.standing) for c in row.cells]) for row in plain.rows]
    assert key == [(row.method, row.standing, [(c.summary, c.standing) for c in row.cells]) for row in board.rows]


def test_an_accuracy_that_cannot_be_is_named(suite: SuiteResults) -> None:
    def wrong(entry: Entry) -> Result | None:
        assert entry.result is not None
        if (entry.method, entry.dataset, entry.seed) != ("lora", "sweethome12", 1):
            return entry.result
        return altered(entry.result, metrics={"accuracy": 0.8})

    [notice] = leaderboard(changed(suite, wrong)).notices
    assert notice == "lora on sweethome12, seed 1: an accuracy of 80 % cannot occur on a test set of 139 items."


def test_datasets_may_have_protocols_of_their_own(suite: SuiteResults) -> None:
    board = leaderboard(suite)
    assert board.notices == ()
    assert len(board.protocol) == 2 and "rotate" in board.protocol[1]
    assert {row.section for row in board.rows} == {0}


def test_failures_and_missing_trials_are_shown_and_never_filled_in(suite: SuiteResults) -> None:
    def broken(entry: Entry) -> Result | None:
        if entry.method == "lora" and entry.dataset == "sweethome12":
            return (
                failed(entry, error="Traceback (most recent call last):\n  File\nMemoryError: gone")
                if entry.seed
                else None
            )
        if entry.method == "vpt" and entry.seed == 0 and entry.result is not None:
            return altered(entry.result, metrics={"accuracy": None})
        return entry.result

    board = leaderboard(changed(suite, broken))
    cell = cell_of(board, "lora", "sweethome12")
    assert (cell.summary, cell.missing, cell.failures, cell.gaps) == (
        None,
        1,
        (("oom", 2),),
        "2 oom, 1 missing",
    )
    assert row_of(board, "lora").overall is None
    vpt = cell_of(board, "vpt", "sweethome12")
    assert vpt.summary is not None and vpt.summary.n == 2 and vpt.failures == (("no accuracy", 1),)
    assert (board.counts.done, board.counts.failed, board.counts.missing) == (45, 4, 1)
    assert "4 failed and 1 has no result yet" in board.notices[0]
    assert [(t.seeds, t.error) for t in board.troubles if t.status == "oom"] == [(("1", "2"), "MemoryError: gone")]


def test_a_failed_trial_counts_even_when_it_holds_an_accuracy(suite: SuiteResults) -> None:
    def fail(entry: Entry) -> Result | None:
        return (
            entry.result.model_copy(update={"status": "timeout"}) if entry.result and entry.seed == 2 else entry.result
        )

    cell = cell_of(leaderboard(changed(suite, fail)), "dapt", "sweethome12")
    assert cell.summary is not None and cell.summary.n == 2 and cell.failures == (("timeout", 1),)


def test_one_seed_has_binomial_intervals_and_no_comparison() -> None:
    board = leaderboard(synthetic(seeds=(0,)))
    cell = cell_of(board, "dapt", "sweethome12")
    assert cell.summary is not None and cell.summary.interval is not None
    assert cell.summary.interval.kind == "wilson" and cell.summary.sd is None
    assert not any(c.difference.separated for c in board.comparisons)
    assert all("fewer than two common seeds" in sentence for sentence in board.findings)


def test_a_suite_without_results_and_one_without_trials(suite: SuiteResults) -> None:
    board = leaderboard(changed(suite, lambda entry: None))
    assert len(board.rows) == 9 and board.counts.missing == 50
    assert board.findings == ("No method has a result yet.",)
    assert leaderboard(replace(suite, entries=())).rows == ()


def test_mixed_hardware_and_versions_are_said(suite: SuiteResults) -> None:
    def elsewhere(entry: Entry) -> Result | None:
        if entry.seed != 1 or entry.result is None:
            return entry.result
        return entry.result.model_copy(update={"environment": ENVIRONMENT | {"cpu": "Xeon", "torch": "2.14"}})

    board = leaderboard(changed(suite, elsewhere))
    assert dict(board.environment)["CPU"] == ("AMD EPYC 9B14", "Xeon")
    assert dict(board.environment)["GPU"] == ("none",)
    assert [notice.split("(")[1].split(")")[0] for notice in board.notices] == ["CPU", "PyTorch"]


def test_parameters_that_differ_between_datasets_are_noted(suite: SuiteResults) -> None:
    def larger(entry: Entry) -> Result | None:
        if entry.method != "lora" or entry.result is None or entry.dataset == "sweethome12":
            return entry.result
        return altered(entry.result, parameters={"trainable": 200_000})

    row = row_of(leaderboard(changed(suite, larger)), "lora")
    assert row.cost("parameters.trainable").value == 200_000
    assert any("131,020 on sweethome12 and 200,000 on sweethome12_scanlike" in note for note in row.notes)


def test_a_baseline_at_several_points_has_a_row_for_each(suite: SuiteResults) -> None:
    baseline = next(e for e in suite.entries if e.method == "nearest_neighbour")
    assert baseline.result is not None
    spec = baseline.result.spec | {"data": {"points": 1024}}
    twin = replace(baseline, id="f" * 16, result=baseline.result.model_copy(update={"id": "f" * 16, "spec": spec}))
    board = leaderboard(replace(suite, entries=(twin, *suite.entries)))
    rows = [row for row in board.rows if row.method == "nearest_neighbour"]
    assert sorted(row.key.variant for row in rows) == [0, 1]
    assert [note for row in rows for note in row.notes if note.startswith("At")] == ["At 1024 points per cloud."]


def test_the_picture_holds_every_method_and_its_names_keep_their_distance(suite: SuiteResults) -> None:
    found: tuple[Panel, ...] = panels(leaderboard(suite))
    assert [panel.dataset for panel in found] == list(DATASETS)
    for panel in found:
        assert len(panel.marks) == 9
        labels = sorted(mark.label_y for mark in panel.marks)
        assert all(b - a >= 15.9 for a, b in itertools.pairwise(labels))
        points = sorted(mark.x for mark in panel.marks if mark.x is not None)
        assert all(b - a >= 9.9 for a, b in itertools.pairwise(points))
        assert [mark.label for mark in panel.marks if mark.x is None] == ["nearest_neighbour"]
        assert all(panel.top <= y <= panel.bottom for mark in panel.marks for y in (mark.y, mark.label_y))


def test_spread_keeps_order_distance_and_bounds() -> None:
    rng = random.Random(1)
    for _ in range(200):
        wanted = [rng.choice([rng.uniform(0, 100), 50.0]) for _ in range(rng.randint(1, 12))]
        found = spread(wanted, apart=8, low=0, high=100)
        order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
        placed = [found[i] for i in order]
        assert all(b - a >= 8 - 1e-9 for a, b in itertools.pairwise(placed))
        assert min(found) >= -1e-9 and max(found) <= 100 + 1e-9
    assert spread([10.0, 50.0, 90.0], apart=8, low=0, high=100) == [10.0, 50.0, 90.0]


def test_ticks_are_round_and_enclose() -> None:
    assert linear_ticks(57.2, 85.1) == [55.0, 60.0, 65.0, 70.0, 75.0, 80.0, 85.0, 90.0]
    assert linear_ticks(50.0, 50.0)[0] <= 50.0 < linear_ticks(50.0, 50.0)[-1]
    assert log_ticks(90_000, 700_000) == [100_000, 200_000, 500_000]
    assert log_ticks(1, 1e9)[:3] == [1, 10, 100]
    assert log_ticks(240_000, 375_000) == [250_000, 300_000]
    assert log_ticks(21e6, 25e6) == [21e6, 22e6, 23e6, 24e6, 25e6]
    assert len(log_ticks(0.8, 0.99)) in range(2, 8)
