"""The leaderboard as one page that works from a file: tables to sort and filter, pictures, every trial; no network.

Every name and message comes from outside: the template escapes all of them, the script sets text as text, and the
page's own policy lets no script and no style apply but those whose hashes it carries. With more than
`details.MOST_TRIALS` trials the details of trials lie in pages beside it, in a folder named after the page.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from harness.atomic import write_atomically
from harness.one_trial import OneTrial
from harness.reporter import Reporter
from harness.store import SuiteResults
from reports import columns, details, gallery, panels, tables
from reports.build import leaderboard
from reports.classes import ByClass, by_class
from reports.clearing import clear
from reports.critical import critical
from reports.curve_panels import CurvePanel, curve_panels
from reports.curves import bands
from reports.leaderboard import Leaderboard, capitalise
from reports.panels import Panel
from reports.statistics import Summary

FOLDER = Path(__file__).parent
SCRIPTS = ("leaderboard.js", "gallery.js", "trial.js", "trials.js")
SITE_INDEX = "../index.html"
"""From a report on a published site to the index of its suites."""
STRIP_WIDTH = 92.0
TRIAL_PAGE = re.compile(r"\d{3,}\.html")
MOST_FOR_PICTURES = 2_000
"""Of larger suites curves and predictions are not read for the page's pictures, which would take most of its time."""
MOST_CLASSES = 60
MOST_DIFFERENCES = 500
"""Pairs of methods that the page lists; the JSON file has all of them."""
NO_TRIALS: Mapping[str, Any] = {"index": details.index((), None), "details": None, "folder": ""}
PICTURES = (
    ("parameters.trainable", "Parameters", "trainable parameters"),
    ("memory.train_peak", "GPU memory", "peak GPU memory in training, MB"),
    ("memory.host_peak", "Host memory", "peak memory of the process, MB"),
    ("time.step", "Step time", "time of a training step, ms"),
)


@dataclass(frozen=True)
class Strip:
    """A small picture of an interval: positions on an axis that all rows of a column share."""

    low: float
    at: float
    high: float


@dataclass(frozen=True)
class Picture:
    """Panels of one kind and the button that shows them."""

    id: str
    button: str
    title: str
    axis: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class ClassTable:
    """Accuracy by class of every method on one dataset, as shares; None for a class without items."""

    dataset: str
    names: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def write(results: SuiteResults, path: Path) -> None:
    """One HTML file and, of a large suite, the pages of its trials beside it."""
    pages = details.trial_pages(results)
    folder = path.with_name(f"{path.stem}_trials")
    clear(folder, TRIAL_PAGE)
    if pages.beside:
        folder.mkdir(parents=True, exist_ok=True)
        for number, entries, found in details.beside(results, pages):
            own: dict[str, Any] = {"index": details.index(entries, None), "details": found, "folder": ""}
            page = _fill("trial_page.html.j2", own, name=results.name, back=path.name)
            write_atomically(folder / f"{number:03}.html", page)
    known = None if pages.beside else details.gathered(results, [entry for page in pages.pages for entry in page])
    data: dict[str, Any] = {"index": pages.index, "details": known, "folder": folder.name}
    small = len(results.entries) <= MOST_FOR_PICTURES
    curves = curve_panels(leaderboard(results), bands(results)) if small else ()
    classes = by_class(results) if small else ()
    home = SITE_INDEX if results.site else None
    write_atomically(path, render(leaderboard(results), data=data, curves=curves, classes=classes, home=home))


def write_trial(trial: OneTrial, path: Path) -> None:
    """A page of one trial: what it left, and the clouds that it got wrong.

    Raises UserError where it got some wrong and their clouds cannot be shown.
    """
    entry = trial.entry
    results = SuiteResults(entry.name, "", "", (entry,), output=trial.store.output)
    known = details.gathered(results, [entry])
    gallery.of_one(trial, known)
    data: dict[str, Any] = {"index": details.index([entry], None), "details": known, "folder": ""}
    write_atomically(path, _fill("one_trial.html.j2", data, name=entry.name, id=entry.id))


HTML = Reporter(write, "leaderboard.html", one_trial=write_trial)
"""The entry point."""


