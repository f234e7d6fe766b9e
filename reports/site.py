"""A folder that any static host can serve: an index of suites, each with its report, its files and its badges.

    SITE/index.html, published.json       the index, for people and for programs
    SITE/SUITE/leaderboard.html, …        what the reporters write, and badge-best.svg, badge-trials.svg

Made anew beside the old one and put in its place as a whole. Reports are written from results that are fit to be seen
(`public`); links are relative, and pages load nothing from anywhere.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from harness.atomic import read_json, replace_folder, write_atomically
from harness.errors import UserError
from harness.reporting import write
from harness.store import Store, SuiteResults
from reports import badges
from reports.build import leaderboard
from reports.columns import BY_KEY, Column
from reports.comparison import Standing
from reports.html import FOLDER, Strip, fill_with, page_style, strips
from reports.leaderboard import Leaderboard, Row, capitalise
from reports.public import public
from reports.statistics import Summary

INDEX, CONTENTS = "index.html", "published.json"
PAGE = "leaderboard.html"
MOST_ROWS = 6
"""Methods of a suite that the index shows; its report has all of them."""
MOST_DATASETS = 3
"""Columns of scores where there is no mean over datasets."""
MEMORY = ("memory.train_peak", "memory.estimated", "memory.host_peak")
"""The first of these that a method has is the memory that the index shows."""
KNOWN = {
    "leaderboard.md": "Markdown",
    "leaderboard.tex": "LaTeX",
    "leaderboard.csv": "CSV",
    "leaderboard.json": "JSON",
    "trials.csv": "trials, CSV",
    "trials.parquet": "trials, Parquet",
}
"""What files are called; others by their names."""


@dataclass(frozen=True)
class Score:
    """A method's number in one column."""

    summary: Summary | None
    standing: Standing | None
    strip: Strip | None


@dataclass(frozen=True)
class Line:
    """A method on the index."""

    row: Row
    scores: tuple[Score, ...]
    costs: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """A suite on the index."""

    name: str
    folder: str
    board: Leaderboard
    finding: str
    scores: tuple[tuple[str, str], ...]
    """Title of every column of scores, and what it is of."""
    lines: tuple[Line, ...]
    columns: tuple[Column, ...]
    more: int
    """Methods that are not shown."""
    apart: int
    """Methods of other protocols, not ranked with those that are shown."""
    ended: str
    """The day on which its last trial ended; empty where none says."""
    best: Markup
    trials: Markup
    files: tuple[tuple[str, str], ...]
    """Title and path, from the site's folder, of every file but the page."""
    figures: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    """Name of a figure, its formats and their paths."""


@dataclass(frozen=True)
class Published:
    """What came of it."""

    index: Path
    suites: tuple[str, ...]
    trials: int
    files: int


def publish(
    store: Store, site: Path, *, suites: Sequence[str], title: str, formats: Sequence[str] | None = None
) -> Published:
    """Write the site. Raises UserError, and leaves the old site as it is, when anything cannot be written.

    A folder that holds anything else than an earlier site is refused.
    """
    site = site.resolve()
    _check(site, store)
    try:
        site.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=site.parent, prefix=f".{site.name}."))
    except OSError as error:
        raise UserError(f"{site}: cannot be written ({error.strerror})") from None
    try:
        made.chmod(0o755)
        cards = _cards(store, made, suites, formats)
        write_atomically(made / INDEX, _page(title, cards))
        write_atomically(made / ".nojekyll", "")
        files = sorted(path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file())
        write_atomically(made / CONTENTS, json.dumps(_contents(title, cards, files), indent=1) + "\n")
        replace_folder(made, site)
    except OSError as error:
        raise UserError(f"{site}: cannot be written ({error.strerror or error}); the site is as it was") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    trials = sum(card.board.counts.trials for card in cards)
    return Published(site / INDEX, tuple(card.name for card in cards), trials, len(files) + 1)


def _check(site: Path, store: Store) -> None:
    """Raises UserError where a site would go over anything that is not one."""
    if store.output.resolve().is_relative_to(site):
        raise UserError(f"{site}: holds the results themselves; choose another --output")
    if not site.exists():
        return
    if not site.is_dir():
        raise UserError(f"{site}: is a file; choose another --output")
    contents = read_json(site / CONTENTS)
    listed = contents.get("files") if isinstance(contents, dict) else None
    known = {CONTENTS, *(map(str, listed) if isinstance(listed, list) else ())}
    others = sorted(
        name
        for path in site.rglob("*")
        if not path.is_dir() and (name := path.relative_to(site).as_posix()) not in known
    )
    if others:
        named = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        raise UserError(f"{site}: holds what was not published ({named}); choose another --output")


def _cards(store: Store, made: Path, suites: Sequence[str], formats: Sequence[str] | None) -> list[Card]:
    cards, taken, problems = [], {INDEX, CONTENTS}, []
    for suite in suites:
        results = public(store.load(suite))
        folder = _folder_name(results.name, taken)
        taken.add(folder.lower())
        paths, failed = write(results, made / folder, formats=formats)
        problems += failed
        if not failed:
            cards.append(_card(results, made, folder, paths))
    if problems:
        told = (problem.replace(f"{made}/", "") for problem in problems)
        raise UserError("\n".join(f"- {problem}" for problem in told) + "\nnothing was published")
    return cards


