"""Badges: small SVG pictures for a README, of a suite's best method and of its trials; they ask for nothing else."""

from __future__ import annotations

import unicodedata

from markupsafe import Markup, escape

from harness.text import cut
from reports.columns import mean_and_sd
from reports.details import printable
from reports.leaderboard import Leaderboard

HEIGHT = 22
NARROW, BROAD = frozenset("fijlrtI.,:;'|!()[] "), frozenset("mwMW@%—…")
WIDTHS = (4.6, 7.2, 11.0, 13.0)
"""Of a narrow, usual, broad and East Asian wide character at 12 px; `textLength` makes the text fit the estimate."""
PADDING = 8.0
LONGEST = 48
"""Characters of one half."""
LEFT, RIGHT, OPEN = "#3b444b", "#0f6b73", "#7a5200"


def best(board: Leaderboard) -> Markup:
    """The best mean of the suite, how many are level with it, and on how many seeds that rests."""
    return badge(board.name, best_words(board), RIGHT)


def trials(board: Leaderboard) -> Markup:
    """How many trials are done."""
    whole = board.counts.done == board.counts.trials
    return badge("trials", f"{board.counts.done:,} of {board.counts.trials:,} done", RIGHT if whole else OPEN)


def best_words(board: Leaderboard) -> str:
    """`adapter 81.3 ± 1.2 %, n 3, 2 level`; why there is no best where there is none."""
    if board.measure is None:
        return "several measures, no one best"
    if not board.measure.scored:
        return "costs only"
    ranked = [row for row in board.rows if not row.reference]
    placed = [row for row in ranked if row.overall is not None]
    if not placed:
        return "no result on all datasets" if any(cell.summary for row in ranked for cell in row.cells) else "no result"
    if len({row.section for row in placed}) > 1:
        return "several protocols, not ranked together"
    first = next((row for row in placed if row.standing == "best"), placed[0])
    assert first.overall is not None
    level = sum(row.standing == "level" for row in placed)
    beside = f", {level} level with it" if level else ""
    return f"{board.label(first)} {mean_and_sd(first.overall)} %, n {first.overall.n}{beside}"


def badge(label: str, message: str, colour: str) -> Markup:
    """A picture of two halves; the text in it is the alternative text, too."""
    left, right = (cut(printable(text), LONGEST) for text in (label, message))
    widths = [_width(left), _width(right)]
    ends = [widths[0] + 2 * PADDING, sum(widths) + 4 * PADDING]
    parts = [
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{0:.0f}" height="{1}" viewBox="0 0 {0:.0f} {1}" role="img" '
            'aria-label="{2}: {3}"><title>{2}: {3}</title>'
        ).format(ends[1], HEIGHT, left, right),
        Markup('<rect width="{:.0f}" height="{}" rx="4" fill="{}"/>').format(ends[1], HEIGHT, colour),
        Markup('<path d="M4 0H{0:.0f}V{1}H4a4 4 0 0 1-4-4V4a4 4 0 0 1 4-4z" fill="{2}"/>').format(
            ends[0], HEIGHT, LEFT
        ),
        Markup('<g fill="#ffffff" font-family="Verdana,DejaVu Sans,Geneva,sans-serif" font-size="12">'),
    ]
    for text, start, width in ((left, PADDING, widths[0]), (right, ends[0] + PADDING, widths[1])):
        parts.append(
            Markup('<text x="{:.0f}" y="15" textLength="{:.0f}" lengthAdjust="spacingAndGlyphs">{}</text>').format(
                start, width, escape(text)
            )
        )
    return Markup("").join([*parts, Markup("</g></svg>\n")])


def _width(text: str) -> float:
    return max(1.0, sum(map(_character_width, text)))


def _character_width(character: str) -> float:
    if unicodedata.east_asian_width(character) in "WF":
        return WIDTHS[3]
    return WIDTHS[0] if character in NARROW else WIDTHS[2] if character in BROAD else WIDTHS[1]
