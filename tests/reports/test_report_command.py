"""`harness report`: which formats, compared with what, written where; one clear error for what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import registry, reporting
from harness.cli import main
from harness.reporter import Reporter, as_reporter
from harness.reporting import write_reports
from harness.store import Store, SuiteResults
from tests.reports.synthetic import synthetic, write_folder


@pytest.fixture
def output(tmp_path: Path) -> Path:
    write_folder(synthetic(), tmp_path / "results")
    return tmp_path / "results"


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["harness", *arguments])
        main()
    return int(ended.value.code or 0)


def test_chosen_formats_are_written_where_asked(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = tmp_path / "paper"
    code = run("report", "quickstart", "-o", str(output), "--format", "tex,trials_csv", "--to", str(paper))
    assert code == 0 and {path.name for path in paper.iterdir()} == {"leaderboard.tex", "trials.csv"}
    assert capsys.readouterr().out.split() == [str(paper / "leaderboard.tex"), str(paper / "trials.csv")]
    assert not (output / "quickstart" / "report").exists()


def test_the_reference_is_what_others_are_compared_with(output: Path) -> None:
    assert run("report", "quickstart", "-o", str(output), "--format", "json", "--reference", "lora") == 0
    board = json.loads((output / "quickstart" / "report" / "leaderboard.json").read_text())["leaderboard"]
    assert board["versus"]["yardstick"] == "lora"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--reference", "lorra"], "no method 'lorra' to compare with; did you mean 'lora'?"),
        (["--format", "html,pdf"], "unknown reporter 'pdf'"),
    ],
)
def test_a_wrong_name_writes_nothing(
    arguments: list[str], words: str, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("report", "quickstart", "-o", str(output), *arguments) == 2
    assert words in capsys.readouterr().err and not (output / "quickstart" / "report").exists()


def test_a_run_leaves_the_figures_to_the_command(output: Path) -> None:
    paths, problems = write_reports(Store(output), "quickstart")
    names = {path.name for path in paths}
    assert not problems and "figures" not in names
    assert {"leaderboard.html", "leaderboard.tex", "trials.csv", "trials.parquet"} <= names
    assert not registry.get("reporters", "figures").after_run


@pytest.mark.slow
def test_what_a_run_writes_needs_no_matplotlib(output: Path) -> None:
    """It takes a second to import, and a run would wait for it."""
    program = (
        "import sys; from pathlib import Path; from harness import registry; from harness.reporter import as_reporter; "
        "from harness.store import Store; output = Path(sys.argv[1]); results = Store(output).load('quickstart'); "
        "found = [as_reporter(name, registry.get('reporters', name)) for name in registry.names('reporters')]; "
        "[one(results, output / one.file) for one in found if one.after_run]; "
        "sys.exit(1 if 'matplotlib' in sys.modules or 'torch' in sys.modules else 0)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(output)], check=False).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere reporters follow one another")
def test_of_many_trials_slow_reporters_work_beside_the_others(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own: one that fails or dies takes no other down, and is named."""

    def slow(results: SuiteResults, path: Path) -> None:
        path.write_text(f"{os.getpid()} {len(results.entries)}")

    def failing(results: SuiteResults, path: Path) -> None:
        raise ValueError("no ink")

    def dying(results: SuiteResults, path: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    added = {write.__name__: Reporter(write, write.__name__, after_run=False) for write in (slow, failing, dying)}
    get = registry.get
    monkeypatch.setattr(registry, "get", lambda kind, name: added.get(name) or get(kind, name))
    names = registry.names
    monkeypatch.setattr(registry, "names", lambda kind: sorted([*names(kind), *added]))
    monkeypatch.setattr(reporting, "MANY", 1)
    store, folder = Store(output), output / "elsewhere"
    paths, problems = write_reports(store, "quickstart", formats=["slow", "failing", "csv", "dying"], folder=folder)
    assert paths == [folder / "slow", folder / "leaderboard.csv"]
    process, trials = (folder / "slow").read_text().split()
    assert int(process) != os.getpid() and int(trials) == len(store.load("quickstart").entries)
    assert problems == [
        f"{folder / 'failing'}: reporter 'failing' failed: ValueError: no ink",
        f"{folder / 'dying'}: reporter 'dying' died with exit code -9",
    ]


def test_a_plain_function_is_a_reporter() -> None:
    def write(results: object, path: Path) -> None:
        path.write_text("x")

    assert as_reporter("slides", write).file == "leaderboard.slides" and as_reporter("slides", write).after_run
    own = Reporter(write, "slides.txt")
    assert as_reporter("slides", own) is own
