"""Every method against one of them, the yardstick: paired by (dataset, seed), per dataset and over all of them.

What a comparison rests on is said beside it: how far other seeds would move it, how far other test items would, and
from which number of pairs on a p-value means anything. Only rows of one protocol on one backbone are compared, on the
seeds and datasets that both have; nothing is filled in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.mistakes import Predictions
from reports.across import (
    SIGNIFICANT,
    Estimate,
    Friedman,
    Outcome,
    alike,
    average_ranks,
    friedman,
    interquartile_mean,
    outcome,
    probability_of_improvement,
    why_no_ranks,
)
from reports.columns import count
from reports.comparison import RowKey
from reports.items import ItemDifference, Run, compare_items
from reports.leaderboard import Cell, Leaderboard, Row
from reports.resampling import bootstrap_mean, stratified_mean
from reports.statistics import (
    PAIRS_FOR_P,
    Interval,
    PairedDifference,
    holm,
    mean,
    paired,
    signed_rank,
    smallest_p,
)

Items = Mapping[tuple[RowKey, str], Mapping[Run, Predictions]]
"""Predictions of a row's trials on a dataset."""


@dataclass(frozen=True)
class Against:
    """A method minus the yardstick on one dataset."""

    dataset: str
    method: RowKey
    yardstick: RowKey
    difference: PairedDifference
    bootstrap: Interval | None
    """Over seeds, beside the t-interval of `difference`."""
    p_holm: float | None
    """Adjusted for all methods that are compared on this dataset; None where there is no p-value."""
    items: ItemDifference | None
    """From predictions of the same items; None where they are not there, or items are not right or wrong."""
    outcome: Outcome


@dataclass(frozen=True)
class AgainstAll:
    """A method minus the yardstick over the datasets that both have."""

    method: RowKey
    yardstick: RowKey
    datasets: int
    pairs: int
    difference: float
    """Mean over datasets of the mean paired difference."""
    interval: Interval | None
    """Bootstrap, seeds resampled within each dataset."""
    improvement: Estimate | None
    wins: int
    ties: int
    losses: int
    p_value: float | None
    """Signed ranks of the datasets' mean differences; None for fewer than six datasets."""
    p_holm: float | None


@dataclass(frozen=True)
class Aggregate:
    """A method over all datasets, without a yardstick."""

    method: RowKey
    interquartile: Estimate | None
    rank: float | None
    """Mean over datasets of its rank among the rows of its group that have all datasets; 1 is best."""


@dataclass(frozen=True)
class Versus:
    """All comparisons with the yardstick."""

    yardstick: str
    each: tuple[Against, ...]
    overall: tuple[AgainstAll, ...]
    aggregates: tuple[Aggregate, ...]
    ranks: Friedman | None
    """Of the largest group of one protocol."""
    ranked: tuple[tuple[RowKey, float], ...]
    """The methods of that group and their mean ranks, the best first; empty where there is no such test."""
    groups: tuple[tuple[RowKey, ...], ...]
    """Of these, the ones that are not told apart, the best first; all of them where the test finds no difference."""
    sentences: tuple[str, ...]
    """What the numbers rest on, and which ones there are not, with the reason."""


def choose(board: Leaderboard) -> str | None:
    """The method that trains the most parameters, which is full fine-tuning where a suite has it; None without any."""
    sizes = {r.method: r.cost("parameters.trainable").value or 0.0 for r in reversed(board.rows) if not r.reference}
    return max(sorted(sizes), key=lambda method: sizes[method]) if sizes else None


def versus(board: Leaderboard, yardstick: str, items: Items) -> Versus:
    """Compare all rows with those of the method of that label."""
    rows = [row for row in board.rows if not row.reference]
    opposite = {row.backbone: row for row in reversed(rows) if row.method == yardstick}
    pairs = [(row, opposite[row.backbone]) for row in rows if row.backbone in opposite and row.method != yardstick]
    each, overall = differences(pairs, board.datasets, items)
    aggregates, ranks, ranked, why = _aggregates(board, rows) if len(board.datasets) > 1 else ((), None, (), "")
    sentences = about(each, overall, why)
    return Versus(yardstick, each, overall, aggregates, ranks, ranked, _groups(ranks, ranked), sentences)


Comparable = Callable[[Cell, Cell], bool]


def of_one_number(first: Cell, second: Cell) -> bool:
    """Whether both have a number, and the same one: no accuracy against an mIoU."""
    return first.metric == second.metric and first.summary is not None and second.summary is not None


def of_one_protocol(first: Cell, second: Cell) -> bool:
    """Whether both followed one protocol, too."""
    return of_one_number(first, second) and first.protocol == second.protocol


def differences(
    pairs: Sequence[tuple[Row, Row]], datasets: Sequence[str], items: Items, *, comparable: Comparable = of_one_protocol
) -> tuple[tuple[Against, ...], tuple[AgainstAll, ...]]:
    """The first of every pair of rows minus the second: by dataset, and over all where there are several."""
    each = [
        found
        for index, dataset in enumerate(datasets)
        for found in _adjusted([_against(a, b, index, items, comparable) for a, b in pairs], dataset)
    ]
    overall = _adjusted_overall([_against_all(a, b, comparable) for a, b in pairs]) if len(datasets) > 1 else []
    return tuple(each), tuple(overall)


def about(each: Sequence[Against], overall: Sequence[AgainstAll], *more: str) -> tuple[str, ...]:
    """What differences rest on, and which numbers there are not, with the reason."""
    return (*_about_p(each, overall), *filter(None, more), *_about_items(each))


