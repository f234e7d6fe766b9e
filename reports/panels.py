"""A score against a cost: where everything stands on the page's picture, in its own pixels.

One panel per dataset, logarithmic x. Names stand in a column at the right, spread so that none covers another, each
tied to its point by a thin line; points that would cover one another are moved apart sideways by a few pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.text import cut
from reports import pareto
from reports.columns import BY_KEY, Column, mean_and_sd, n_and_interval
from reports.comparison import RowKey
from reports.leaderboard import Cell, Leaderboard, Row
from reports.statistics import Summary

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 560.0, 48.0, 164.0, 14.0, 46.0
LABEL_HEIGHT = 16.0
SHORTEST_PLOT = 220.0
APART = 10.0
COLOURS = 8
LONGEST_LABEL = 20
TRAINABLE = "parameters.trainable"


@dataclass(frozen=True)
class Mark:
    """A method: its point and its name. `x` is None for one that trains nothing: a line across the panel."""

    x: float | None
    y: float
    low: float | None
    high: float | None
    label: str
    label_y: float
    colour: int
    reference: bool
    tooltip: str


@dataclass(frozen=True)
class Tick:
    """A position on an axis and what stands there."""

    at: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One dataset's picture."""

    dataset: str
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    fronts: tuple[str, ...] = ()
    """Of each protocol, the corners of its Pareto front as SVG points."""


def colours_of(board: Leaderboard) -> dict[RowKey, int]:
    """Every method's colour, the same in all pictures."""
    names = sorted({row.key for row in board.rows if not row.reference})
    return {key: index % COLOURS for index, key in enumerate(names)}


def panels(board: Leaderboard, key: str = TRAINABLE) -> tuple[Panel, ...]:
    """A panel for every dataset on which something has a result, against the cost of that path."""
    colours = colours_of(board)
    found = []
    for index, dataset in enumerate(board.datasets):
        rows = [(row, row.cells[index]) for row in board.rows]
        shown = [(row, cell, cell.summary) for row, cell in rows if cell.summary is not None]
        if key != TRAINABLE:  # what trains nothing has no such cost; what was not measured has no place
            shown = [(row, cell, summary) for row, cell, summary in shown if (cell.cost(key).value or 0) > 0]
        if shown:
            found.append(_panel(board, dataset, shown, colours, BY_KEY[key]))
    return tuple(found)


def _panel(
    board: Leaderboard,
    dataset: str,
    shown: Sequence[tuple[Row, Cell, Summary]],
    colours: dict[RowKey, int],
    column: Column,
) -> Panel:
    plot_height = max(SHORTEST_PLOT, LABEL_HEIGHT * (len(shown) + 1))
    height, right, bottom = TOP + plot_height + BOTTOM, WIDTH - RIGHT, TOP + plot_height
    lows = [s.interval.low if s.interval is not None else s.mean for _, _, s in shown]
    highs = [s.interval.high if s.interval is not None else s.mean for _, _, s in shown]
    y_values = linear_ticks(100 * min(lows), 100 * max(highs))
    y_low, y_high = min(y_values[0], 100 * min(lows)), max(y_values[-1], 100 * max(highs))

    def y_at(fraction: float) -> float:
        return round(bottom - (100 * fraction - y_low) / (y_high - y_low) * plot_height, 2)

    trainable = [(cell.cost(column.key).value or 0.0) * column.scale for _, cell, _ in shown]
    trained = [value for value in trainable if value > 0]
    x_low, x_high = (min(trained) / 1.25, max(trained) * 1.25) if trained else (1.0, 10.0)

    def x_at(parameters: float) -> float:
        return LEFT + math.log(parameters / x_low) / math.log(x_high / x_low) * (right - LEFT)

    wanted = [x_at(value) for value in trained]
    apart = min(APART, 10 * APART / max(1, len(wanted)))  # a crowd moves less, or it would leave its place
    moved = iter(spread(wanted, apart=apart, low=LEFT + 6, high=right - 6))
    xs = [round(next(moved), 2) if value > 0 else None for value in trainable]
    label_ys = spread([y_at(s.mean) for _, _, s in shown], apart=LABEL_HEIGHT, low=TOP + 6, high=bottom - 4)
    marks: list[Mark] = []
    places: dict[str | None, list[tuple[float, float]]] = {}
    for (row, cell, summary), x, label_y in zip(shown, xs, label_ys, strict=True):
        label = board.label(row) + (f" ({cell.protocol})" if cell.protocol else "")
        cost = f"{column.show(cell.cost(column.key).value or 0)} {column.unit or 'trainable parameters'}"
        at = y_at(summary.mean)
        if x is not None and not row.reference:
            places.setdefault(cell.protocol, []).append((x, at))
        interval = summary.interval
        marks.append(
            Mark(
                x=x,
                y=at,
                low=y_at(interval.low) if interval is not None else None,
                high=y_at(interval.high) if interval is not None else None,
                label=cut(label, LONGEST_LABEL),
                label_y=round(label_y, 2),
                colour=colours.get(row.key, 0),
                reference=row.reference,
                tooltip=f"{label}: {mean_and_sd(summary)} % ({n_and_interval(summary)}), {cost}",
            )
        )
    x_ticks = tuple(Tick(round(x_at(v), 2), short(v)) for v in log_ticks(x_low, x_high)) if trained else ()
    y_ticks = tuple(Tick(y_at(v / 100), f"{v:g}") for v in y_values)
    fronts = tuple(filter(None, (_front(places[letter]) for letter in sorted(places, key=str))))
    return Panel(dataset, WIDTH, height, LEFT, right, TOP, bottom, x_ticks, y_ticks, tuple(marks), fronts)