def render(
    board: Leaderboard,
    *,
    data: Mapping[str, Any] = NO_TRIALS,
    curves: tuple[CurvePanel, ...] = (),
    classes: tuple[ByClass, ...] = (),
    home: str | None = None,
) -> str:
    """The page; `home` is the index that it leads back to, where it is one of several."""
    columned = [strips([row.cells[index].summary for row in board.rows]) for index in range(len(board.datasets))]
    pictures = _pictures(board)
    return _fill(
        "leaderboard.html.j2",
        data,
        board=board,
        columns=board.columns(),
        asides=board.asides(),
        strips=columned,
        overall_strips=strips([row.overall for row in board.rows]),
        strip_width=STRIP_WIDTH,
        pareto=tables.pareto_sentence(board),
        published=tables.published_table(board),
        about_published=tables.PUBLISHED,
        pictures=pictures,
        curves=curves,
        classes=_class_tables(board, classes),
        differences=board.comparisons[:MOST_DIFFERENCES],
        versus=tables.versus_tables(board) if board.versus is not None else (),
        versus_notes=tables.versus_notes(board),
        critical=critical(board),
        lines=len(data["index"]["trials"]),
        home=home,
    )


def _fill(template: str, data: Mapping[str, Any], **values: Any) -> str:
    """A page of that template, with the script, the style and the data that every page of a report has."""
    return fill_with(template, page_script(), page_style(), data=embedded(data), **values)


def fill_with(template: str, script: str, style: str, **values: Any) -> str:
    """A page of that template with its script and style, and the policy that lets no others in."""
    shown = {"policy": policy(script, style), "script": Markup(script), "style": Markup(style)}
    return _environment().get_template(template).render(**shown, **values)


@cache
def page_script() -> str:
    """All of a page's script."""
    return "\n" + "".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS)


@cache
def page_style() -> str:
    """All of a page's style."""
    return "\n" + (FOLDER / "leaderboard.css").read_text(encoding="utf-8")


def policy(script: str, style: str) -> str:
    """The Content-Security-Policy: nothing from anywhere, no script and no style but these."""
    scripts, styles = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style))
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{styles}'; script-src 'sha256-{scripts}'; "
        "base-uri 'none'; form-action 'none'"
    )


def embedded(data: Any) -> Markup:
    """Data as JSON inside a script element that is none: no character in it can end the element."""
    text = details.as_json(data)
    for character in ("&", "<", ">", "\u2028", "\u2029"):
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def breakable(name: str) -> Markup:
    """A name, escaped, that may break after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def unbroken(sentence: str) -> str:
    """A sentence whose numbers keep their signs on one line: 95 %, n = 3."""
    return sentence.replace(" %", "\N{NO-BREAK SPACE}%").replace("n = ", "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}")


@cache
def _environment() -> Environment:
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
        "published_difference": tables.published_difference,
        "published_text": tables.published_text,
        "unbroken": unbroken,
        "value": repr,
    }
    environment.globals["nothing"] = columns.NOTHING
    return environment


def _pictures(board: Leaderboard) -> tuple[Picture, ...]:
    """The score against every cost that methods have; host memory only where no GPU was measured."""
    found = []
    on_gpu = any(row.cost("memory.train_peak").value is not None for row in board.rows)
    for key, button, axis in PICTURES:
        shown = panels.panels(board, key) if key != "memory.host_peak" or not on_gpu else ()
        if shown:
            name = key.replace(".", "-")
            found.append(Picture(f"p-{name}", button, f"{board.measure_title} against {axis}", axis, shown))
    return tuple(found)


def _class_tables(board: Leaderboard, found: tuple[ByClass, ...]) -> tuple[ClassTable, ...]:
    """Rows in the order of the leaderboard; datasets of very many classes are left to the trials."""
    made = []
    for table in found:
        rows = [row for row in board.rows if row.key in table.confusion]
        shares = [(board.label(row), table.accuracy(row.key)) for row in rows]
        lines = tuple((label, tuple(None if s != s else float(s) for s in share)) for label, share in shares)
        if len(table.names) <= MOST_CLASSES:
            made.append(ClassTable(table.dataset, table.names, lines))
    return tuple(made)


def strips(summaries: Sequence[Summary | None]) -> list[Strip | None]:
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
