"""The leaderboard as GitHub markdown, for a README or a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from harness.atomic import write_atomically
from harness.reporter import Reporter
from harness.store import SuiteResults
from reports.build import leaderboard
from reports.columns import NOTHING, Column, beside, mean_and_sd, n_and_interval, percent, points
from reports.comparison import RowKey, Standing
from reports.leaderboard import CategoryTable, Cell, Leaderboard, Row, Score, capitalise, leads
from reports.statistics import Summary
from reports.tables import PUBLISHED, pareto_sentence, published_table, versus_notes, versus_tables

LONGEST = 4_800
"""Characters of a summary: what a run's description in MLflow holds, of servers of all versions."""
WHOLE = "Means over seeds ± standard deviation in percent, n in brackets; the whole report: leaderboard.html"
_SPECIAL = re.compile(r"([\\`*\[\]|~$])")
_EDGE_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_LINE_START = re.compile(r"^([-+#=>]|\d+(?=[.)](\s|$)))")


def write(results: SuiteResults, path: Path) -> None:
    """One markdown file: findings, table, what the columns mean, seeds, differences, protocol, versions."""
    write_atomically(path, render(leaderboard(results)))


def write_summary(results: SuiteResults, path: Path) -> None:
    """One small markdown file, for a chat, an issue or a run's description: the table's scores and what they say."""
    write_atomically(path, summary(leaderboard(results)))


SUMMARY = Reporter(write_summary, "summary.md")
"""The entry point."""


def summary(board: Leaderboard, longest: int = LONGEST) -> str:
    """The text: as many rows as it has room for, then as many of the findings."""
    head, rows, counts = _head(board), _short_rows(board), board.counts
    ended = f"{counts.done:,} of {counts.trials:,} trials done. {WHOLE}"
    notices = [f"- ⚠ {escape(notice)}" for notice in board.notices]
    top = [f"## {escape(board.name)}", escape(board.description), "\n".join(notices)]
    room = longest - sum(len(block) + 2 for block in (*top, *head, ended)) - 40
    kept = _fitting(rows, room)
    more = f"… and {len(rows) - kept:,} more rows." if kept < len(rows) else ""
    findings = [f"- {escape(finding)}" for finding in board.findings]
    said = _fitting(findings, room - sum(len(row) + 1 for row in rows[:kept]))
    table_rows = "\n".join([*head, *rows[:kept]]) if rows else ""
    blocks = [*top, table_rows, more, "\n".join(findings[:said]), ended]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _fitting(lines: Sequence[str], room: int) -> int:
    """How many of the first lines have room."""
    ends = accumulate(len(line) + 1 for line in lines)
    return sum(end <= room for end in ends)


def _head(board: Leaderboard) -> list[str]:
    names = ["Method", *map(escape, board.datasets), *(["Overall"] if len(board.datasets) > 1 else []), "Trainable"]
    return table(names, [], numbers_from=1).splitlines()


