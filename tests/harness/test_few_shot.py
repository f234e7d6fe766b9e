"""The few-shot suite from pickles in the official layout to its report, in real processes."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from harness import load_trial
from tests.harness.data.official import clouds, write_fold
from tests.harness.test_cli import harness

SMALL = (
    *("backbone.preset=tiny", "backbone.weights=random", "backbone.groups=16", "data.points=64"),
    *("train.epochs=1", "train.batch_size=4", "resources.gpus_per_process=0"),
)


def fill_folds(root: Path, *, way: int, shot: int) -> None:
    """Ten folds: two different ones, two clouds per class to train on and one to test, and copies of the second."""
    folder = root / "ModelNetFewshot" / f"{way}way_{shot}shot"
    for fold in range(2):
        items = [
            [(np.concatenate([cloud, cloud], axis=1), row % way, row % way) for row, cloud in enumerate(found)]
            for found in (clouds(2 * way, 8192, seed=fold), clouds(way, 8192, seed=fold + 2))
        ]
        write_fold(folder / f"{fold}.pkl", *items)
    for fold in range(2, 10):
        os.link(folder / "1.pkl", folder / f"{fold}.pkl")


def run(folder: Path, *arguments: str) -> str:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    command = ("run", "few_shot", *settings, *arguments, "--no-mlflow", "--output", "results")
    done = harness(*command, cwd=folder, HARNESS_DATA=str(folder / "data"))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def leaderboard(folder: Path) -> list[dict[str, str]]:
    with (folder / "results" / "few_shot" / "report" / "leaderboard.csv").open() as file:
        return list(csv.DictReader(file))


def test_no_gpu_is_said_at_once(tmp_path: Path) -> None:
    fill_folds(tmp_path / "data", way=5, shot=10)
    only = ("--only", "dataset=modelnet40_fewshot_5w10s", "--set", "backbone.weights=random")
    done = harness("run", "few_shot", *only, cwd=tmp_path, HARNESS_DATA=str(tmp_path / "data"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and "this machine has none" in done.stderr and "gpus_per_process=0" in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
def test_folds_are_averaged_apart_from_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_folds(tmp_path / "data", way=5, shot=10)
    only = ("--only", "method=linear_probe", "--only", "dataset=modelnet40_fewshot_5w10s")
    run(tmp_path, *only, "--set", "folds=2", "--set", "seeds=2")
    rows = [row for row in leaderboard(tmp_path) if row["dataset"] == "modelnet40_fewshot_5w10s" and row["seeds"]]
    assert {row["method"] for row in rows} == {"linear_probe"}
    for row in rows:
        assert (row["n"], row["trials"]) == ("2", "4"), "n counts folds, each the mean over its seeds"
        assert (row["seeds"], row["folds"], row["total"]) == ("0 0 1 1", "0 1 0 1", "5 5 5 5")
        correct = [int(number) for number in row["correct"].split()]
        folds = np.array([correct[0] + correct[2], correct[1] + correct[3]]) / 10
        assert float(row["accuracy_mean"]) == pytest.approx(folds.mean())
        assert float(row["accuracy_sd"]) == pytest.approx(folds.std(ddof=1))
        assert "varies by" in row["notes"] and "between 2 seeds" in row["notes"]
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    for path in (tmp_path / "results" / "trials").iterdir():
        trained = load_trial(path)
        metrics = trained.evaluate().metrics()
        assert (metrics.correct, metrics.total) == (trained.result.metrics.correct, 5), "on the fold it was trained on"


@pytest.mark.slow
def test_the_whole_suite(tmp_path: Path) -> None:
    for way in (5, 10):
        for shot in (10, 20):
            fill_folds(tmp_path / "data", way=way, shot=shot)
    run(tmp_path, "--set", "folds=1")
    rows = [row for row in leaderboard(tmp_path) if row["dataset"] != "overall"]
    assert len(rows) == 9 * 4 and all(row["n"] == "1" for row in rows)
