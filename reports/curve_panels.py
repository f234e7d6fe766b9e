"""Learning curves on the page: lines and bands in pixels, names at the right where the lines end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.text import cut
from reports.comparison import RowKey
from reports.curves import LOSS, Band
from reports.leaderboard import Leaderboard
from reports.panels import (
    BOTTOM,
    LABEL_HEIGHT,
    LEFT,
    LONGEST_LABEL,
    RIGHT,
    SHORTEST_PLOT,
    TOP,
    WIDTH,
    Tick,
    colours_of,
    linear_ticks,
    log_ticks,
    short,
    spread,
)


@dataclass(frozen=True)
class Line:
    """A method: its mean and the band of its seeds as SVG points, and its name."""

    points: str
    band: str
    end_x: float
    end_y: float
    label: str
    label_y: float
    colour: int
    tooltip: str


@dataclass(frozen=True)
class CurvePanel:
    """One dataset's curves of one kind."""

    dataset: str
    title: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def curve_panels(board: Leaderboard, bands: Mapping[str, Mapping[tuple[RowKey, str], Band]]) -> tuple[CurvePanel, ...]:
    """Training loss first, then what was measured on the way, a panel per dataset."""
    known = {row.key for row in board.rows if not row.reference}
    found = []
    for name in sorted(bands, key=lambda name: (name != LOSS, name)):
        for dataset in board.datasets:
            shown = [(k, b) for (k, d), b in sorted(bands[name].items()) if d == dataset and k in known]
            if shown:
                found.append(_panel(board, name, dataset, shown))
    return tuple(found)


def _panel(board: Leaderboard, name: str, dataset: str, shown: Sequence[tuple[RowKey, Band]]) -> CurvePanel:
    plot = max(SHORTEST_PLOT, LABEL_HEIGHT * (len(shown) + 1))
    bottom, right = TOP + plot, WIDTH - RIGHT
    low, high = min(min(b.low) for _, b in shown), max(max(b.high) for _, b in shown)
    loss = name == LOSS
    logarithmic = loss and low > 0
    scale = 1.0 if loss else 100.0
    ticks = log_ticks(low / 1.05, high * 1.05) if logarithmic else linear_ticks(scale * low, scale * high)
    if logarithmic:
        bounds = math.log(low / 1.05), math.log(high * 1.05)
    else:
        bounds = min(ticks[0], scale * low), max(ticks[-1], scale * high)
    last = max(b.epochs[-1] for _, b in shown) + 1

    def y_at(value: float) -> float:
        at = math.log(max(value, 1e-12)) if logarithmic else value
        return round(bottom - (at - bounds[0]) / (bounds[1] - bounds[0]) * plot, 1)

    def x_at(epoch: int) -> float:
        return round(LEFT + (epoch + 1) / last * (right - LEFT), 1)

    ends = [y_at(scale * b.mean[-1]) for _, b in shown]
    label_ys = spread(ends, apart=LABEL_HEIGHT, low=TOP + 6, high=bottom - 4)
    colours = colours_of(board)
    lines = []
    for (key, b), end, label_y in zip(shown, ends, label_ys, strict=True):
        xs = [x_at(epoch) for epoch in b.epochs]
        upper = [f"{x:g},{y_at(scale * v):g}" for x, v in zip(xs, b.high, strict=True)]
        lower = [f"{x:g},{y_at(scale * v):g}" for x, v in zip(xs, b.low, strict=True)]
        label = board.label(key)
        value = f"{b.mean[-1]:.3f}" if loss else f"{100 * b.mean[-1]:.1f} %"
        lines.append(
            Line(
                points=" ".join(f"{x:g},{y_at(scale * v):g}" for x, v in zip(xs, b.mean, strict=True)),
                band=" ".join([*upper, *reversed(lower)]) if b.seeds > 1 else "",
                end_x=xs[-1],
                end_y=end,
                label=cut(label, LONGEST_LABEL),
                label_y=round(label_y, 1),
                colour=colours[key],
                tooltip=f"{label}: {value} after {b.epochs[-1] + 1} epochs, mean of {b.seeds}",
            )
        )
    x_ticks = tuple(Tick(x_at(int(v) - 1), f"{v:g}") for v in linear_ticks(0, last) if 0 < v <= last and v == int(v))
    y_ticks = tuple(Tick(y_at(v), short(v) if logarithmic else f"{v:g}") for v in ticks)
    title = "Training loss" if loss else f"{name.replace('/', ' ').replace('_', ' ').capitalize()}, %"
    return CurvePanel(dataset, title, WIDTH, bottom + BOTTOM, LEFT, right, TOP, bottom, x_ticks, y_ticks, tuple(lines))
