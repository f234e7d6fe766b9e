"""Every seed as a point, and how often a method takes which rank."""

from __future__ import annotations

from collections import Counter

import matplotlib
from matplotlib.figure import Figure
from scipy import stats

from reports.across import average_ranks
from reports.comparison import Repeat, RowKey
from reports.figures.style import EDGE, ends, grid, legend_below, looks, short
from reports.leaderboard import Leaderboard, Row


def seeds(board: Leaderboard) -> Figure | None:
    """Scores of single seeds (or folds), their mean and its 95 % interval; a panel per dataset."""
    panels = []
    for index, dataset in enumerate(board.datasets):
        rows = [row for row in board.rows if row.cells[index].summary is not None]
        if rows:
            panels.append((dataset, index, sorted(rows, key=lambda row: (row.reference, -_mean(row, index), row.key))))
    if not panels:
        return None
    look = looks(board)
    most = max(len(rows) for _, _, rows in panels)
    figure, axes = grid(len(panels), width=4.2, height=1.0 + 0.26 * most, columns=2)
    for ax, (dataset, index, rows) in zip(axes, panels, strict=True):
        intervals, means = [], []
        for place, row in enumerate(reversed(rows)):
            cell, own = row.cells[index], look[row.key]
            summary = cell.summary
            assert summary is not None
            intervals.append(ends(summary))
            means.append(100 * summary.mean)
            values = [100 * value for value in cell.scores.values()]
            ax.plot(values, [place] * len(values), own.marker, color=own.colour, markersize=6, **EDGE)
        lows, highs = zip(*intervals, strict=True)
        ax.hlines(range(len(rows)), lows, highs, colors="#9A9A9A", linewidth=3.5, alpha=0.45, zorder=1.5)
        ax.plot(means, range(len(means)), "|", color="#222222", markersize=11, markeredgewidth=1.6)
        ax.set_yticks(range(len(rows)), [short(board.label(row)) for row in reversed(rows)])
        ax.set_title(short(dataset))
        ax.set_xlabel(f"{board.headlines[index].title}, %: seeds, mean and 95 % interval")
    return figure


def _mean(row: Row, index: int) -> float:
    summary = row.cells[index].summary
    return summary.mean if summary is not None else 0.0


def ranks(board: Leaderboard) -> Figure | None:
    """Share of (dataset, seed) pairs on which a method takes each rank, over the pairs that all methods have.

    Of the rows of the most common protocol. A bar gives Nemenyi's critical difference where there are datasets enough.
    """
    rows = [row for row in board.rows if not row.reference and row.section == 0]
    rows = [row for row in rows if all(cell.summary is not None for cell in row.cells)]
    taken: dict[RowKey, Counter[int]] = {row.key: Counter() for row in rows}
    for index, repeat in _common(board, rows):
        scores = [row.cells[index].scores[repeat] for row in rows]
        for row, rank in zip(rows, stats.rankdata([-round(s, 12) for s in scores], method="min"), strict=True):
            taken[row.key][int(rank)] += 1
    if len(rows) < 2 or not any(taken[row.key].total() for row in rows):
        return None
    means = average_ranks({row.key: [c.summary.mean for c in row.cells if c.summary is not None] for row in rows})
    order = sorted(rows, key=lambda row: (-means[row.key], row.key))
    figure, (ax,) = grid(1, width=6.2, height=1.5 + 0.26 * len(rows))
    shades = matplotlib.colormaps["cividis_r"]
    for place, row in enumerate(order):
        left, total = 0.0, taken[row.key].total()
        for rank in range(1, len(rows) + 1):
            share = 100 * taken[row.key][rank] / total
            shade = shades((rank - 1) / max(1, len(rows) - 1))
            ax.barh(place, share, left=left, color=shade, edgecolor="white", linewidth=0.6)
            if share >= 7:
                light = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 0.55
                ax.text(
                    left + share / 2, place, str(rank), ha="center", va="center", color="black" if light else "white"
                )
            left += share
        ax.text(101, place, f"{means[row.key]:.2f}", va="center")
    ax.set_xlim(0, 100)
    ax.set_yticks(range(len(order)), [short(board.label(row)) for row in order])
    ax.grid(visible=False)
    pairs = taken[order[0].key].total()
    found = board.versus.ranks if board.versus is not None else None
    end = f"; critical difference {found.critical_difference:.2f}" if found is not None else ""
    ax.set_xlabel(f"% of {pairs} (dataset, seed) pairs by rank; at the right the mean rank over datasets{end}")
    legend_below(figure, [ax])
    return figure


def _common(board: Leaderboard, rows: list[Row]) -> list[tuple[int, Repeat]]:
    found = []
    for index in range(len(board.datasets)):
        repeats = [set(row.cells[index].scores) for row in rows]
        found += [(index, repeat) for repeat in sorted(set.intersection(*repeats))] if repeats else []
    return found
