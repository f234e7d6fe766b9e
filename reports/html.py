"""The leaderboard as one self-contained page: sortable table, picture, light and dark, nothing from the network.

Every name and message comes from outside, so the template escapes all of them, and the page's own policy lets no
script run but the one whose hash it carries.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from harness.atomic import write_atomically
from harness.store import SuiteResults
from reports import columns, panels
from reports.build import leaderboard
from reports.leaderboard import Leaderboard, capitalise
from reports.statistics import Summary

FOLDER = Path(__file__).parent
STRIP_WIDTH = 92.0


@dataclass(frozen=True)
class Strip:
    """A small picture of an interval: positions on an axis that all rows of a column share."""

    low: float
    at: float
    high: float


def write(results: SuiteResults, path: Path) -> None:
    """One HTML file."""
    write_atomically(path, render(leaderboard(results)))


def render(board: Leaderboard) -> str:
    """The page, from the leaderboard alone."""
    script = (FOLDER / "leaderboard.js").read_text(encoding="utf-8")
    strips = [_strips([row.cells[index].summary for row in board.rows]) for index in range(len(board.datasets))]
    return _template().render(
        board=board,
        columns=board.columns(),
        asides=board.asides(),
        strips=strips,
        overall_strips=_strips([row.overall for row in board.rows]),
        strip_width=STRIP_WIDTH,
        panels=panels.panels(board),
        policy=policy(script),
        script=Markup(script),
        style=Markup((FOLDER / "leaderboard.css").read_text(encoding="utf-8")),
    )


def policy(script: str) -> str:
    """The Content-Security-Policy: nothing from anywhere, no script but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def breakable(name: str) -> Markup:
    """A name, escaped, that may break after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def unbroken(sentence: str) -> str:
    """A sentence whose numbers keep their signs on one line: 95 %, n = 3."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace("n = ", "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "beside": columns.beside,
        "breakable": breakable,
        "capitalise": capitalise,
        "mean_and_sd": columns.mean_and_sd,
        "n_and_interval": columns.n_and_interval,
        "percent": columns.percent,
        "points": columns.points,
        "unbroken": unbroken,
        "value": repr,
    }
    environment.globals["nothing"] = columns.NOTHING
    return environment.get_template("leaderboard.html.j2")


def _strips(summaries: list[Summary | None]) -> list[Strip | None]:
    """Every summary's strip on the axis that holds all of them; None where there is no interval."""
    intervals = [s.interval for s in summaries if s is not None and s.interval is not None]
    low, high = min((i.low for i in intervals), default=0.0), max((i.high for i in intervals), default=0.0)

    def at(fraction: float) -> float:
        return round(2 + (min(max(fraction, low), high) - low) / (high - low) * (STRIP_WIDTH - 4), 2)

    return [
        Strip(at(s.interval.low), at(s.mean), at(s.interval.high))
        if s is not None and s.interval is not None and high > low
        else None
        for s in summaries
    ]
