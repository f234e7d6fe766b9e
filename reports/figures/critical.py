"""The critical-difference picture of a paper, as reports.critical lays it out."""

from __future__ import annotations

from matplotlib.figure import Figure

from reports.critical import critical as laid_out
from reports.figures.style import short
from reports.leaderboard import Leaderboard

PIXELS = 100.0
"""Per inch."""
INK, GREY = "#222222", "#777777"


def critical(board: Leaderboard) -> Figure | None:
    """Mean ranks, and bars over methods that are not told apart; None without datasets enough."""
    found = laid_out(board)
    if found is None:
        return None
    figure = Figure(figsize=(found.width / PIXELS, found.height / PIXELS))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    ax.set_xlim(0, found.width)
    ax.set_ylim(found.height, 0)
    ax.plot([found.left, found.right], [found.top] * 2, color=INK, linewidth=1)
    for tick in found.ticks:
        ax.plot([tick.at] * 2, [found.top - 5, found.top], color=INK, linewidth=1)
        ax.text(tick.at, found.top - 8, tick.text, ha="center", va="bottom")
    for place in found.places:
        end = found.left - 12 if place.left else found.right + 12
        ax.plot([place.x, place.x, end], [found.top, place.y, place.y], color=GREY, linewidth=0.8)
        ax.plot([place.x], [found.top], "o", color=INK, markersize=3.5)
        words, beside = f"{short(place.label)}  {place.rank}", -6 if place.left else 6
        ax.text(end + beside, place.y, words, ha="right" if place.left else "left", va="center")
    for bar in found.bars:
        ax.plot([bar.x1, bar.x2], [bar.y] * 2, color=INK, linewidth=3.2, solid_capstyle="butt")
    difference = found.difference
    ax.plot([difference.x1, difference.x2], [difference.y] * 2, "|-", color=INK, linewidth=1.2, markersize=7)
    ax.text(difference.x1, difference.y - 7, found.title, va="bottom")
    return figure
