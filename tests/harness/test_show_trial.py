"""`harness show trial`: what became of a trial, in text, as JSON and as a page with the clouds that it got wrong."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import clouds
from harness.cli import main
from harness.data.dataset import PartClouds, PartDataset
from harness.data.sweethome import SWEETHOME12
from harness.result import Metrics, Result
from harness.store import Store
from harness.trial_text import sparkline
from tests.reports.folders import HOSTILE, with_clouds
from tests.reports.synthetic import spec_of

DATA = re.compile(r'<script type="application/json" id="trial-data">(.*?)</script>', re.DOTALL)


def run(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["harness", "show", "trial", *arguments])
        main()
    return int(ended.value.code or 0)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    with_clouds(tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def identity(output: Path) -> str:
    return next(entry.id for entry in Store(output).load("real").entries if entry.method == "lora")


def page_data(path: Path) -> dict[str, Any]:
    found = DATA.search(path.read_text())
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_it_prints_configuration_numbers_curve_and_mistakes(
    output: Path, identity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(identity[:6], "-o", str(output), "--items", "3") == 0
    text = capsys.readouterr().out
    for words in (
        f"lora point_mae sweethome12 seed 0  ({identity})",
        "done: accuracy 77.78 % (105 of 135)",
        "train/loss  2.4 █▄",
        "taken for",
        "3 of 30 wrong items, those it was surest of first",
        "train.learning_rate: 0.002",
        f"harness show trial {identity} --output {output} --html trial.html",
    ):
        assert words in text, words
    assert "train/rate " not in text and len(re.findall(r"^  item \d+: ", text, re.MULTILINE)) == 3


def test_as_json_everything_by_name(output: Path, identity: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(identity, "-o", str(output), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["wrong_items"], len(found["worst"])) == ("done", 30, 12)
    assert found["worst"][0]["item"] == 29 and 0 < found["worst"][0]["confidence"] < 1
    assert {row["true"] for row in found["worst"]} <= set(SWEETHOME12.classes)
    assert len(found["curves"]["train/loss"]) == 20 and found["metrics"]["correct"] == 105


def test_its_page_holds_the_clouds_of_the_items(output: Path, identity: str, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "trial.html"
    assert run(str(output / "trials" / identity), "--html", str(page), "--items", "5") == 0
    data = page_data(page)["details"]
    items = [row[0] for row in data["by"][identity]["look"]["items"]]
    shown = data["clouds"]["sweethome12"]
    assert items == [29, 28, 27, 26, 25] and set(shown) == set(map(str, items))
    points = np.frombuffer(base64.b64decode(shown["29"]), np.int8).reshape(-1, 3).astype(float)
    real = SWEETHOME12.load("test", tmp_path).points[29]
    assert points.shape == real.shape and np.abs(points).max() == 127
    spans = np.ptp(real, axis=0)[[0, 2, 1]]  # its z is up
    assert np.ptp(points, axis=0) / 254 == pytest.approx(spans / spans.max(), abs=0.01)


def test_without_stored_confidence_frequent_mistakes_come_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = with_clouds(tmp_path, confident=False)
    assert run(results.entries[0].id, "-o", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "how sure it was is not stored" in text and "% sure" not in text


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("zzz", "no trial 'zzz'"),
        ("", "begins 2 trials; add digits"),
        ("no/such/folder", "is no trial's folder"),
    ],
)
def test_unknown_and_ambiguous_trials(
    wanted: str, says: str, output: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(wanted, "-o", str(output), "--html", str(tmp_path / "page.html")) == 2
    said = capsys.readouterr()
    assert says in said.err and said.out == "" and not (tmp_path / "page.html").exists()


def test_data_that_are_not_here_are_one_error_and_nothing_is_written(
    output: Path, identity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    absent = replace(SWEETHOME12, name="absent")
    monkeypatch.setattr(clouds, "declared", lambda result: absent)
    assert run(identity, "-o", str(output), "--html", str(page)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the clouds cannot be shown: ") and said.count("\n") == 1 and not page.exists()
    assert run(identity, "-o", str(output)) == 0, "the text needs no clouds"


def test_other_data_of_that_name_are_refused(
    output: Path, identity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = output / "trials" / identity / "predictions.npz"
    with np.load(path) as stored:
        label = stored["label"][::-1]
        np.savez(path, prediction=(label + 1) % 12, label=label)
    assert run(identity, "-o", str(output), "--html", str(tmp_path / "page.html")) == 2
    assert "stored labels differ" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_one_error(
    output: Path, identity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(identity, "-o", str(output), "--html", str(tmp_path / "file" / "page.html")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_failed_trial_has_its_error_and_a_page_without_clouds(
    output: Path, identity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_of("lora", "sweethome12", 0)
    failed = Result(id=identity, spec=spec, status="oom", error=f"CUDA out of memory\n{HOSTILE}\x1b[2J")
    (output / "trials" / identity / "result.json").write_text(failed.model_dump_json())
    page = tmp_path / "page.html"
    assert run(identity, "-o", str(output), "--html", str(page)) == 0
    text = capsys.readouterr().out
    assert "oom: CUDA out of memory" in text and f"harness logs {identity}" in text and "\x1b" not in text
    data = page_data(page)["details"]
    assert "look" not in data["by"][identity] and data["by"][identity]["error"].startswith("CUDA out of memory")
    assert "<img" not in page.read_text()


def test_a_trial_that_never_ran_and_one_that_lost_its_predictions(
    output: Path, identity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (output / "trials" / identity / "predictions.npz").unlink()
    assert run(identity, "-o", str(output)) == 0
    assert "its predictions are not here" in capsys.readouterr().out
    (output / "trials" / identity / "result.json").unlink()
    assert run(identity, "-o", str(output)) == 0
    assert "no result: " in capsys.readouterr().out


class Toys(PartDataset):
    """Four toys of two categories, of 32 points each."""

    def missing(self, root: Path) -> str | None:
        return None

    def load_train(self, root: Path) -> PartClouds:
        return self.load_test(root)

    def load_test(self, root: Path) -> PartClouds:
        draw = np.random.default_rng(0)
        categories = np.array([0, 0, 1, 1])
        parts = (np.arange(128) % 2 + 2 * np.repeat(categories, 32)).astype(np.int64)
        offsets = np.arange(0, 129, 32)
        return PartClouds(draw.normal(size=(128, 3)).astype(np.float32), parts, offsets, categories, "0")


TOYS = Toys(
    name="toys",
    version=1,
    classes=("Cart", "Kite"),
    train_items=4,
    test_items=4,
    points=32,
    up="y",
    normalised=True,
    licence="",
    source="",
    parts=((0, 1), (2, 3)),
)


def test_a_part_segmentation_shows_true_parts_beside_those_told(
    output: Path,
    identity: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clouds, "declared", lambda result: TOYS)
    spec = spec_of("lora", "toys", 0) | {"data": {"points": 16, "sampling": "random"}}
    result = Result(id=identity, spec=spec, status="done", task="part segmentation", metrics=Metrics(instance_miou=0.5))
    truth = clouds.load(TOYS, result).labels
    told = truth.copy()
    told[2] = 5 - truth[2]  # all of item 2 wrong, a quarter of item 0
    told[0, :4] = 1 - truth[0, :4]
    folder = output / "trials" / identity
    (folder / "result.json").write_text(result.model_dump_json())
    np.savez(folder / "predictions.npz", prediction=told, label=truth, category=np.array([0, 0, 1, 1]))
    page = tmp_path / "page.html"
    assert run(identity, "-o", str(output), "--html", str(page)) == 0
    both = [((truth[0] == k) & (told[0] == k)).sum() / ((truth[0] == k) | (told[0] == k)).sum() for k in (0, 1)]
    assert f"item 2: Kite, mIoU 0.0 %\n  item 0: Cart, mIoU {50 * sum(both):.1f} %" in capsys.readouterr().out
    data = page_data(page)["details"]
    assert [row[0] for row in data["by"][identity]["look"]["items"]] == [2, 0]
    points, true, said = (base64.b64decode(text) for text in data["clouds"]["sweethome12"]["2"])
    assert (len(points) == 48 and true == bytes(5 - 2 - v for v in truth[2] % 4)) or len(true) == 16
    assert [a + b for a, b in zip(true, said, strict=True)] == [1] * 16


def test_strange_lines_of_a_curve_are_left_out(output: Path, identity: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"epoch": 0, "a": 1, "b": NaN, "c": true}', "[1]", '{"epoch": 1, "a": 2, "b": 1' + "0" * 400 + "}", "{"]
    (output / "trials" / identity / "metrics.jsonl").write_text("\n".join([*lines, '{"a": 3}']))
    assert run(identity, "-o", str(output), "--json") == 0
    assert json.loads(capsys.readouterr().out)["curves"] == {"a": [[0, 1.0], [1, 2.0]]}


def test_a_curve_in_blocks() -> None:
    assert sparkline([0, 1, 2, 7]) == "▁▂▃█" and sparkline([3, 3]) == "▁▁" and len(sparkline(range(500))) == 40
