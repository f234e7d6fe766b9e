"""One look for all figures: colours that the colour-blind tell apart, and a marker and a dash each for grey print."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.text import cut, printable
from reports.comparison import RowKey
from reports.leaderboard import Leaderboard
from reports.panels import log_ticks
from reports.panels import short as few
from reports.statistics import Summary

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#3B3B3B", "#8C6D31")
"""Okabe and Ito's, yellow left out, which white paper swallows."""
MARKERS = "osD^vPX<>*"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (8, 2, 2, 2)))
EDGE: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.5}
"""Tells markers apart that lie on each other."""
LONGEST = 28
"""Characters of a name in a figure."""
SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "none",
    "svg.hashsalt": "leaderboard",
    "pdf.fonttype": 42,
    "text.usetex": False,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every figure."""

    colour: str
    marker: str
    dash: Any


@contextlib.contextmanager
def applied() -> Iterator[None]:
    """Within, figures are drawn in this style; signs that the font lacks become boxes without a word."""
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def saved(figure: Figure, kind: str) -> bytes:
    """The figure as SVG or PDF; equal figures give equal bytes."""
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)  # with one, even an idle one, matplotlib draws twice for every format
    content = io.BytesIO()
    figure.savefig(content, format=kind, metadata={"Date": None} if kind == "svg" else {"CreationDate": None})
    return content.getvalue()


def looks(board: Leaderboard) -> dict[RowKey, Look]:
    """Every row's look; it does not depend on ranks, so that a method looks alike in all reports of a suite."""
    keys = sorted(row.key for row in board.rows)
    return {
        key: Look(COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)], DASHES[k % len(DASHES)])
        for k, key in enumerate(keys)
    }


def short(name: str, longest: int = LONGEST) -> str:
    """A name on one line, of printable characters, not too long."""
    return cut(printable(name), longest)


def grid(count: int, *, height: float = 2.7, width: float = 3.5, columns: int = 3) -> tuple[Figure, Sequence[Axes]]:
    """A figure of so many axes."""
    across = min(count, columns)
    down = math.ceil(count / across)
    figure = Figure(figsize=(max(4.6, width * across), height * down), layout="constrained")
    axes = [figure.add_subplot(down, across, k + 1) for k in range(count)]
    return figure, axes


def ends(summary: Summary) -> tuple[float, float]:
    """Of the interval, in percent; where there is none, the mean twice, which draws nothing."""
    low, high = (summary.mean,) * 2 if summary.interval is None else (summary.interval.low, summary.interval.high)
    return 100 * low, 100 * high


def log_x(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with a little room and round ticks in few characters."""
    low, high = min(values) / 1.25, max(values) * 1.25
    ticks = log_ticks(low, high)
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.set_xticks(ticks, [few(tick) for tick in ticks])
    ax.set_xticks([], minor=True)


def log_y(ax: Axes, low: float, high: float) -> None:
    """The same upwards."""
    ticks = log_ticks(low / 1.1, high * 1.1)
    ax.set_yscale("log")
    ax.set_yticks(ticks, [few(tick) for tick in ticks])
    ax.set_yticks([], minor=True)


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all axes, without doubles."""
    found: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(4, len(found)))