def _folder_name(name: str, taken: set[str]) -> str:
    """The suite's name in characters that every file system and address knows; numbered where it is taken."""
    kept = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:64] or "suite"
    found, number = kept, 2
    while found.lower() in taken:
        found, number = f"{kept}-{number}", number + 1
    return found


def _card(results: SuiteResults, made: Path, folder: str, paths: Sequence[Path]) -> Card:
    board = leaderboard(results)
    best, trials = badges.best(board), badges.trials(board)
    for name, content in (("badge-best.svg", best), ("badge-trials.svg", trials)):
        write_atomically(made / folder / name, str(content))
    ranked = [row for row in board.rows if not row.reference]
    first = [row for row in ranked if row.section == min(row.section for row in ranked)]
    shown = first[:MOST_ROWS] if board.counts.done else []
    columns = _columns(shown)
    titles, scores = _scores(board, shown)
    ends = [str(a.get("ended") or "") for e in results.entries if e.result is not None for a in e.result.attempts]
    files = [path for path in paths if path.is_file() and path.name != PAGE]
    return Card(
        name=results.name,
        folder=folder,
        board=board,
        finding=_finding(board, first),
        scores=titles,
        lines=tuple(
            Line(row, own, tuple(column.show(row.cost(column.key).value) for column in columns))
            for row, own in zip(shown, scores, strict=True)
        ),
        columns=columns,
        more=len(first) - len(shown) if shown else 0,
        apart=len(ranked) - len(first) if shown else 0,
        ended=max((end[:10] for end in ends if re.match(r"\d{4}-\d\d-\d\dT", end)), default=""),
        best=best,
        trials=trials,
        files=tuple((KNOWN.get(path.name, path.name), path.relative_to(made).as_posix()) for path in files),
        figures=_figures(made, [path for path in paths if path.is_dir()]),
    )


def _finding(board: Leaderboard, first: Sequence[Row]) -> str:
    """What is said of the rows that are shown: of their overall means where there are any, else of one dataset."""
    over_all = {row.section for row in board.rows if not row.reference and row.overall is not None}
    if len(board.datasets) > 1 and any(row.overall is not None for row in first):
        return board.findings[-len(over_all)]  # one for each group, at the end
    return board.findings[0]


def _scores(board: Leaderboard, rows: Sequence[Row]) -> tuple[tuple[tuple[str, str], ...], list[tuple[Score, ...]]]:
    """Titles and numbers: the mean over datasets where a row has one, else datasets one by one; none of mere costs."""
    if board.measure is not None and not board.measure.scored:
        return (), [() for _ in rows]
    if any(row.overall is not None for row in rows):
        places = strips([row.overall for row in rows])
        under = f"mean of {len(board.datasets)} datasets" if len(board.datasets) > 1 else ""
        found: list[tuple[Score, ...]] = [
            (Score(row.overall, row.standing, strip),) for row, strip in zip(rows, places, strict=True)
        ]
        return ((f"{board.measure_title}, %", under),), found
    columns = []
    for index in range(min(MOST_DATASETS, len(board.datasets))):
        cells = [row.cells[index] for row in rows]
        placed = strips([cell.summary for cell in cells])
        columns.append([Score(c.summary, c.standing, strip) for c, strip in zip(cells, placed, strict=True)])
    headlines = zip(board.headlines[: len(columns)], board.datasets, strict=False)
    titles = tuple((f"{capitalise(headline.title)}, %", dataset) for headline, dataset in headlines)
    return titles, [tuple(column[number] for column in columns) for number in range(len(rows))]


def _columns(rows: Sequence[Row]) -> tuple[Column, ...]:
    """Trainable parameters, the memory that is known of most rows, time of a step."""
    known = {key: sum(row.cost(key).value is not None for row in rows) for key in MEMORY}
    memory = max(MEMORY, key=lambda key: known[key])
    return tuple(BY_KEY[key] for key in ("parameters.trainable", memory, "time.step"))


def _figures(made: Path, folders: Sequence[Path]) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    found: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        kind = path.suffix.removeprefix(".").upper()
        found.setdefault(path.stem.replace("_", " "), []).append((kind, path.relative_to(made).as_posix()))
    return tuple((name, tuple(formats)) for name, formats in found.items())


def _page(title: str, cards: Sequence[Card]) -> str:
    script = "\n" + (FOLDER / "leaderboard.js").read_text(encoding="utf-8")
    style = page_style() + (FOLDER / "site.css").read_text(encoding="utf-8")
    machines = {kind: _machines(cards, kind) for kind in ("GPU", "CPU")}
    return fill_with("site.html.j2", script, style, title=title, cards=cards, page=PAGE, machines=machines)


def _machines(cards: Sequence[Card], kind: str) -> list[str]:
    found = {name for card in cards for name in dict(card.board.environment).get(kind, ())}
    return sorted(found - {"none"})


def _contents(title: str, cards: Sequence[Card], files: Sequence[str]) -> dict[str, Any]:
    """For programs, and for the next `harness publish`: what the site holds."""
    suites = [
        {
            "name": card.name,
            "folder": card.folder,
            "digest": card.board.digest,
            "trials": card.board.counts.trials,
            "done": card.board.counts.done,
            "best": badges.best_words(card.board),
        }
        for card in cards
    ]
    return {"format": 1, "title": title, "suites": suites, "files": [*files]}
