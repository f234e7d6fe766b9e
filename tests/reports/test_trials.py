"""One row per trial, and what the page knows of each: the numbers of results, small, whatever text they hold."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.store import SuiteResults
from reports import details, html, latex, markdown, trials
from reports.build import leaderboard
from reports.tidy import FORMULA_STARTS
from tests.reports.folders import CLASSES, HOSTILE, broken, hostile, large, with_files


def test_csv_and_parquet_hold_the_same_row_per_trial(tmp_path: Path) -> None:
    results = broken()
    trials.write_csv(results, tmp_path / "trials.csv")
    trials.write_parquet(results, tmp_path / "trials.parquet")
    table = pd.read_parquet(tmp_path / "trials.parquet")
    text = pd.read_csv(tmp_path / "trials.csv", dtype={"id": str}, keep_default_na=True)
    assert list(table.columns) == list(text.columns) == list(trials.fields()) and len(table) == len(text) == 50
    by_id = {entry.id: entry for entry in results.entries}
    for (_, row), (_, other) in zip(table.iterrows(), text.iterrows(), strict=True):
        entry = by_id[row["id"]]
        assert (row["method"], row["dataset"], row["seed"]) == (entry.method, entry.dataset, entry.seed)
        assert row["status"] == other["status"] == ("missing" if entry.result is None else entry.result.status)
        if entry.result is not None and entry.result.status == "done":
            assert row["metrics.accuracy"] == other["metrics.accuracy"] == entry.result.metrics.accuracy
            assert (None if pd.isna(row["time.step"]) else row["time.step"]) == entry.result.time.step
        else:
            assert pd.isna(row["metrics.accuracy"]) and pd.isna(other["metrics.accuracy"])
    assert str(table["parameters.trainable"].dtype) in ("Int64", "float64", "int64[pyarrow]")
    assert set(table["augment"].dropna()) == {"scale_translate", "rotate"}


def test_settings_of_another_kind_are_left_out(tmp_path: Path) -> None:
    [entry] = [e for e in broken().entries if (e.method, e.dataset, e.seed) == ("lora", "sweethome12", 0)]
    assert entry.result is not None
    entry.result.spec["train"] |= {"epochs": "many", "learning_rate": [1], "batch_size": True}
    trials.write_parquet(SuiteResults("odd", "", "", (entry,)), tmp_path / "trials.parquet")
    row = pd.read_parquet(tmp_path / "trials.parquet").iloc[0]
    assert pd.isna(row["epochs"]) and pd.isna(row["learning_rate"]) and pd.isna(row["batch_size"])


def test_hostile_text_is_inert_in_rows_of_trials(tmp_path: Path) -> None:
    trials.write_csv(hostile(), tmp_path / "trials.csv")
    trials.write_parquet(hostile(), tmp_path / "trials.parquet")
    with (tmp_path / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(hostile().entries) and all(len(row) == len(trials.fields()) for row in rows)
    for row in rows:
        text = [row[name] for name, kind in trials.fields().items() if kind is str]
        assert not any(value.lstrip().startswith(FORMULA_STARTS) for value in text)
        assert len(row["error"]) <= trials.LONGEST + 1
    assert set(pd.read_parquet(tmp_path / "trials.parquet")["backbone"]) == {HOSTILE}


def page_data(path: Path) -> dict[str, Any]:
    found = re.search(r'(?s)<script type="application/json" id="trial-data">(.*?)</script>', path.read_text())
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_knows_what_a_trial_left(tmp_path: Path) -> None:
    results = with_files(broken(), tmp_path, log="first\nlast\n")
    html.write(results, tmp_path / "page.html")
    data = page_data(tmp_path / "page.html")
    known = data["details"]["by"]
    done = [e for e in results.entries if e.result is not None and e.result.status == "done"]
    for entry in done:
        assert entry.result is not None
        own = known[entry.id]
        assert own["metrics"]["correct"] == sum(own["classes"]["right"]) == entry.result.metrics.correct
        assert sum(own["classes"]["items"]) == entry.result.metrics.total and own["log"] == "first\nlast\n"
        config = data["details"]["configs"][own["config"]]
        assert config["dataset"]["name"] == entry.dataset and "seed" not in config
        assert data["details"]["machines"][own["machine"]]["cpu"] == "AMD EPYC 9B14"
        assert own["curves"]["train/loss"][0][-1] == 19
    assert len(data["details"]["configs"]) < len(done) / 2, "seeds share their settings"
    failed = next(e for e in results.entries if e.result is not None and e.result.status == "oom")
    assert known[failed.id]["error"] == "CUDA out of memory"
    missing = next(e for e in results.entries if e.result is None)
    assert missing.id not in known
    assert str(tmp_path) not in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_five_hundred_trials_fit_into_two_megabytes(tmp_path: Path) -> None:
    log = "".join(f"epoch {epoch}: loss 1.2345, rate 0.0005, 123 clouds/s\n" for epoch in range(300))
    results = with_files(large(500), tmp_path, epochs=300, log=log)
    html.write(results, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 2_000_000
    known = page_data(tmp_path / "page.html")["details"]["by"]
    assert len(known) == 500 and all(len(own["curves"]["train/loss"][0]) == details.EPOCHS for own in known.values())


def test_beyond_a_thousand_trials_details_lie_beside_the_page(tmp_path: Path) -> None:
    (tmp_path / "page_trials").mkdir()
    (tmp_path / "page_trials" / "999.html").write_text("of an earlier report")
    results = large(1_001)
    html.write(results, tmp_path / "page.html")
    data = page_data(tmp_path / "page.html")
    assert data["details"] is None and len(data["index"]["trials"]) == 1_001 and data["folder"] == "page_trials"
    beside = sorted((tmp_path / "page_trials").iterdir())
    assert [path.name for path in beside] == ["000.html", "001.html", "002.html", "003.html", "004.html"]
    for number, path in enumerate(beside):
        here = [line[0] for line in data["index"]["trials"] if line[-1] == number]
        assert list(page_data(path)["details"]["by"]) == here
    html.write(large(10), tmp_path / "page.html")
    assert not (tmp_path / "page_trials").exists()


def test_the_end_of_a_log_is_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes("".join(f"line {k} é\n" for k in range(1_000)).encode() + b"\xff\x00\x1b[31m")
    end = details.log_end(path, 60)
    assert end.startswith("line 99") and "\x1b" not in end and "\x00" not in end and len(end) <= 60
    assert details.log_end(tmp_path / "none", 60) == ""
    path.write_text("short\n")
    assert details.log_end(path, 60) == "short\n"


@pytest.mark.parametrize("text", ["</script>", "<!--", "\u2028", "&lt;", "]]>"])
def test_no_text_ends_the_data(text: str) -> None:
    found = str(html.embedded({"x": text, "y": float("nan")}))
    assert not set("<>&\u2028") & set(found) and json.loads(found) == {"x": text, "y": None}


def test_all_formats_take_hostile_folders(tmp_path: Path) -> None:
    results = with_files(hostile(), tmp_path, log=HOSTILE)
    board = leaderboard(results)
    assert "<script>" not in markdown.render(board) and "<img" not in markdown.render(board)
    assert "\\input" not in latex.render(board)
    html.write(results, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<img" not in text and text.count("<script") == 2 and len(CLASSES) == 12
