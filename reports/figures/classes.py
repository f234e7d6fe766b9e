"""Accuracy by class of every method, and what the best method takes for what."""

from __future__ import annotations

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reports.classes import ByClass
from reports.figures.style import grid, short
from reports.leaderboard import Leaderboard

MOST_NUMBERS = 20
"""With more columns than this, squares carry no numbers."""


def accuracy(board: Leaderboard, table: ByClass) -> Figure | None:
    """Methods by classes, in percent over all seeds."""
    rows = [row for row in board.rows if row.key in table.confusion]
    if not rows:
        return None
    values = 100 * np.stack([table.accuracy(row.key) for row in rows])
    figure, (ax,) = grid(1, width=2.2 + 0.42 * len(table.names), height=1.6 + 0.28 * len(rows))
    _squares(ax, values)
    ax.set_yticks(range(len(rows)), [short(board.label(row)) for row in rows])
    ax.set_xticks(
        range(len(table.names)), [short(n, 18) for n in table.names], rotation=40, ha="right", rotation_mode="anchor"
    )
    ax.set_title(f"{short(table.dataset)}: accuracy by class, %")
    return figure


def confusion(board: Leaderboard, table: ByClass) -> Figure | None:
    """What items of a class (lines) are taken for (columns), in percent of the class; the method with the best mean."""
    index = board.datasets.index(table.dataset)
    rows = [row for row in board.rows if row.key in table.confusion and row.cells[index].summary is not None]
    if not rows:
        return None
    best = max(rows, key=lambda row: (s.mean if (s := row.cells[index].summary) is not None else 0.0, row.key))
    counts = table.confusion[best.key].astype(float)
    items = counts.sum(axis=1, keepdims=True)
    values = np.divide(100 * counts, items, out=np.full_like(counts, np.nan), where=items > 0)
    names = [short(name, 18) for name in table.names]
    size = 1.8 + 0.36 * len(names)
    figure, (ax,) = grid(1, width=size + 0.6, height=size)
    _squares(ax, values, zeros=False)
    ax.set_yticks(range(len(names)), names)
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_ylabel("true class")
    ax.set_xlabel("predicted class")
    ax.set_title(f"{short(table.dataset)}, {short(board.label(best))}: % of a true class")
    return figure


def _squares(ax: Axes, values: npt.NDArray[np.float64], *, zeros: bool = True) -> None:
    """Shaded squares, darker for more, with whole numbers where there is room."""
    shades = matplotlib.colormaps["Blues"]
    ax.imshow(values, cmap=shades, vmin=0, vmax=125, aspect="auto")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    if values.shape[1] > MOST_NUMBERS:
        return
    for (line, column), value in np.ndenumerate(values):
        if np.isfinite(value) and (zeros or round(value)):
            ax.text(
                column,
                line,
                f"{value:.0f}",
                ha="center",
                va="center",
                color="white" if value > 70 else "#222222",
                size=7,
            )
