"""What a score costs: against trainable parameters, memory and time, with the Pareto front; where memory goes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.columns import BY_KEY
from reports.figures.style import EDGE, ends, grid, legend_below, log_x, looks, short
from reports.leaderboard import Cell, Leaderboard, Row
from reports.pareto import front
from reports.statistics import Summary

MB = 1e6
FLOAT, ADAM = 4, 8
"""Bytes of a weight or a gradient in fp32, and of AdamW's two moments."""
PARTS = (
    ("weights", "#0072B2", ""),
    ("gradients", "#E69F00", "///"),
    ("AdamW", "#009E73", "..."),
    ("rest", "#CFCFCF", ""),
)


def memory_key(board: Leaderboard) -> str:
    """The GPU's peak where a row has one, else the process's on the host."""
    measured = any(row.cost("memory.train_peak").value is not None for row in board.rows)
    return "memory.train_peak" if measured else "memory.host_peak"


def against(board: Leaderboard, key: str) -> Figure | None:
    """Means and their 95 % intervals against a cost, a panel per dataset; the front of each protocol dashed."""
    panels = []
    for index, dataset in enumerate(board.datasets):
        cells = [(row, row.cells[index]) for row in board.rows if not row.reference]
        shown = [
            (row, cell, value, cell.summary)
            for row, cell in cells
            if cell.summary is not None and (value := cell.cost(key).value) is not None and value > 0
        ]
        if shown:
            panels.append((dataset, index, shown))
    if not panels:
        return None
    column, look = BY_KEY[key], looks(board)
    figure, axes = grid(len(panels))
    for ax, (dataset, index, shown) in zip(axes, panels, strict=True):
        ax.vlines(  # one collection: a panel of single ones takes matplotlib three times as long
            [value * column.scale for _, _, value, _ in shown],
            ymin=[ends(summary)[0] for *_, summary in shown],
            ymax=[ends(summary)[1] for *_, summary in shown],
            colors=[look[row.key].colour for row, *_ in shown],
            linewidth=1.1,
        )
        for row, _, value, summary in shown:
            own, x, y = look[row.key], value * column.scale, 100 * summary.mean
            label = short(board.label(row))
            ax.plot(x, y, own.marker, color=own.colour, markersize=7, label=label, **EDGE)
        for points in _fronts(shown, column.scale):
            ax.step(
                *zip(*points, strict=True), where="post", color="#777777", linestyle=(0, (3, 2)), linewidth=1, zorder=1
            )
        log_x(ax, [value * column.scale for _, _, value, _ in shown])
        ax.set_title(short(dataset))
        ax.set_xlabel(f"{_words(column.key)}{f', {column.unit}' if column.unit else ''} (log)")
        ax.set_ylabel(f"{board.headlines[index].title}, %")
    legend_below(figure, axes)
    return figure


def _words(key: str) -> str:
    names = {
        "parameters.trainable": "trainable parameters",
        "memory.train_peak": "peak GPU memory in training",
        "memory.host_peak": "peak memory of the process",
        "time.step": "time of a training step",
    }
    return names[key]


def _fronts(shown: Sequence[tuple[Row, Cell, float, Summary]], scale: float) -> list[list[tuple[float, float]]]:
    """Of each protocol, the corners of the staircase that no row of it is above and left of."""
    found = []
    for letter in sorted({cell.protocol for _, cell, _, _ in shown}, key=str):
        points = [(value * scale, 100 * summary.mean) for _, cell, value, summary in shown if cell.protocol == letter]
        best = front([(x, -y) for x, y in points])
        corners = sorted({point for point, kept in zip(points, best, strict=True) if kept})
        if len(corners) > 1:
            found.append(corners)
    return found


def memory(board: Leaderboard) -> Figure | None:
    """Peak memory by purpose: what weights, gradients and AdamW's moments take in fp32, and the rest of the peak."""
    key = memory_key(board)
    rows = [
        (row, peak, total, trainable)
        for row in reversed(board.rows)
        if (peak := row.cost(key).value) is not None
        and (total := row.cost("parameters.total").value) is not None
        and (trainable := row.cost("parameters.trainable").value) is not None
        and not row.reference
    ]
    if not rows:
        return None
    figure, (ax,) = grid(1, width=6.2, height=1.3 + 0.26 * len(rows))
    for place, (_, peak, total, trainable) in enumerate(rows):
        parts = [FLOAT * total, FLOAT * trainable, ADAM * trainable]
        parts.append(max(0.0, peak - sum(parts)))
        left = 0.0
        for part, (name, colour, hatch) in zip(parts, PARTS, strict=True):
            label = name if place == 0 else None
            ax.barh(
                place, part / MB, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4, label=label
            )
            left += part / MB
    ax.set_yticks(range(len(rows)), [short(board.label(row)) for row, *_ in rows])
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.grid(axis="y", visible=False)
    what = "activations and workspace" if key == "memory.train_peak" else "libraries, data and activations"
    ax.set_xlabel(f"{_words(key)}, MB; rest: {what}")
    legend_below(figure, [ax])
    return figure
