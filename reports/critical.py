"""The critical-difference picture: where methods stand by mean rank, and which of them are not told apart.

Demšar, JMLR 2006, figure 1: ranks on a line, 1 (the best) at the left; a bar joins methods whose mean ranks are closer
than Nemenyi's critical difference, which is drawn above. Only where Friedman's test has datasets enough. Worked out
once, in pixels, for the page and for the figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.text import cut
from reports.leaderboard import Leaderboard
from reports.panels import Tick, linear_ticks
from reports.tables import friedman_sentence

WIDTH, SIDE, TOP, ROW, BAR = 760.0, 200.0, 62.0, 19.0, 8.0
LONGEST = 26


@dataclass(frozen=True)
class Place:
    """A method: its mark on the line, and its name at the end of an elbow."""

    x: float
    y: float
    left: bool
    """Whether its name stands at the left."""
    label: str
    rank: str


@dataclass(frozen=True)
class Bar:
    """From one position to another, at a height."""

    x1: float
    x2: float
    y: float


@dataclass(frozen=True)
class Critical:
    """The picture: a line of ranks at `top`, names below it."""

    width: float
    height: float
    left: float
    right: float
    top: float
    ticks: tuple[Tick, ...]
    places: tuple[Place, ...]
    bars: tuple[Bar, ...]
    difference: Bar
    title: str
    sentence: str


def critical(board: Leaderboard) -> Critical | None:
    """The picture of the largest group of one protocol; None where there is no Friedman test of it.

    Where that test finds no difference at all, one bar joins all methods: nothing may be told apart then.
    """
    if board.versus is None or board.versus.ranks is None:
        return None
    test, ranked = board.versus.ranks, board.versus.ranked
    low, high, left, right = 1.0, float(len(ranked)), SIDE, WIDTH - SIDE

    def x_at(rank: float) -> float:
        return round(left + (rank - low) / (high - low) * (right - left), 1)

    ranks, groups = dict(ranked), board.versus.groups
    bars = [Bar(x_at(ranks[g[0]]) - 4, x_at(ranks[g[-1]]) + 4, TOP + 12 + BAR * k) for k, g in enumerate(groups)]
    below, half = TOP + 24 + BAR * len(bars), (len(ranked) + 1) // 2
    places = []
    for number, (key, rank) in enumerate(ranked):
        row = number if number < half else len(ranked) - 1 - number
        label = cut(board.label(key), LONGEST)
        places.append(Place(x_at(rank), round(below + ROW * row, 1), number < half, label, f"{rank:.2f}"))
    end = min(x_at(low) + test.critical_difference / (high - low) * (right - left), WIDTH - 8)
    return Critical(
        width=WIDTH,
        height=below + ROW * half,
        left=left,
        right=right,
        top=TOP,
        ticks=tuple(Tick(x_at(v), f"{v:g}") for v in linear_ticks(low, high) if low <= v <= high and v == int(v)),
        places=tuple(places),
        bars=tuple(bars),
        difference=Bar(left, round(end, 1), TOP - 36),
        title=f"critical difference {test.critical_difference:.2f}",
        sentence=friedman_sentence(test),
    )
