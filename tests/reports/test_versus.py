"""Every method against a yardstick: on common seeds and datasets only, by hand-computed numbers."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from harness.errors import UserError
from harness.result import Result
from harness.store import Entry, SuiteResults
from reports import html, markdown
from reports.build import leaderboard
from reports.critical import critical
from reports.tables import versus_tables
from reports.versus import AgainstAll, Versus
from tests.reports.synthetic import METHODS, altered, changed, spec_of, synthetic, write_folder


def versus_of(results: SuiteResults) -> Versus:
    found = leaderboard(results).versus
    assert found is not None
    return found


def scores(results: SuiteResults, method: str, dataset: str) -> dict[int, float]:
    return {
        e.seed: e.result.metrics.accuracy
        for e in results.entries
        if e.result is not None and (e.method, e.dataset) == (method, dataset) and e.result.metrics.accuracy is not None
    }


def test_the_yardstick_is_what_trains_most_unless_one_is_named(suite: SuiteResults) -> None:
    assert versus_of(suite).yardstick == "full"
    chosen = versus_of(replace(suite, yardstick="lora"))
    assert chosen.yardstick == "lora" and {a.yardstick.method for a in chosen.each} == {"lora"}
    assert {a.method.method for a in chosen.each} == set(METHODS) - {"lora"}


def test_an_unknown_yardstick_is_an_error_that_helps(suite: SuiteResults) -> None:
    with pytest.raises(UserError, match="no method 'lorra' to compare with; did you mean 'lora'"):
        leaderboard(replace(suite, yardstick="lorra"))
    with pytest.raises(UserError, match="no method 'random_probe'"):
        leaderboard(replace(suite, yardstick="random_probe"))


def test_differences_are_paired_on_common_seeds_only(suite: SuiteResults) -> None:
    def broken(entry: Entry) -> Result | None:
        if entry.method == "lora" and entry.seed == 1 and entry.dataset == "sweethome12":
            return None
        return entry.result

    results = changed(suite, broken)
    [found] = [a for a in versus_of(results).each if (a.method.method, a.dataset) == ("lora", "sweethome12")]
    ours, theirs = (scores(results, method, "sweethome12") for method in ("lora", "full"))
    differences = [ours[seed] - theirs[seed] for seed in (0, 2)]
    assert found.difference.n == 2 and found.difference.mean == pytest.approx(np.mean(differences))
    assert found.p_holm is None and found.items is None
    assert found.bootstrap is not None and found.bootstrap.low == pytest.approx(min(differences))


def test_over_datasets_by_hand(suite: SuiteResults) -> None:
    [found] = [a for a in versus_of(suite).overall if a.method.method == "dapt"]
    means = []
    for dataset in ("sweethome12", "sweethome12_scanlike"):
        ours, theirs = scores(suite, "dapt", dataset), scores(suite, "full", dataset)
        means.append(np.mean([ours[seed] - theirs[seed] for seed in ours]))
    assert (found.datasets, found.pairs) == (2, 6)
    assert found.difference == pytest.approx(np.mean(means))
    assert (found.wins, found.ties, found.losses) == (sum(m > 0.002 for m in means), 0, sum(m < -0.002 for m in means))
    assert found.p_value is None and found.interval is not None and found.improvement is not None


def test_reasons_stand_where_p_values_do_not(suite: SuiteResults) -> None:
    text = " ".join(versus_of(suite).sentences)
    assert "with 3 the smallest two-sided p of an exact paired test is 0.25" in text
    assert "2 datasets cannot give a p below 0.5" in text
    assert "they need at least 8 datasets" in text


def many(datasets: int, seeds: int) -> SuiteResults:
    """The suite's first dataset under other names, with other accuracies."""
    draw = np.random.default_rng(1)
    plain = [e for e in synthetic(seeds=tuple(range(seeds))).entries if e.dataset == "sweethome12" and not e.reference]
    entries = []
    for k in range(datasets):
        for entry in plain:
            assert entry.result is not None
            accuracy = round(139 * (METHODS[entry.method][1] + float(draw.normal(0, 0.02)))) / 139
            result = altered(entry.result, metrics={"accuracy": accuracy, "correct": round(139 * accuracy)})
            entries.append(replace(entry, dataset=f"set{k}", id=f"{k}{entry.id}", result=result))
    return SuiteResults("many", "", "0" * 16, tuple(entries))


def test_with_enough_seeds_p_values_are_exact_and_adjusted() -> None:
    results = many(1, 7)
    found = versus_of(results)
    raw = []
    for against in found.each:
        ours, theirs = (scores(results, m, "set0") for m in (against.method.method, "full"))
        raw.append(stats.wilcoxon([round(ours[s] - theirs[s], 12) for s in ours], zero_method="pratt").pvalue)
    assert [a.difference.p_value for a in found.each] == pytest.approx(raw)
    by_hand, largest = {}, 0.0
    for place, index in enumerate(np.argsort(raw, kind="stable")):
        largest = max(largest, min(1.0, (len(raw) - place) * raw[index]))
        by_hand[int(index)] = largest
    assert [a.p_holm for a in found.each] == pytest.approx([by_hand[i] for i in range(len(raw))])