def _front(points: Sequence[tuple[float, float]]) -> str:
    """The staircase through the points that none is left of and above, in pixels; empty for a single corner."""
    corners = sorted({p for p, kept in zip(points, pareto.front(points), strict=True) if kept})
    steps = [f"{corners[0][0]:g},{corners[0][1]:g}"] if len(corners) > 1 else []
    for (_, before), (x, y) in pairwise(corners):
        steps += [f"{x:g},{before:g}", f"{x:g},{y:g}"]
    return " ".join(steps)


def spread(wanted: Sequence[float], *, apart: float, low: float, high: float) -> list[float]:
    """Positions in the order given, as near to the wanted ones as a distance of `apart` lets them, in [low, high].

    Neighbours that are too close form a group around the mean of its wanted places; groups that meet are joined.
    """
    if not wanted:
        return []
    apart = min(apart, (high - low) / max(1, len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda index: (wanted[index], index))
    groups: list[tuple[float, int]] = []  # (sum of wanted minus own offset, size): start = sum / size
    starts: list[float] = []
    for index in order:
        total, size = wanted[index], 1
        start = _within(total, low, high)
        while groups and starts[-1] + groups[-1][1] * apart > start:
            before, before_size = groups.pop()
            starts.pop()
            total, size = before + total - size * before_size * apart, before_size + size
            start = _within(total / size, low, high - (size - 1) * apart)
        groups.append((total, size))
        starts.append(start)
    places = [start + k * apart for start, (_, size) in zip(starts, groups, strict=True) for k in range(size)]
    found = [0.0] * len(wanted)
    for index, place in zip(order, places, strict=True):
        found[index] = place
    return found


def _within(value: float, low: float, high: float) -> float:
    return max(low, min(value, high))


def linear_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers that enclose [low, high]."""
    span = max(high - low, 1e-3)
    step = next(
        nice * 10.0**power
        for power in range(-6, 6)
        for nice in (1, 2, 5)
        if span / (nice * 10.0**power) <= 6  # first, and so finest, step with few ticks
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 9) for index in range(first, max(last, first + 1) + 1)]


MOST_TICKS = 7


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten inside [low, high]; powers of ten alone where those are many.

    A narrow range, which may hold none of them, gets more digits.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for tenths in ((10, 20, 50), (10, 12, 15, 20, 25, 30, 40, 50, 60, 80), range(10, 100)):
        ticks = [tick for power in powers for n in tenths if low <= (tick := float(f"{n}e{power - 1}")) <= high]
        if len(ticks) > 1:
            break
    if len(ticks) <= MOST_TICKS:
        return ticks
    return [tick for tick in ticks if math.log10(tick) % 1 < 1e-9] or ticks[:: -(-len(ticks) // MOST_TICKS)]


def short(value: float) -> str:
    """A count in few characters: 15k, 2M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{unit}"
    return f"{value:g}"
