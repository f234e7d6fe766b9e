"""Learning curves: a method's mean over seeds, and a band from the smallest to the largest."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.comparison import RowKey
from reports.curves import LOSS, Band
from reports.figures.style import EDGE, grid, legend_below, log_y, looks, short
from reports.leaderboard import Leaderboard

TITLES = {LOSS: "training loss"}


def curves(board: Leaderboard, name: str, bands: Mapping[tuple[RowKey, str], Band]) -> Figure | None:
    """The curve of that name, a panel per dataset."""
    known = {row.key for row in board.rows}
    shown = {(key, dataset): found for (key, dataset), found in bands.items() if key in known}
    datasets = [dataset for dataset in board.datasets if any(d == dataset for _, d in shown)]
    if not datasets:
        return None
    look = looks(board)
    scale = 1.0 if name == LOSS else 100.0
    figure, axes = grid(len(datasets))
    for ax, dataset in zip(axes, datasets, strict=True):
        for (key, place), found in sorted(shown.items()):
            if place != dataset:
                continue
            own, epochs = look[key], [epoch + 1 for epoch in found.epochs]
            middle, lower, upper = ([scale * v for v in part] for part in (found.mean, found.low, found.high))
            ax.plot(
                epochs,
                middle,
                color=own.colour,
                linestyle=own.dash,
                marker=own.marker,
                markevery=max(1, len(epochs) // 6),
                markersize=4,
                **EDGE,
                label=short(board.label(key)),
            )
            ax.fill_between(epochs, lower, upper, color=own.colour, alpha=0.13, linewidth=0)
        ax.set_title(short(dataset))
        ax.set_xlabel("epoch; band: smallest to largest seed")
        ax.set_ylabel(TITLES.get(name, f"{name.replace('/', ' ').replace('_', ' ')}, %"))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        here = [found for (_, place), found in shown.items() if place == dataset]
        low, high = min(min(b.low) for b in here), max(max(b.high) for b in here)
        if name == LOSS and low > 0:
            log_y(ax, low, high)
    legend_below(figure, axes)
    return figure
