"""The leaderboard as LaTeX, for a paper: booktabs, one table per group of rows that may be ranked together.

The file compiles by itself (`pdflatex leaderboard.tex`); the part between the two marks goes into a paper, which needs
`booktabs`, `xcolor` and `graphicx`. Names and messages come from outside and are written as text, whatever they hold.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from harness.atomic import write_atomically
from harness.store import SuiteResults
from harness.text import cut
from reports.build import leaderboard
from reports.columns import NOTHING, Column, mean_and_sd
from reports.comparison import Standing
from reports.leaderboard import Cell, Leaderboard, Published, Row, capitalise, leads
from reports.statistics import Summary
from reports.tables import PUBLISHED, pareto_sentence, published_difference, published_text

LONGEST = 120
"""Characters of a name; longer ones are cut off, as no table could hold them."""
MACHINE = ("CPU", "GPU", "precision")
COSTS = ("parameters.trainable", "memory.train_peak", "time.step")
SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "-": "{-}",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "◆": r"$\blacklozenge$",
    "⚠": "(!)",
    "…": r"\ldots{}",
    "°": r"$^{\circ}$",
    "µ": r"$\mu$",
    "⁶": r"$^{6}$",
}
PREAMBLE = r"""% Written by `harness report`. Needs pdflatex with booktabs, xcolor, graphicx, textcomp and amssymb.
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage{textcomp}
\usepackage[a4paper,landscape,margin=15mm]{geometry}
\usepackage{booktabs,amssymb,xcolor,graphicx}
\begin{document}
% ---- from here on: for your paper
"""
END = r"""% ---- up to here
\end{document}
"""


def write(results: SuiteResults, path: Path) -> None:
    """One .tex file."""
    write_atomically(path, render(leaderboard(results)))


def render(board: Leaderboard) -> str:
    """The text, from the leaderboard alone."""
    groups = [list(rows) for _, rows in groupby(board.rows, key=lambda row: (row.reference, row.section))]
    ranked = [rows for rows in groups if not rows[0].reference]
    references = [row for row in board.rows if row.reference]
    tables = [_table(board, rows, number, len(ranked), references) for number, rows in enumerate(ranked)]
    if not tables:
        tables = [_table(board, references, 0, 1, [])] if references else ["No method has a result yet.\n"]
    return PREAMBLE + "\n".join(tables) + END


def escape(text: str, *, longest: int = LONGEST) -> str:
    """Text from outside as text on one line: no command, no group, no math, only characters that pdflatex knows."""
    line = cut(" ".join(text.split()), longest)
    return "".join(_character(character) for character in line)


def _character(character: str) -> str:
    if character in SPECIAL:
        return SPECIAL[character]
    if " " <= character <= "~":
        return character
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(SPECIAL.get(c, c) for c in plain) or "?"


def _table(board: Leaderboard, rows: Sequence[Row], number: int, groups: int, references: Sequence[Row]) -> str:
    empty = {column.key for column, _ in board.empty_columns()}
    columns = [column for column in board.columns() if column.key in COSTS and column.key not in empty]
    several = len(board.datasets) > 1
    header = [*map(escape, board.datasets), *(["Overall"] if several else [])]
    titles = ["Method", *header, *(escape(_title(column)) for column in columns)]
    lines = [r"\begin{table}[htbp]", r"\centering", rf"\caption{{{_caption(board, rows, number, groups)}}}"]
    lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}", r"\toprule", _line(titles), r"\midrule"]
    for index, (backbone, members) in enumerate(groupby(sorted(rows, key=_by_backbone), key=lambda row: row.backbone)):
        lines += [r"\midrule"] if index else []
        if board.several_backbones:
            lines.append(_line([rf"\multicolumn{{{len(titles)}}}{{l}}{{\textit{{{escape(backbone)}}}}}"]))
        lines += [part for row in members for part in _row(row, columns, several)]
    if references:
        lines += [r"\midrule", _line([rf"\multicolumn{{{len(titles)}}}{{l}}{{\textit{{References, not ranked}}}}"])]
        lines += [part for row in references for part in _row(row, columns, several)]
    lines += [r"\bottomrule", r"\end{tabular}}", *_footnotes(board, rows), r"\end{table}"]
    return "\n".join(lines) + "\n"


def _by_backbone(row: Row) -> str:
    return row.backbone


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _title(column: Column) -> str:
    return f"{column.title} ({column.unit})" if column.unit else column.title


def _caption(board: Leaderboard, rows: Sequence[Row], number: int, groups: int) -> str:
    group = f" Group {number + 1} of {groups} by protocol." if groups > 1 else ""
    repeats = sorted({cell.summary.n for row in rows for cell in row.cells if cell.summary is not None})
    span = f"{repeats[0]}" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]}" if repeats else "no"
    what = "; ".join(dict.fromkeys(headline.meaning for headline in board.headlines))
    text = (
        f"{capitalise(what)} in percent, mean ± sample standard deviation over {span} seeds (folds). Bold: the best "
        "mean and, marked ≈, all that the 95 % intervals of paired differences do not separate from it."
    )
    return f"{escape(board.name)}.{group} {escape(text, longest=2_000)}"


def _row(row: Row, columns: Sequence[Column], several: bool) -> list[str]:
    variant = f" ({row.key.variant + 1})" if row.key.variant else ""
    name = escape(row.method) + variant + (r" $\blacklozenge$" if row.pareto else "")
    cells = [name, *map(_cell, row.cells)]
    if several:
        cells.append(_score(row.overall, row.standing))
    lines = [_line([*cells, *(escape(column.show(row.cost(column.key).value)) for column in columns)])]
    if any(cell.published for cell in row.cells):
        known = [_grey("; ".join(map(_published, cell.published_here))) if cell.published else "" for cell in row.cells]
        lines.append(_line([_grey("published"), *known, *([""] if several else []), *([""] * len(columns))]))
    return lines


def _published(found: Published) -> str:
    difference = f" ({published_difference(found)})" if found.difference is not None else ""
    return published_text(found) + difference


def _grey(text: str) -> str:
    return rf"\textcolor{{gray}}{{\footnotesize {escape(text)}}}"


def _cell(cell: Cell) -> str:
    if cell.summary is None:
        return escape(cell.gaps or NOTHING)
    return _score(cell.summary, cell.standing) + (rf" {{\footnotesize ({escape(cell.gaps)})}}" if cell.gaps else "")


def _score(summary: Summary | None, standing: Standing | None) -> str:
    if summary is None:
        return escape(NOTHING)
    shown = escape(("≈ " if standing == "level" else "") + mean_and_sd(summary))
    return rf"\textbf{{{shown}}}" if leads(summary, standing) else shown


def _footnotes(board: Leaderboard, rows: Sequence[Row]) -> list[str]:
    """Failures, protocol, votes and hardware, Pareto and published values."""
    notes = [*board.notices, *board.protocol, pareto_sentence(board)]
    if any(cell.published for row in rows for cell in row.cells):
        notes.append(PUBLISHED)
    machine = [f"{what}: {', '.join(values)}" for what, values in board.environment if what in MACHINE]
    notes.append("; ".join(machine))
    return [rf"\par\smallskip{{\raggedright\footnotesize {escape(note, longest=2_000)}\par}}" for note in notes if note]