def test_with_enough_datasets_there_are_ranks_and_a_critical_difference() -> None:
    found = versus_of(many(9, 3))
    assert found.ranks is not None and (found.ranks.methods, found.ranks.datasets) == (7, 9)
    assert found.ranks.p_value < 0.05 and 0 < found.ranks.critical_difference < 7
    ranks = {a.method.method: a.rank for a in found.aggregates}
    assert min(ranks, key=lambda m: ranks[m] or 9) in ("adapter", "dapt") and sum(r or 0 for r in ranks.values()) == 28
    assert [key.method for key, _ in found.ranked] == sorted(ranks, key=lambda m: ranks[m] or 9)
    assert {key.method for group in found.groups for key in group} >= {"adapter", "dapt"}
    over: dict[str, AgainstAll] = {a.method.method: a for a in found.overall}
    assert over["adapter"].wins == 9 and over["adapter"].p_value == pytest.approx(2 / 2**9)
    assert over["adapter"].p_holm is not None and over["adapter"].p_holm >= 2 / 2**9
    assert not any("Friedman" in sentence for sentence in found.sentences)


def test_other_protocols_are_not_compared(suite: SuiteResults) -> None:
    def other(entry: Entry) -> Result | None:
        if entry.method != "dapt" or entry.result is None or entry.dataset != "sweethome12":
            return entry.result
        return entry.result.model_copy(update={"spec": spec_of("dapt", entry.dataset, entry.seed, data_points=1024)})

    found = versus_of(changed(suite, other))
    assert {a.dataset for a in found.each if a.method.method == "dapt"} == {"sweethome12_scanlike"}
    assert [a.datasets for a in found.overall if a.method.method == "dapt"] == [1]


def test_test_set_noise_is_told_from_predictions(suite: SuiteResults, tmp_path: Path) -> None:
    store = write_folder(suite, tmp_path)
    label = np.arange(139, dtype=np.int16) % 12
    for entry in suite.entries:
        assert entry.result is not None and entry.result.metrics.correct is not None
        wrong = 139 - entry.result.metrics.correct
        prediction = label.copy()
        prediction[:wrong] = (prediction[:wrong] + 1) % 12
        if entry.id == suite.entries[0].id:
            prediction = np.roll(prediction, 1)  # not what the result says: left out
        np.savez(store.trial(entry.id).path / "predictions.npz", prediction=prediction, label=label)
    found = versus_of(store.load("quickstart"))
    [lora] = [a for a in found.each if (a.method.method, a.dataset) == ("lora", "sweethome12_scanlike")]
    assert lora.items is not None and lora.items.mean == pytest.approx(lora.difference.mean)
    for seed in lora.items.seeds:
        ours, theirs = (scores(suite, m, "sweethome12_scanlike")[seed.seed] for m in ("lora", "full"))
        assert seed.first_only - seed.second_only == round(139 * (ours - theirs))
        assert min(seed.first_only, seed.second_only) == 0, "nested sets of right items"
    [dapt] = [a for a in found.each if (a.method.method, a.dataset) == ("dapt", "sweethome12")]
    assert dapt.items is not None and len(dapt.items.seeds) == 2, "full's first trial disagrees with its predictions"
    assert any("McNemar" in sentence for sentence in found.sentences)
    assert leaderboard(suite).versus != found, "without the folder there are no predictions"


def test_the_critical_difference_picture_is_laid_out_to_scale() -> None:
    board = leaderboard(many(9, 3))
    found = critical(board)
    assert found is not None and board.versus is not None and board.versus.ranks is not None
    ranks = dict(board.versus.ranked)
    unit = (found.right - found.left) / (len(ranks) - 1)
    for place, rank in zip(found.places, ranks.values(), strict=True):
        assert place.x == pytest.approx(found.left + (rank - 1) * unit, abs=0.1) and place.rank == f"{rank:.2f}"
    width = found.difference.x2 - found.difference.x1
    assert width == pytest.approx(board.versus.ranks.critical_difference * unit, abs=0.1)
    assert len(found.bars) == len(board.versus.groups) and all(b.x2 - b.x1 < width + 8.1 for b in found.bars)
    rows = sorted(p.y for p in found.places if p.left)
    assert all(b - a >= 15 for a, b in pairwise(rows)), "no name covers another"
    page = html.render(board)
    assert "Mean ranks over datasets" in page and "critical difference" in page
    aggregates = versus_tables(board)[-1]
    assert aggregates.header[-1] == "Not told apart" and len(aggregates.rows) == 7
    letters = {row[0]: set(row[-1].split()) - {"–"} for row in aggregates.rows}
    for first, second in pairwise(key.method for key, _ in board.versus.ranked):
        together = any({first, second} <= {key.method for key in group} for group in board.versus.groups)
        assert bool(letters[first] & letters[second]) == together


def test_too_few_datasets_have_no_such_picture_and_the_text_says_why() -> None:
    board = leaderboard(many(3, 3))
    assert critical(board) is None and "Mean ranks over datasets" not in html.render(board)
    assert "at least 8 datasets" in html.render(board) and "at least 8 datasets" in markdown.render(board)
    assert versus_tables(board)[-1].header[-1] == "Mean rank"


def test_without_a_difference_by_friedman_nothing_is_told_apart() -> None:
    results = many(9, 1)
    found = versus_of(
        changed(results, lambda e: altered(e.result, metrics={"accuracy": 0.5, "correct": 69}) if e.result else None)
    )
    assert len(found.groups) == 1 and len(found.groups[0]) == 7
