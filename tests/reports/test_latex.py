"""LaTeX: hostile text is text, and the file compiles by itself where there is a TeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.result import Result
from harness.store import Entry, SuiteResults
from reports import latex
from reports.build import leaderboard
from tests.reports.synthetic import changed, spec_of

HOSTILE = r"\input{/etc/passwd} % $x^2_1$ & # ~ {} \write18{rm} é ÿ ☃ 日本 ^^5c ``--''"


def hostile(suite: SuiteResults) -> SuiteResults:
    entries = tuple(
        replace(e, method=f"{HOSTILE}{e.method}", backbone=HOSTILE, dataset=f"{HOSTILE}{e.dataset}"[-90:])
        for e in suite.entries
    )
    return SuiteResults(HOSTILE, HOSTILE, HOSTILE, entries)


def test_hostile_text_is_no_command(suite: SuiteResults) -> None:
    text = latex.render(leaderboard(hostile(suite)))
    for live in (r"\input", r"\write18", "^^"):
        assert live not in text
    math = re.sub(r"\\\$", "", text).split("$")[1::2]
    assert set(math) <= {r"\pm", r"\approx", r"\blacklozenge", "-"}
    assert text.isascii()
    assert len(re.findall(r"(?<!\\)%", text)) == 3, "our own comments alone"
    plain = re.sub(r"\\[{}]", "", text)
    assert plain.count("{") == plain.count("}")


def test_escape_cuts_names_that_no_table_holds() -> None:
    assert len(latex.escape("x" * 500)) < 130
    assert latex.escape("a_b % 100 $ \\ ~") == r"a\_b \% 100 \$ \textbackslash{} \textasciitilde{}"


def test_the_table_says_what_is_best_and_what_failed(suite: SuiteResults) -> None:
    def broken(entry: Entry) -> Result | None:
        if entry.result is not None and entry.method == "full":
            return Result(id=entry.id, spec=entry.result.spec, status="oom", error="out of memory")
        return entry.result

    board = leaderboard(changed(suite, broken))
    text = latex.render(board)
    best = next(row for row in board.rows if row.cells[0].standing == "best").cells[0].summary
    assert best is not None and rf"\textbf{{{100 * best.mean:.1f} $\pm$" in text
    assert r"\toprule" in text and r"\bottomrule" in text and "3 oom" in text and "References, not ranked" in text


def test_other_protocols_make_other_tables(suite: SuiteResults) -> None:
    def other(entry: Entry) -> Result | None:
        if entry.method != "dapt" or entry.result is None:
            return entry.result
        return entry.result.model_copy(update={"spec": spec_of("dapt", entry.dataset, entry.seed, data_points=1024)})

    text = latex.render(leaderboard(changed(suite, other)))
    assert text.count(r"\begin{table}") == 2 and "Group 2 of 2" in text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex on this machine")
@pytest.mark.parametrize("what", ["plain", "hostile", "empty"])
def test_it_compiles(what: str, suite: SuiteResults, tmp_path: Path) -> None:
    results = {"plain": suite, "hostile": hostile(suite), "empty": SuiteResults("none", "", "0" * 16, ())}[what]
    latex.write(results, tmp_path / "leaderboard.tex")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "leaderboard.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and (tmp_path / "leaderboard.pdf").stat().st_size > 1_000, done.stdout[-2_000:]
