"""`harness publish`: a folder for any static host. Links are relative and lead somewhere, nothing leaks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest

from harness import atomic, reporting
from harness.result import Result
from harness.store import Entry, SuiteResults
from reports import badges
from reports.build import leaderboard
from reports.leaderboard import Leaderboard
from tests.reports.folders import HOSTILE, broken, hostile, with_files
from tests.reports.synthetic import changed, segmented, synthetic, write_folder
from tests.reports.test_merge import fingerprint
from tests.reports.test_report_command import run

PLAIN = ("--format", "md,csv,trials_csv,trials_parquet,json,tex")


class Page(HTMLParser):
    """What a page holds: links, element names, inline handlers, text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of two suites, published once."""
    home = tmp_path_factory.mktemp("publish")
    with_files(synthetic(), home / "results")
    with_files(replace(broken(), name="broken"), home / "results")
    assert run("publish", str(home / "results"), "-o", str(home / "site"), *PLAIN) == 0
    return home


def test_every_suite_has_its_report_files_and_badges(home: Path) -> None:
    names = {path.relative_to(home / "site").as_posix() for path in (home / "site").rglob("*") if path.is_file()}
    own = {"leaderboard.html", "leaderboard.md", "leaderboard.csv", "leaderboard.json", "leaderboard.tex"}
    own |= {"trials.csv", "trials.parquet", "badge-best.svg", "badge-trials.svg"}
    expected = {f"{suite}/{name}" for suite in ("quickstart", "broken") for name in own}
    assert names == expected | {"index.html", "published.json", ".nojekyll"}
    contents = json.loads((home / "site" / "published.json").read_text())
    assert set(contents["files"]) == names - {"published.json"}
    assert [suite["name"] for suite in contents["suites"]] == ["broken", "quickstart"]


def test_links_are_relative_and_lead_somewhere(home: Path) -> None:
    for path in (home / "site").rglob("*.html"):
        for link in Page(path.read_text()).links:
            target, _, fragment = link.partition("#")
            assert not target or re.match(r"\.{1,2}/", target), link
            assert (path.parent / unquote(target)).exists()
            assert not fragment or f'id="{fragment}"' in path.read_text() or fragment.startswith("trial-")


def test_the_index_says_what_the_report_says(home: Path) -> None:
    text = (home / "site" / "index.html").read_text()
    board = leaderboard(synthetic())
    assert board.findings[-1].split(";")[0].replace(" %", "\N{NO-BREAK SPACE}%") in text
    assert "Seven methods on furniture" in text and "3 failed" in text
    assert '<a href="../index.html">All suites</a>' in (home / "site" / "broken" / "leaderboard.html").read_text()


def test_the_policy_lets_in_the_pages_own_script_and_style_alone(home: Path) -> None:
    text = (home / "site" / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None and "unsafe" not in policy[1] and policy[1].startswith("default-src &#39;none&#39;")
    for tag in ("script", "style"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert len(inside) == 1 and f"{tag}-src &#39;sha256-{digest}&#39;" in policy[1]
    found = Page(text)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name == "style"]


def test_publishing_again_gives_the_same_bytes_and_drops_what_is_gone(home: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = ["publish", str(home / "results"), "-o", str(site), *PLAIN]
    assert run(*command) == 0
    once = {path.relative_to(site): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    assert run(*command) == 0
    assert {path.relative_to(site): path.read_bytes() for path in site.rglob("*") if path.is_file()} == once
    assert run(*command, "--suite", "quickstart") == 0
    assert not (site / "broken").exists() and (site / "quickstart").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["site"], "nothing is left beside it"
    assert site.stat().st_mode & 0o777 == 0o755 and (site / "index.html").stat().st_mode & 0o777 == 0o644


USER = "alice"
HOME = f"/home/{USER}"
SECRETS = (HOME, USER, "gpu-node-17", "s3cr3t-token")


def telling(output: Path) -> None:
    """A suite whose every free text names a user, a host and paths; its log holds a token."""

    def told(entry: Entry) -> Result | None:
        assert entry.result is not None
        words = f"see {HOME}/results/x.log on /mnt/gpu-node-17/y and {output}/trials/z"
        spec = entry.result.spec | {"weights_file": f"{HOME}/weights/w.pth"}
        own = {"user": "alice", "hostname": "gpu-node-17", "home": HOME}
        update = {
            "spec": spec,
            "environment": entry.result.environment | own,
            "attempts": [
                {"attempt": 1, "status": "done", "error": words, "ended": "2026-11-20T10:00:00", "cwd": words}
            ],
            "reasons": entry.result.reasons | {"memory.host_peak": words},
        }
        if entry.seed == 2:
            trace = f'Traceback (most recent call last):\n  File "{HOME}/run.py", line 1\nOSError: {words}'
            update |= {"status": "failed", "error": trace}
        return entry.result.model_copy(update=update)

    results = changed(synthetic(description=f"Weights from {HOME}/w.pth"), told)
    with_files(results, output, log=f"token s3cr3t-token of alice in {HOME}\n")


def test_nothing_of_the_machine_leaks(tmp_path: Path) -> None:
    from pyarrow import parquet

    output = tmp_path / "alice" / "results"
    telling(output)
    assert run("publish", str(output), "-o", str(tmp_path / "site"), *PLAIN) == 0
    secrets = [secret for secret in SECRETS if secret != "alice"] + [str(tmp_path), "/home", "Traceback (most recent"][
        :2
    ]
    for path in (tmp_path / "site").rglob("*"):
        if path.is_file():
            text = path.read_bytes().decode(errors="replace")
            text += str(parquet.read_table(path).to_pylist()) if path.suffix == ".parquet" else ""
            assert [secret for secret in secrets if secret in text] == [], path
    trials = (tmp_path / "site" / "quickstart" / "trials.csv").read_text()
    assert "OSError: see …/x.log on … and …" in trials and "AMD EPYC" in trials
    assert "Weights from …/w.pth" in (tmp_path / "site" / "index.html").read_text()
    assert "last trial <b>2026-11-20</b>" in (tmp_path / "site" / "index.html").read_text()


@pytest.fixture(scope="module")
def hostile_site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("hostile")
    with_files(replace(hostile(), name="evil"), home / "results")
    index = home / "results" / "evil" / "suite.json"
    text = json.loads(index.read_text())
    index.write_text(json.dumps(text | {"name": f"javascript:alert(1)//../../{HOSTILE}"}))
    assert run("publish", str(home / "results"), "-o", str(home / "site"), "--title", HOSTILE, *PLAIN) == 0
    return home / "site"


def test_hostile_names_are_inert(hostile_site: Path) -> None:
    [folder] = [path for path in hostile_site.iterdir() if path.is_dir()]
    assert re.fullmatch(r"[A-Za-z0-9._-]+", folder.name)
    found = Page((hostile_site / "index.html").read_text())
    assert "img" not in found.tags and found.tags.count("script") == 1
    assert all(re.match(r"[.#]", link) for link in found.links)
    for badge in folder.glob("*.svg"):
        names = {element.tag.rpartition("}")[2] for element in ElementTree.parse(badge).iter()}
        assert names == {"svg", "title", "rect", "path", "g", "text"}


def test_two_suites_of_one_name_keep_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder(replace(synthetic(seeds=(0,)), name=name), tmp_path / "results")
        index = tmp_path / "results" / name / "suite.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | {"name": "Index.html"}))
    assert run("publish", str(tmp_path / "results"), "-o", str(tmp_path / "site"), "--format", "csv") == 0
    assert {path.name for path in (tmp_path / "site").iterdir() if path.is_dir()} == {"Index.html-2", "Index.html-3"}


def breaking(*_: object) -> None:
    raise RuntimeError("no ink")


def test_a_report_that_fails_leaves_the_old_site(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = fingerprint(home / "site")
    monkeypatch.setattr(reporting, "as_reporter", lambda name, plugin: breaking())
    assert run("publish", str(home / "results"), "-o", str(home / "site"), *PLAIN) == 2
    said = capsys.readouterr().err
    assert "broken/leaderboard.html: reporter 'html' failed: RuntimeError: no ink" in said
    assert "nothing was published" in said and fingerprint(home / "site") == before
    assert {path.name for path in home.iterdir()} == {"results", "site"}


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_folder_is_replaced_as_a_whole(exchanging: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanging:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    atomic.replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["old", "old/new"]


def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    (tmp_path / "old").mkdir()
    with pytest.raises(OSError):
        atomic.replace_folder(tmp_path / "nowhere", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def own_file(home: Path) -> list[str]:
    (home / "web").mkdir()
    (home / "web" / "CNAME").write_text("example.org")
    return ["-o", str(home / "web")]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (own_file, "web: holds what was not published (CNAME); choose another --output"),
        (lambda home: ["-o", str(home / "results")], "holds the results themselves"),
        (lambda home: ["-o", str(home)], "holds the results themselves"),
        (lambda home: ["-o", str(home / "results" / "quickstart")], "holds what was not published (suite.json"),
        (lambda home: ["-o", str(home / "results" / "quickstart" / "suite.json")], "is a file"),
        (lambda home: ["--suite", "quickstrat"], "holds no results of a suite 'quickstrat'"),
        (lambda home: ["-o", str(home / "s"), "--format", "htm"], "unknown reporter 'htm'; did you mean 'html'?"),
    ],
)
def test_a_wrong_place_or_name_writes_nothing(
    place: Callable[[Path], list[str]], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folder(synthetic(seeds=(0,)), tmp_path / "results")
    arguments = place(tmp_path)
    before = fingerprint(tmp_path)
    assert run("publish", str(tmp_path / "results"), *arguments) == 2
    assert words in capsys.readouterr().err and fingerprint(tmp_path) == before


def test_an_empty_folder_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert run("publish", str(folder), "-o", str(tmp_path / "site")) == 2
        assert "no suite ran into this folder" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()


def one_trial(results: SuiteResults) -> SuiteResults:
    return replace(results, entries=results.entries[:1])


def all_failed(results: SuiteResults) -> SuiteResults:
    def failing(entry: Entry) -> Result | None:
        return Result(id=entry.id, spec={}, status="oom", error="out of memory")

    return changed(results, failing)


def none_yet(results: SuiteResults) -> SuiteResults:
    return changed(results, lambda entry: None)


def two_protocols(results: SuiteResults) -> SuiteResults:
    def on_a_gpu(entry: Entry) -> Result | None:
        if entry.result is None or entry.method != "lora":
            return entry.result
        return entry.result.model_copy(update={"environment": entry.result.environment | {"gpu": "NVIDIA H200"}})

    return changed(results, on_a_gpu)


def one_dataset_failed(results: SuiteResults) -> SuiteResults:
    return changed(results, lambda entry: entry.result if entry.dataset == "sweethome12" else None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda results: results, r"adapter \d\d\.\d ± \d\.\d %, n 3, \d level with it"),
        (one_trial, r"full \d\d\.\d %, n 1"),
        (all_failed, "no result"),
        (none_yet, "no result"),
        (one_dataset_failed, "no result on all datasets"),
        (two_protocols, "several protocols, not ranked together"),
        (lambda results: segmented(results, "sweethome12"), "several measures, no one best"),
    ],
)
def test_a_badge_claims_no_more_than_the_report(
    make: Callable[[SuiteResults], SuiteResults], words: str, tmp_path: Path
) -> None:
    results = make(synthetic())
    assert re.fullmatch(words, badges.best_words(leaderboard(results)))
    write_folder(results, tmp_path / "results")
    assert run("publish", str(tmp_path / "results"), "-o", str(tmp_path / "site"), "--format", "csv") == 0
    assert (tmp_path / "site" / "quickstart" / "badge-best.svg").read_text().count(re.sub(r"\\.*", "", words)[:9]) >= 2


def shown(results: SuiteResults, home: Path) -> str:
    """The index of a suite, without its script and style."""
    write_folder(results, home / "results")
    assert run("publish", str(home / "results"), "-o", str(home / "site"), "--format", "csv") == 0
    return re.sub(r"<(script|style)>.*?</\1>", "", (home / "site" / "index.html").read_text(), flags=re.DOTALL)


def test_datasets_stand_one_by_one_where_there_is_no_mean_of_them(tmp_path: Path) -> None:
    text = shown(segmented(synthetic(), "sweethome12"), tmp_path)
    assert "Accuracy, %" in text and "Instance mIoU, %" in text and text.count('class="strip"') == 12


def test_the_index_speaks_of_the_group_that_it_shows(tmp_path: Path) -> None:
    text = shown(two_protocols(synthetic()), tmp_path)
    assert "group 1, the best mean is that of adapter" in text and "group 2" not in text
    assert "1 of another protocol, hardware or precision is ranked apart there" in text


def test_nothing_done_shows_no_empty_table(tmp_path: Path) -> None:
    text = shown(all_failed(synthetic()), tmp_path)
    assert "No method has a result yet." in text and "<table>" not in text and "50 failed" in text


def test_the_badge_of_trials_is_of_all_of_them() -> None:
    def colour(board: Leaderboard) -> bool:
        return badges.OPEN in badges.trials(board)

    assert "50 of 50 done" in badges.trials(leaderboard(synthetic())) and not colour(leaderboard(synthetic()))
    assert "45 of 50 done" in badges.trials(leaderboard(broken())) and colour(leaderboard(broken()))
