"""Figures for a paper: SVG and PDF of each, in one style, readable without colour.

`harness report` draws them; a run does not, as matplotlib takes seconds. Every drawing is a function of the leaderboard
or of what trials left, and returns a matplotlib figure, or None where there is nothing to show.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.atomic import write_atomically
from harness.reporter import Reporter
from harness.store import SuiteResults
from reports.clearing import clear
from reports.evidence import MOST_TRIALS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_ROWS = 16
"""No figure holds more rows and stays readable: the first of the leaderboard."""
NAMES = re.compile(
    r"(score_against_\w+|memory_\w+|seeds|ranks|critical_difference|curves_\w+|classes_\d+|confusion_\d+)\.(svg|pdf)"
)
"""What this writes."""


def write(results: SuiteResults, folder: Path) -> None:
    """All figures into a folder; those of an earlier report go."""
    from reports.build import leaderboard
    from reports.figures import style

    clear(folder, NAMES)
    folder.mkdir(parents=True, exist_ok=True)
    whole = leaderboard(results)
    cut = f"the first {MOST_ROWS} of {len(whole.rows)} rows of the leaderboard" if len(whole.rows) > MOST_ROWS else ""
    with style.applied():
        for name, figure in drawn(results):
            if cut:
                figure.suptitle(cut, fontsize=7.5, color="#666666")
            for kind in ("svg", "pdf"):
                write_atomically(folder / f"{name}.{kind}", style.saved(figure, kind))


def drawn(results: SuiteResults) -> Iterator[tuple[str, Figure]]:
    """Name and figure of everything that there is to draw."""
    from reports.build import leaderboard
    from reports.classes import by_class
    from reports.curves import bands
    from reports.figures import batches, classes, costs, critical, scores, training

    board = leaderboard(results)
    board = replace(board, rows=board.rows[:MOST_ROWS])
    small = len(results.entries) <= MOST_TRIALS
    named = [
        ("score_against_parameters", costs.against(board, "parameters.trainable")),
        ("score_against_memory", costs.against(board, costs.memory_key(board))),
        ("score_against_step_time", costs.against(board, "time.step")),
        ("memory_breakdown", costs.memory(board)),
        ("memory_against_batch", batches.memory(results.entries)),
        ("seeds", scores.seeds(board)),
        ("ranks", scores.ranks(board)),
        ("critical_difference", critical.critical(board)),
    ]
    named += [
        (f"curves_{name.replace('/', '_')}", training.curves(board, name, b))
        for name, b in (bands(results) if small else {}).items()
    ]
    for number, table in enumerate(by_class(results)):
        named.append((f"classes_{number + 1}", classes.accuracy(board, table)))
        named.append((f"confusion_{number + 1}", classes.confusion(board, table)))
    yield from ((name, figure) for name, figure in named if figure is not None)


FIGURES = Reporter(write, "figures", after_run=False)
"""The entry point."""
