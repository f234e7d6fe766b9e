"""A trained model on a test split: the number that its trial recorded, by the same code."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness import load_trial, registry
from harness.cli import main
from harness.data.dataset import Dataset
from harness.errors import UserError
from harness.models.weights import data_root
from harness.result import Result
from harness.settings import Data
from harness.train import run_trial
from tests.harness.test_train import claim, make_trial


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The output folder of one trial on farthest points, and its result."""
    output = tmp_path_factory.mktemp("results")
    trial = make_trial(data=Data(points=64, sampling="fps"))
    return output, run_trial(trial, claim(trial, output / "trials"))


def said(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", ["harness", "evaluate", *arguments])
        main()
    assert not ended.value.code
    return capsys.readouterr().out


def test_stored_confidence_is_the_probability_of_what_was_told(finished: tuple[Path, Result]) -> None:
    output, result = finished
    clouds = registry.get("datasets", "sweethome12").load("test", data_root()).points
    probabilities = load_trial(result.id, output=output).predict(clouds).numpy()
    with np.load(output / "trials" / result.id / "predictions.npz") as stored:
        told = probabilities[np.arange(len(clouds)), stored["prediction"]]
        assert stored["confidence"] == pytest.approx(told, abs=2e-3)


def test_the_recorded_accuracy_again(finished: tuple[Path, Result], capsys: pytest.CaptureFixture[str]) -> None:
    output, result = finished
    options = ["--output", str(output), "--device", "cpu"]
    found = json.loads(said(result.id[:6], *options, "--json", capsys=capsys))
    expected = result.metrics.model_dump(include={"accuracy", "class_accuracy", "correct", "total"})
    assert {key: found[key] for key in expected} == expected and found["told"] == {"recorded": expected["accuracy"]}
    assert found["loss"] == pytest.approx(result.metrics.loss)
    text = said(result.id, *options, "--data", "sweethome12", capsys=capsys)
    percent = f"{100 * expected['accuracy']:.2f} %"
    assert text.splitlines()[0] == "lora point_mae sweethome12 seed 0: test split of sweethome12"
    assert text.count(percent) == 2 and f"({expected['correct']} of {expected['total']})" in text


def test_another_dataset_of_the_same_classes(finished: tuple[Path, Result], capsys: pytest.CaptureFixture[str]) -> None:
    output, result = finished
    trained = load_trial(result.id, output=output)
    other = trained.evaluate("sweethome12_scanlike")
    clouds = registry.get("datasets", "sweethome12_scanlike").load("test", data_root())
    assert np.array_equal(other.prediction, trained.predict(clouds.points).argmax(1).numpy())
    assert np.array_equal(other.label, clouds.labels)
    options = ["--output", str(output), "--data", "sweethome12_scanlike", "--json"]
    assert json.loads(said(result.id, *options, capsys=capsys))["told"] == {}


def test_what_cannot_be_evaluated_on(
    finished: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output, result = finished
    trained = load_trial(result.id, output=output)
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"has other classes than the model: 15 \(bag, bin, box, …\); the model"):
        trained.evaluate("scanobjectnn_pb_t50_rs")
    with pytest.raises(UserError, match="unknown dataset 'sweethome'; did you mean 'sweethome12'"):
        trained.evaluate("sweethome")
    own: Dataset = registry.get("datasets", "sweethome12")
    scans: Dataset = registry.get("datasets", "scanobjectnn_pb_t50_rs")
    for changed, words in (
        (replace(own, classes=own.classes[::-1]), "has other classes than the model: 12 "),
        (replace(scans, classes=own.classes), r"'scanobjectnn_pb_t50_rs' lacks .*Ask for h5_files\.zip"),
        (replace(own, points=32), "has 32 points per cloud; the model sees 64"),
    ):
        monkeypatch.setattr(registry, "get", lambda kind, name, changed=changed: changed)
        with pytest.raises(UserError, match=words):
            trained.evaluate()
