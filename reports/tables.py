"""Tables that every text format shows alike: plain text by cell, to be escaped by the format that writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.across import SIGNIFICANT, Estimate, Friedman
from reports.columns import NOTHING, listed, percent, points
from reports.comparison import RowKey
from reports.items import ItemDifference
from reports.leaderboard import Leaderboard, Published
from reports.statistics import Interval


@dataclass(frozen=True)
class Table:
    """A table of text; columns from `numbers_from` on are numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers_from: int


def versus_tables(board: Leaderboard) -> tuple[Table, ...]:
    """Every method against the yardstick: by dataset, over all datasets, and the aggregates over datasets."""
    found = (_by_dataset(board), _over_datasets(board), _aggregates(board))
    return tuple(table for table in found if table.rows)


PUBLISHED = (
    "Published values are of single runs, the best of all epochs on the test split. A difference is taken where the "
    "source states our augmentation and votes; the others are shown as of unknown protocol. A range: sources disagree, "
    "and the difference is to its nearer end."
)
MEASURES = {
    "accuracy": "last or chosen epoch",
    "instance_miou": "last or chosen epoch",
    "accuracy_best_on_test": "best on test",
    "instance_miou_best_on_test": "best on test",
    "accuracy_vote": "by vote",
}


def published_table(board: Leaderboard) -> Table:
    """Our cells beside what was published of them."""
    rows = []
    for row in board.rows:
        for cell in row.cells:
            for found in cell.published:
                ours = cell.aside(found.against or "")
                summary = ours.summary if ours is not None else cell.summary
                number = percent(summary.mean) if summary is not None and found.same_protocol else NOTHING
                of = MEASURES.get(found.against or "", NOTHING)
                values = (published_text(found), number, of, published_difference(found))
                rows.append((cell.dataset, board.label(row), "; ".join(found.sources), *values))
    header = ("Dataset", "Method", "Source", "Published, %", "Ours, %", "Ours is", "Difference, points")
    return Table("Beside published numbers", header, tuple(rows), 3)


def published_text(found: Published) -> str:
    """`85.2`, `93.3–94.2`, `94.4 by vote`, `92.7 (protocol unknown)`."""
    low, high = f"{100 * found.low:.2f}".rstrip("0").rstrip("."), f"{100 * found.high:.2f}".rstrip("0").rstrip(".")
    text = low if low == high else f"{low}–{high}"
    text += " by vote" if found.metric.endswith("_vote") else ""
    return text if found.same_protocol else f"{text} (protocol unknown)"


def published_difference(found: Published) -> str:
    """`+0.3`, or nothing where the protocol is unknown."""
    return NOTHING if found.difference is None else points(found.difference)


def pareto_sentence(board: Leaderboard) -> str:
    """What the mark ◆ says; empty where no row has one."""
    if not any(row.pareto for row in board.rows):
        return ""
    return f"◆: no other row of the same protocol is as good or better in {listed(list(board.pareto_by))} at once."


def signed_span(interval: Interval | None) -> str:
    """`−1.2 to +3.4` points."""
    return NOTHING if interval is None else f"{points(interval.low)} to {points(interval.high)}"


def span(interval: Interval | None) -> str:
    """`71.3–78.3` percent."""
    return NOTHING if interval is None else f"{percent(interval.low)}–{percent(interval.high)}"


def p_text(p_value: float | None) -> str:
    """`0.031`."""
    return NOTHING if p_value is None else "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def friedman_sentence(ranks: Friedman | None) -> str:
    """What Friedman's test says; empty where there is none."""
    if ranks is None:
        return ""
    differ = "differ" if ranks.p_value < SIGNIFICANT else "do not differ more than chance would have it"
    return (
        f"Over {ranks.datasets} datasets the mean ranks of {ranks.methods} methods {differ} (Friedman, p "
        f"{p_text(ranks.p_value)}); two of them are told apart from {ranks.critical_difference:.2f} ranks on (Nemenyi, "
        "5 %): methods that share a letter are not. Datasets that are variants of one another count as several here, "
        "and speak for less."
    )