def _against(row: Row, other: Row, index: int, items: Items, comparable: Comparable) -> Against | None:
    first, second = row.cells[index], other.cells[index]
    if not comparable(first, second):
        return None
    difference = paired(first.scores, second.scores)
    if difference is None:
        return None
    a, b = first.scores, second.scores
    own, others = items.get((row.key, first.dataset), {}), items.get((other.key, first.dataset), {})
    return Against(
        dataset=first.dataset,
        method=row.key,
        yardstick=other.key,
        difference=difference,
        bootstrap=bootstrap_mean([a[repeat] - b[repeat] for repeat in a if repeat in b]),
        p_holm=None,
        items=compare_items(own, others) if first.headline.counted else None,
        outcome=outcome(difference.mean),
    )


def _adjusted(found: Sequence[Against | None], dataset: str) -> list[Against]:
    """With Holm's adjustment; the family is all methods on one dataset."""
    here = [against for against in found if against is not None]
    tested = [p for against in here if (p := against.difference.p_value) is not None]
    adjusted = iter(holm(tested))
    return [replace(a, p_holm=next(adjusted)) if a.difference.p_value is not None else a for a in here]


def _against_all(row: Row, other: Row, comparable: Comparable) -> AgainstAll | None:
    cells = [(a, b) for a, b in zip(row.cells, other.cells, strict=True) if comparable(a, b)]
    if len({a.metric for a, _ in cells}) != 1:
        return None
    strata, own, others = [], [], []
    for a, b in cells:
        first, second = a.scores, b.scores
        common = sorted(set(first) & set(second))
        if common:
            strata.append([first[repeat] - second[repeat] for repeat in common])
            own.append([first[repeat] for repeat in common])
            others.append([second[repeat] for repeat in common])
    if not strata:
        return None
    means = [mean(differences) for differences in strata]
    outcomes = [outcome(difference) for difference in means]
    return AgainstAll(
        method=row.key,
        yardstick=other.key,
        datasets=len(strata),
        pairs=sum(map(len, strata)),
        difference=mean(means),
        interval=stratified_mean(strata),
        improvement=probability_of_improvement(own, others),
        wins=outcomes.count("win"),
        ties=outcomes.count("tie"),
        losses=outcomes.count("loss"),
        p_value=signed_rank(means),
        p_holm=None,
    )


def _adjusted_overall(found: Sequence[AgainstAll | None]) -> list[AgainstAll]:
    here = [against for against in found if against is not None]
    adjusted = iter(holm([against.p_value for against in here if against.p_value is not None]))
    return [replace(a, p_holm=next(adjusted)) if a.p_value is not None else a for a in here]


def _aggregates(
    board: Leaderboard, rows: Sequence[Row]
) -> tuple[tuple[Aggregate, ...], Friedman | None, tuple[tuple[RowKey, float], ...], str]:
    """Interquartile means, mean ranks within each group of one protocol, and the test of the largest group."""
    if board.measure is None:
        return (), None, (), "No aggregates over datasets: they are judged by different numbers."
    whole = [row for row in rows if all(cell.summary is not None for cell in row.cells)]
    groups: dict[int, dict[RowKey, list[float]]] = {}
    for row in whole:
        means = [cell.summary.mean for cell in row.cells if cell.summary is not None]
        groups.setdefault(row.section, {})[row.key] = means
    ranks = {key: rank for group in groups.values() for key, rank in average_ranks(group).items()}
    aggregates = tuple(
        Aggregate(row.key, interquartile_mean([list(cell.scores.values()) for cell in row.cells]), ranks[row.key])
        for row in whole
    )
    largest = groups[max(groups, key=lambda s: (len(groups[s]), -s))] if groups else {}
    test = friedman(largest)
    order = sorted(largest, key=lambda key: (ranks[key], key)) if test is not None else ()
    ranked = tuple((key, ranks[key]) for key in order)
    return aggregates, test, ranked, why_no_ranks(len(largest), len(board.datasets))


def _groups(test: Friedman | None, ranked: Sequence[tuple[RowKey, float]]) -> tuple[tuple[RowKey, ...], ...]:
    if test is None:
        return ()
    if test.p_value >= SIGNIFICANT:  # without it Nemenyi's comparisons are not made
        return (tuple(key for key, _ in ranked),)
    return tuple(alike(dict(ranked), test.critical_difference))


def _about_p(each: Sequence[Against], overall: Sequence[AgainstAll]) -> list[str]:
    found = []
    few = max((a.difference.n for a in each if a.difference.n < PAIRS_FOR_P), default=None)
    if few is not None:
        found.append(
            f"No p-value per dataset for fewer than {PAIRS_FOR_P} common seeds: with {few} the smallest two-sided p of "
            f"an exact paired test is {smallest_p(few):.3g}."
        )
    if any(a.p_holm is not None for a in each):
        found.append("p-values per dataset: exact signed ranks over common seeds, adjusted over the methods by Holm.")
    few = max((a.datasets for a in overall if a.datasets < PAIRS_FOR_P), default=None)
    if few is not None:
        found.append(
            f"No p-value over datasets: it takes one number per dataset, and {count(few, 'dataset')} cannot give a p "
            f"below {smallest_p(few):.3g}. Pooling their seeds would count the same dataset several times."
        )
    if any(a.p_holm is not None for a in overall):
        found.append("p-values over datasets: exact signed ranks of the datasets' means, adjusted by Holm.")
    return found


def _about_items(each: Sequence[Against]) -> list[str]:
    having = [a for a in each if a.items is not None]
    if not having:
        return []
    return [
        "Test items: the 95 % interval of the same difference if the trained models stayed and other test items of "
        "the kind were drawn; McNemar's exact test by seed. Seeds and items are separate sources of noise: a "
        "difference must stand against both."
    ]
