"""All four formats, read back: the same numbers, the same bytes from the same results, hostile text inert."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.result import Result
from harness.store import Entry, SuiteResults
from reports import html, markdown, tidy
from reports.build import leaderboard
from reports.columns import COLUMNS
from tests.reports.synthetic import altered, changed, spec_of, synthetic, with_asides, write_folder

WRITERS: dict[str, Callable[[SuiteResults, Path], None]] = {
    "md": markdown.write,
    "csv": tidy.write_csv,
    "json": tidy.write_json,
    "html": html.write,
    "summary": markdown.write_summary,
}
SCORE = re.compile(r"(?P<mean>[\d.]+)(?: ± (?P<sd>[\d.]+))?\D+n (?P<n>\d+)(?:\D+(?P<low>[\d.]+)–(?P<high>[\d.]+))?")


class Page(HTMLParser):
    """Tables as rows of cell texts, all tags with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._cell, self._script, self._data = False, False, False
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = self._script or (tag == "script" and "type" not in dict(attrs))
        self._data = tag == "script" and dict(attrs).get("type") == "application/json"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True
        elif tag == "span" and self._cell and self.tables[-1][-1][-1]:
            self.tables[-1][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")
        self._script = self._script and tag != "script"
        self._data = self._data and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts.append(data)
        elif self._data:
            self.data += data
        elif self._cell:
            self.tables[-1][-1][-1] += data


def render(results: SuiteResults, folder: Path) -> dict[str, str]:
    for kind, write in WRITERS.items():
        write(results, folder / f"leaderboard.{kind}")
    return {kind: (folder / f"leaderboard.{kind}").read_text(encoding="utf-8") for kind in WRITERS}


def markdown_tables(text: str) -> list[list[list[str]]]:
    tables: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            if not inside:
                tables.append([])
            tables[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        inside = line.startswith("|")
    return tables


def number(text: str) -> float | None:
    return None if text.strip() in ("–", "") else float(text.replace(",", ""))


def shown(value: float | None, decimals: int) -> float | None:
    return None if value is None else float(f"{value:.{decimals}f}")


def score(text: str) -> tuple[float | None, ...]:
    found = SCORE.search(text)
    if found is None:
        return (None,) * 5
    return tuple(float(part) if (part := found[name]) else None for name in ("mean", "sd", "n", "low", "high"))


def expected_score(summary: dict[str, Any] | None) -> tuple[float | None, ...]:
    if summary is None:
        return (None,) * 5
    interval = summary["interval"] or {"low": None, "high": None}
    parts = (summary["mean"], summary["sd"], interval["low"], interval["high"])
    mean, sd, low, high = (shown(None if part is None else 100 * part, 1) for part in parts)
    return (mean, sd, float(summary["n"]), low, high)


def broken(entry: Entry) -> Result | None:
    """Some trials failed, some are missing, one method is on another protocol."""
    if entry.result is None or (entry.method == "vpt" and entry.seed == 2):
        return None
    if entry.method == "full" and entry.dataset == "sweethome12":
        return Result(id=entry.id, spec=entry.result.spec, status="oom", error="out of memory")
    if entry.method == "dapt":
        spec = spec_of("dapt", entry.dataset, entry.seed, data_points=1024)
        return entry.result.model_copy(update={"spec": spec})
    return entry.result


SUITES = {
    "whole": synthetic(),
    "broken": changed(synthetic(), broken),
    "one seed": synthetic(seeds=(0,)),
    "no result": changed(synthetic(), lambda entry: None),
    "one dataset": replace(synthetic(), entries=tuple(e for e in synthetic().entries if e.dataset == "sweethome12")),
}


@pytest.mark.parametrize("name", SUITES)
def test_all_formats_hold_the_same_numbers(name: str, tmp_path: Path) -> None:
    files = render(SUITES[name], tmp_path)
    board = json.loads(files["json"])["leaderboard"]
    in_markdown = markdown_tables(files["md"])[0]
    in_html = [row for row in Page(files["html"]).tables[0][2:] if len(row) > 1]
    in_csv = pd.read_csv(io.StringIO(files["csv"]))
    datasets = board["datasets"]
    several = len(datasets) > 1
    places = [*datasets, *(["overall"] if several else [])]
    assert len(in_markdown) - 2 == len(in_html) == len(board["rows"])
    for row, md, page in zip(board["rows"], in_markdown[2:], in_html, strict=True):
        assert md[0].removesuffix(" *(reference)*").removesuffix(" ◆") == row["method"]
        assert md[0].endswith("◆") == row["pareto"]
        assert page[0] == f"{row['method']}{'  ◆' if row['pareto'] else ''} {row['backbone']}"
        summaries = [cell["summary"] for cell in row["cells"]] + ([row["overall"]] if several else [])
        lines = in_csv[(in_csv.method == row["method"]) & (in_csv.variant == row["key"]["variant"])]
        for index, (place, summary) in enumerate(zip(places, summaries, strict=True)):
            assert score(md[2 + index]) == expected_score(summary)
            assert score(page[1 + index]) == expected_score(summary)
            [line] = lines[lines.dataset == place].to_dict("records")
            if summary is None:
                assert line["n"] == 0 and pd.isna(line["accuracy_mean"])
            else:
                assert (line["accuracy_mean"], line["n"]) == (summary["mean"], summary["n"])
                assert pd.isna(line["accuracy_sd"]) if summary["sd"] is None else line["accuracy_sd"] == summary["sd"]
        for cell, in_md, in_page in zip(row["cells"], md[2:], page[1:], strict=False):
            words = [f"{number} {status}" for status, number in cell["failures"]]
            for word in words + ([f"{cell['missing']} missing"] if cell["missing"] else []):
                assert word in in_md and word in in_page
        costs = {cost["key"]: cost["value"] for cost in row["costs"]}
        overall_line = lines[lines.dataset == "overall"].to_dict("records")[0]
        columns = [column for column in COLUMNS if column.shown == "always"]
        for column, in_md, in_page in zip(columns, md[2 + len(places) :], page[1 + len(places) :], strict=True):
            value = costs[column.key]
            expected = shown(None if value is None else value * column.scale, column.decimals)
            assert number(in_md) == number(in_page) == expected
            assert pd.isna(overall_line[column.name]) if value is None else overall_line[column.name] == value


@pytest.mark.parametrize("name", ["whole", "one dataset"])
def test_all_formats_hold_the_numbers_beside_the_headline(name: str, tmp_path: Path) -> None:
    results = with_asides(SUITES[name])
    files, board = render(results, tmp_path), leaderboard(results)
    datasets, page = board.datasets, Page(files["html"])
    header, _, *in_markdown = markdown_tables(files["md"])[0]
    in_html = [row for row in page.tables[0][2:] if len(row) > 1]
    in_csv = pd.read_csv(io.StringIO(files["csv"]))
    ranked = len(datasets) + (len(datasets) > 1)
    titles = [f"{dataset} {title}" for title in ("⚠ best on test", "by vote") for dataset in datasets]
    assert header[2 + ranked : 2 + ranked + len(titles)] == titles
    places = [int(a["data-column"] or "") for tag, a in page.tags if "data-column" in a]
    assert places == list(range(len(header) - 1)), "what sorting goes by"
    for row, md, html_row in zip(board.rows, in_markdown, in_html, strict=True):
        for index, dataset in enumerate(datasets):
            line = in_csv[(in_csv.method == row.method) & (in_csv.dataset == dataset)].iloc[0]
            for place, key in ((ranked, "accuracy_best_on_test"), (ranked + len(datasets), "accuracy_vote")):
                found = row.cells[index].aside(key)
                assert md[2 + place + index] == html_row[1 + place + index]
                if found is None:
                    assert md[2 + place + index] == "–" and pd.isna(line[f"{key}_mean"])
                else:
                    assert md[2 + place + index].startswith(f"{100 * found.summary.mean:.1f}")
                    assert ("10 passes" in md[2 + place + index]) == (key == "accuracy_vote")
                    assert line[f"{key}_mean"] == found.summary.mean and line[f"{key}_n"] == found.summary.n
    assert in_csv[(in_csv.method == "lora")].iloc[0].votes == 10
    assert "chosen on the very test split" in files["md"] and "chosen on the very test split" in files["html"]


def test_csv_is_tidy(suite: SuiteResults, tmp_path: Path) -> None:
    table = pd.read_csv(io.StringIO(render(suite, tmp_path)["csv"]))
    assert len(table) == 9 * 3
    assert not table.duplicated(["method", "backbone", "dataset"]).any()
    assert set(table.dataset) == {"sweethome12", "sweethome12_scanlike", "overall"}
    lora = table[(table.method == "lora") & (table.dataset == "sweethome12")].iloc[0]
    seeds = [e.result for e in suite.entries if e.result and (e.method, e.dataset) == ("lora", "sweethome12")]
    assert lora.correct == " ".join(str(result.metrics.correct) for result in seeds)
    assert lora.memory_train_peak_reason == "no GPU in this trial" and pd.isna(lora.memory_train_peak)


def test_json_holds_every_trial(suite: SuiteResults, tmp_path: Path) -> None:
    trials = json.loads(render(suite, tmp_path)["json"])["trials"]
    assert len(trials) == len(suite.entries)
    by_id = {entry.id: entry.result for entry in suite.entries}
    for trial in trials:
        result = by_id[trial["id"]]
        assert result is not None and trial["metrics"] == result.metrics.model_dump()
        assert trial["time"] == result.time.model_dump()


def test_a_copied_and_shuffled_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    results = SUITES["broken"]
    order = random.Random(5).sample(range(len(results.entries)), len(results.entries))
    write_folder(results, tmp_path / "one")
    write_folder(results, tmp_path / "two" / "elsewhere", order=order)
    shutil.copytree(tmp_path / "one", tmp_path / "three")
    stores = [tmp_path / "one", tmp_path / "two" / "elsewhere", tmp_path / "three"]
    files = []
    for index, output in enumerate(stores):
        loaded = write_folder(SuiteResults("other", "", "", ()), output).load(results.name)
        files.append(render(loaded, tmp_path / f"report {index}"))
    assert files[0] == files[1] == files[2] == render(results, tmp_path / "direct")
    assert str(tmp_path) not in "".join(files[0].values())


HOSTILE = [
    "<script>alert(1)</script>",
    "=cmd|' /C calc'!A0",
    "a|b\n\n# heading\n<img src=x onerror=alert(2)>",
    "`code` *bold* [link](javascript:alert(3)) @someone http://evil.example",
    '"><svg onload=alert(4)>',
    "+1-2@SUM(A1)",
    "</script></style></table>",
    "{{ 7 * 7 }} {% raise %}",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    entries = []
    for index, entry in enumerate(synthetic().entries):
        bad = HOSTILE[index % len(HOSTILE)]
        assert entry.result is not None
        environment = entry.result.environment | {"cpu": bad, "git": {"commit": bad}}
        reasons = dict.fromkeys(entry.result.reasons, bad)
        result = entry.result.model_copy(update={"environment": environment, "reasons": reasons})
        if entry.seed == 2:
            result = Result(id=entry.id, spec=result.spec, status="failed", error=bad)
        dataset = HOSTILE[0] if entry.dataset == "sweethome12" else HOSTILE[2]
        method = HOSTILE[list(sorted({e.method for e in synthetic().entries})).index(entry.method) % len(HOSTILE)]
        method = f"{method}{entry.method}"
        entries.append(replace(entry, result=result, method=method, backbone=HOSTILE[1], dataset=dataset))
    results = SuiteResults(HOSTILE[0], HOSTILE[2], HOSTILE[4], tuple(entries))
    return render(results, tmp_path_factory.mktemp("hostile"))


def test_hostile_text_makes_no_element_in_html(hostile: dict[str, str], tmp_path: Path) -> None:
    page, plain = Page(hostile["html"]), Page(render(SUITES["broken"], tmp_path)["html"])
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert len([tag for tag, attributes in page.tags if tag == "script" and "type" not in attributes]) == 1
    assert not set("<>&") & set(page.data), "nothing in the data ends its element"
    assert set(HOSTILE) >= set(json.loads(page.data)["index"]["backbones"])
    assert page.scripts == plain.scripts
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "src"]
    assert "{{ 7 * 7 }} {% raise %}" in hostile["html"]
    assert "&lt;script&gt;alert(1)" in hostile["html"]


def test_the_page_is_self_contained_and_its_policy_names_its_script(suite: SuiteResults, tmp_path: Path) -> None:
    text = render(suite, tmp_path)["html"]
    page = Page(text)
    policy = next(a["content"] or "" for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'" and directives["img-src"] == "data:"
    assert directives["script-src"] == f"'sha256-{digest}'"
    style = re.search(r"(?s)<style>(.*?)</style>", text)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert directives["style-src"] == f"'sha256-{digest}'" and "unsafe" not in policy
    assert not [a for t, a in page.tags if t in ("link", "img", "iframe") or "src" in a]
    links = [a["href"] or "" for _, a in page.tags if "href" in a]
    assert links and all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= {a["id"] for _, a in page.tags if "id" in a}
    assert not [a for _, a in page.tags if "style" in a]
    assert not {"http://", "https://"} & set(re.findall(r"https?://", text.replace("http://www.w3.org/2000/svg", "")))
    headers = [a for t, a in page.tags if t == "th" and "data-column" in a]
    assert headers and all(a["aria-sort"] == "none" and a["title"] for a in headers)


def test_hostile_text_breaks_no_markdown(hostile: dict[str, str]) -> None:
    text = hostile["md"]
    for table in markdown_tables(text):
        assert len({len(row) for row in table}) == 1
    assert re.findall(r"(?m)^#.*", text)[1:] == [
        "## What the intervals say",
        "## Leaderboard",
        "## Compared with one method",
        "## Trials without a number",
        "## Protocol and versions",
    ]
    allowed = r"</?details>|<summary>[\w ]+</summary>"
    assert "<" not in re.sub(allowed, "", text)
    for live in ("@someone", "http://", "](javascript", "`code`"):
        assert live not in text.replace("\\`", "").replace("\\]", "")


def test_hostile_text_breaks_no_summary(hostile: dict[str, str]) -> None:
    (table,) = markdown_tables(hostile["summary"])
    assert len({len(row) for row in table}) == 1 and "<" not in hostile["summary"]
    assert len(re.findall(r"(?m)^#", hostile["summary"])) == 1 and "http://" not in hostile["summary"]


@pytest.mark.parametrize("longest", [600, 1000, 2000, 4800])
def test_a_summary_keeps_to_its_length_and_says_what_it_leaves_out(longest: int, suite: SuiteResults) -> None:
    board = leaderboard(suite)
    text = markdown.summary(board, longest)
    (table,) = markdown_tables(text)
    rows = len(table) - 2
    assert len(text) <= longest and text.startswith("## quickstart") and "50 of 50 trials done" in text
    assert rows == len(board.rows) or f"… and {len(board.rows) - rows} more rows." in text
    assert [row[0].removesuffix(" ◆") for row in table[2:5]] == [row.method for row in board.rows[: min(rows, 3)]]


def test_hostile_text_starts_no_formula_in_csv(hostile: dict[str, str]) -> None:
    table = pd.read_csv(io.StringIO(hostile["csv"]), keep_default_na=False, dtype=str)
    text = [c for c in table.columns if c in ("suite", "digest", "method", "backbone", "dataset", "notes", "recipe")]
    text += [c for c in table.columns if c.endswith("_reason")]
    assert (table.backbone == "'" + HOSTILE[1]).all()
    for column in text:
        assert not table[column].str.match(r"\s*[=+\-@]").any()
    for column in ("accuracy_mean", "time_step", "storage_adapter"):
        pd.to_numeric(table[column])


def test_hostile_text_survives_json_as_it_was(hostile: dict[str, str]) -> None:
    content = json.loads(hostile["json"])
    assert content["leaderboard"]["name"] == HOSTILE[0]
    assert {trial["backbone"] for trial in content["trials"]} == {HOSTILE[1]}


def test_numbers_that_json_does_not_know_become_null(suite: SuiteResults, tmp_path: Path) -> None:
    def diverged(entry: Entry) -> Result | None:
        return altered(entry.result, metrics={"loss": float("nan"), "accuracy": float("nan")}) if entry.result else None

    results = changed(suite, diverged)
    content = json.loads(render(results, tmp_path)["json"], parse_constant=pytest.fail)
    assert all(trial["metrics"]["accuracy"] is None for trial in content["trials"])
    assert content["leaderboard"]["counts"]["failed"] == 50


def test_the_same_words_stand_in_markdown_and_html(tmp_path: Path) -> None:
    results = SUITES["broken"]
    files = render(results, tmp_path)
    board = leaderboard(results)
    for sentence in (*board.findings, *board.notices, *board.caveats, board.how_to_read):
        assert markdown.escape(sentence) in files["md"]
        assert str(html.escape(sentence)) in files["html"].replace("\N{NO-BREAK SPACE}", " ")


def test_an_empty_suite_can_be_written(tmp_path: Path) -> None:
    files = render(SuiteResults("empty", "", "0" * 16, ()), tmp_path)
    assert "No method has a result yet." in files["md"] and "No method has a result yet." in files["html"]
    assert len(files["csv"].splitlines()) == 1
    assert json.loads(files["json"])["leaderboard"]["rows"] == []