def _by_dataset(board: Leaderboard) -> Table:
    assert board.versus is not None
    rows = []
    for a in board.versus.each:
        own = [
            board.label(a.method),
            points(a.difference.mean),
            str(a.difference.n),
            signed_span(a.difference.interval),
        ]
        rest = [signed_span(a.bootstrap), p_text(a.p_holm), item_span(a.items), mcnemar_text(a.items)]
        rows.append((a.dataset, *own, *rest))
    header = (
        *("Dataset", "Method", "Difference, points", "n", "95 % over seeds (t)", "95 % over seeds (bootstrap)"),
        *("p (Holm)", "95 % over test items", "McNemar p by seed"),
    )
    return Table("Differences by dataset", header, tuple(rows), 2)


def item_span(items: ItemDifference | None) -> str:
    """The interval over test items in points."""
    return signed_span(items.interval) if items is not None else NOTHING


def mcnemar_text(items: ItemDifference | None) -> str:
    """McNemar's p of every seed."""
    return ", ".join(p_text(seed.p_value) for seed in items.seeds) if items is not None else NOTHING


def _over_datasets(board: Leaderboard) -> Table:
    assert board.versus is not None
    rows = []
    for a in board.versus.overall:
        own = [board.label(a.method), points(a.difference), signed_span(a.interval), f"{a.datasets} ({a.pairs})"]
        outcomes = f"{a.wins} / {a.ties} / {a.losses}"
        rows.append((*own, _estimate(a.improvement), outcomes, p_text(a.p_holm)))
    header = (
        *("Method", "Difference, points", "95 % (bootstrap)", "Datasets (pairs)"),
        *("Runs that beat it, %", "Win / tie / loss", "p (Holm)"),
    )
    return Table("Differences over all datasets", header, tuple(rows), 1)


def _aggregates(board: Leaderboard) -> Table:
    assert board.versus is not None
    order = sorted(board.versus.aggregates, key=lambda a: (a.rank or 0.0, a.method))
    rows: list[tuple[str, ...]] = [
        (board.label(a.method), _estimate(a.interquartile), NOTHING if a.rank is None else f"{a.rank:.2f}")
        for a in order
    ]
    header: tuple[str, ...] = ("Method", "Interquartile mean, %", "Mean rank")
    if board.versus.ranks is not None:
        rows = [(*row, _letters(board.versus.groups, a.method)) for row, a in zip(rows, order, strict=True)]
        header = (*header, "Not told apart")
    return Table("Aggregates over all datasets", header, tuple(rows), 1)


def _letters(groups: Sequence[Sequence[RowKey]], method: RowKey) -> str:
    """`a b`: methods that share a letter are not told apart by their ranks."""
    found = [chr(ord("a") + k) if k < 26 else str(k + 1) for k, group in enumerate(groups) if method in group]
    return " ".join(found) or NOTHING


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None:
        return NOTHING
    interval = f" ({span(estimate.interval)})" if estimate.interval is not None else ""
    return f"{percent(estimate.value)}{interval}"


def versus_notes(board: Leaderboard) -> Sequence[str]:
    """What the comparisons rest on, and how to read them."""
    if board.versus is None:
        return ()
    notes = [
        f"Paired by dataset and seed: each method minus {board.versus.yardstick}, on the seeds that both have. "
        "Seeds are other training runs on the same data, order and augmentation.",
        *board.versus.sentences,
    ]
    if board.versus.overall:
        notes.append(
            "Win, tie, loss: datasets whose mean difference is above, within or below 0.2 points. Runs that beat it: "
            "how likely a run of the method beats one of the other on a dataset taken at random, 50 is a draw."
        )
    return [*notes, *filter(None, [friedman_sentence(board.versus.ranks)])]