def _short_rows(board: Leaderboard) -> list[str]:
    lines = []
    for row in board.rows:
        cells = [f"{escape(board.label(row))}{' *(reference)*' if row.reference else ' ◆' if row.pareto else ''}"]
        cells += [
            _short(cell.summary, cell.standing) + (f"; {escape(cell.gaps)}" if cell.gaps else "") for cell in row.cells
        ]
        cells += [_short(row.overall, row.standing)] if len(board.datasets) > 1 else []
        trainable = row.cost("parameters.trainable").value
        cells.append(NOTHING if trainable is None else f"{trainable:,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _short(found: Summary | None, standing: Standing | None) -> str:
    """`**74.8 ± 2.7** (3)`: without the interval."""
    if found is None:
        return NOTHING
    shown = ("≈ " if standing == "level" else "") + mean_and_sd(found)
    return f"{f'**{shown}**' if leads(found, standing) else shown} ({found.n})"


def render(board: Leaderboard) -> str:
    """The text, from the leaderboard alone."""
    blocks = [f"# {escape(board.name)}", escape(board.description), escape(board.how_to_read)]
    blocks += [_bullets(f"⚠ {escape(notice)}" for notice in board.notices)]
    blocks += [
        "## What the intervals say",
        _bullets(map(escape, board.findings)),
        _bullets(map(escape, board.caveats)),
    ]
    blocks += ["## Leaderboard", _leaderboard(board), pareto_sentence(board), *_meanings(board), *_notes(board)]
    blocks += [part for found in board.by_category for part in _categories(found)]
    blocks += _published(board) + _versus(board)
    blocks += _details("Every seed", _seeds(board)) + _details("Paired differences", _differences(board))
    if board.troubles:
        blocks += ["## Trials without a number", _troubles(board)]
    blocks += ["## Protocol and versions", _bullets([*map(escape, board.protocol), *_provenance(board)])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: str) -> str:
    """Text from outside as inert text on one line: no markup, no table break, no link, no mention, no HTML."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    line = line.replace("://", "&#58;//").replace("www.", "www&#46;")
    line = _EDGE_UNDERSCORE.sub(r"\\_", _SPECIAL.sub(r"\\\1", line))
    return _LINE_START.sub(lambda m: f"&#{ord(m[1][0])};{m[1][1:]}", line)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int) -> str:
    """A table; columns from `numbers_from` on are right-aligned. Cells must be escaped already."""
    rule = ["---" if index < numbers_from else "---:" for index in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _details(title: str, content: str) -> list[str]:
    return [f"<details><summary>{title}</summary>", content, "</details>"] if content else []


def _columns(board: Leaderboard) -> list[str]:
    accuracies = [escape(dataset) for dataset in board.datasets] + (["Overall"] if len(board.datasets) > 1 else [])
    asides = [f"{escape(dataset)} {aside.title}" for aside in board.asides() for dataset in board.datasets]
    return ["Method", "Backbone", *accuracies, *asides, *map(_title, board.columns())]


def _title(column: Column) -> str:
    return f"{column.title} ({column.unit})" if column.unit else column.title


def _leaderboard(board: Leaderboard) -> str:
    rows = []
    for row in board.rows:
        cells = [_name(row), escape(row.backbone), *map(_cell, row.cells)]
        if len(board.datasets) > 1:
            cells.append(_score(row.overall, row.standing))
        cells += [_aside(cell.aside(aside.key)) for aside in board.asides() for cell in row.cells]
        rows.append(cells + [column.show(row.cost(column.key).value) for column in board.columns()])
    return table(_columns(board), rows, numbers_from=2)


def _name(row: Row) -> str:
    variant = f" ({row.key.variant + 1})" if row.key.variant else ""
    return f"{escape(row.method)}{variant}{' *(reference)*' if row.reference else ' ◆' if row.pareto else ''}"


def _cell(cell: Cell) -> str:
    parts = [_score(cell.summary, cell.standing)] if cell.summary is not None or not cell.gaps else [NOTHING]
    parts += [escape(cell.gaps)] if cell.gaps else []
    parts += [f"protocol {cell.protocol}"] if cell.protocol else []
    return "; ".join(parts)


def _score(summary: Summary | None, standing: Standing | None) -> str:
    if summary is None:
        return NOTHING
    shown = mean_and_sd(summary)
    shown = f"≈ {shown}" if standing == "level" else shown
    marked = f"**{shown}**" if leads(summary, standing) else shown
    return f"{marked} ({n_and_interval(summary, separator=', ')})"


def _aside(score: Score | None) -> str:
    return NOTHING if score is None else beside(score.summary, score.votes)


def _meanings(board: Leaderboard) -> list[str]:
    lines = [f"**{aside.title}**: {aside.meaning}; not ranked." for aside in board.asides()]
    lines += [f"**{_title(column)}**: {column.meaning}." for column in board.columns()]
    lines += [f"**{_title(column)}** is empty: {escape(reason)}." for column, reason in board.empty_columns()]
    return _details("What the columns mean", _bullets(lines))


def _notes(board: Leaderboard) -> list[str]:
    return [_bullets(f"{escape(board.label(row))}: {escape(' '.join(row.notes))}" for row in board.rows if row.notes)]


def _seeds(board: Leaderboard) -> str:
    rows = []
    for row in board.rows:
        for cell in row.cells:
            seeds = [
                f"{seed.name}: {percent(seed.score)}"
                + (f" ({seed.correct}/{seed.total})" if seed.correct is not None and seed.total is not None else "")
                for seed in cell.seeds
            ]
            balanced = mean_and_sd(cell.class_mean) if cell.class_mean is not None else NOTHING
            name = escape(board.label(row))
            rows.append([name, escape(cell.dataset), escape(row.recipe), "; ".join(seeds) or NOTHING, balanced])
    measure = board.measure
    title = "score" if measure is None else f"{measure.title} (correct/total)" if measure.counted else measure.title
    by_class = "Mean over classes" if measure is None else capitalise(measure.mean_title)
    header = ["Method", "Dataset", "Recipe", f"Seed: {title}", by_class]
    return table(header, rows, numbers_from=4) if rows else ""


def _categories(found: CategoryTable) -> list[str]:
    rows = [
        [escape(label), *(mean_and_sd(number) if number is not None else NOTHING for number in numbers)]
        for label, numbers in found.rows
    ]
    content = table(["Method", *map(escape, found.categories)], rows, numbers_from=1)
    return _details(f"{escape(found.dataset)}: {found.title} by category", content)


def _differences(board: Leaderboard) -> str:
    rows = []
    for comparison in board.comparisons:
        difference, names = comparison.difference, (comparison.first, comparison.second)
        interval = difference.interval
        span = f"{points(interval.low)} to {points(interval.high)}" if interval is not None else NOTHING
        p_value = f"{difference.p_value:.3g}" if difference.p_value is not None else NOTHING
        separated = "yes" if difference.separated else "no"
        cells = [points(difference.mean), span, str(difference.n), separated, p_value]
        rows.append([escape(comparison.dataset), *(_label(board, name) for name in names), *cells])
    header = ["Dataset", "First", "Second", "First − second (points)", "95 % interval", "n", "Separated", "p"]
    return table(header, rows, numbers_from=3) if rows else ""


def _published(board: Leaderboard) -> list[str]:
    found = published_table(board)
    if not found.rows:
        return []
    rows = [[escape(text) for text in row] for row in found.rows]
    return [f"## {found.title}", PUBLISHED, table(found.header, rows, numbers_from=found.numbers_from)]


def _versus(board: Leaderboard) -> list[str]:
    if board.versus is None or not board.versus.each:
        return []
    blocks = ["## Compared with one method", _bullets(map(escape, versus_notes(board)))]
    for found in versus_tables(board):
        rows = [[escape(text) for text in row] for row in found.rows]
        blocks += _details(escape(found.title), table(found.header, rows, numbers_from=found.numbers_from))
    return blocks


def _label(board: Leaderboard, key: RowKey) -> str:
    return escape(board.label(key))


def _troubles(board: Leaderboard) -> str:
    rows = [
        [
            escape(t.method),
            escape(t.backbone),
            escape(t.dataset),
            ", ".join(t.seeds),
            t.status,
            escape(t.error),
        ]
        for t in board.troubles
    ]
    return table(["Method", "Backbone", "Dataset", "Seeds", "Status", "Message"], rows, numbers_from=6)


def _provenance(board: Leaderboard) -> list[str]:
    counts = board.counts
    lines = [f"{what}: {escape('; '.join(values))}" for what, values in board.environment]
    trials = f"{counts.trials:,} trials: {counts.done:,} done, {counts.failed:,} failed, {counts.missing:,} missing"
    return [*lines, trials, f"suite {escape(board.name)}, digest {escape(board.digest)}"]
