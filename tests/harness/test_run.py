"""Runs of small suites on real Ray, in real processes. What happens when something dies is in tests/faults."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUITE = """\
format: 1
name: small
seeds: 2
datasets: [sweethome12]
backbones:
  point_mae: {preset: tiny, depth: 1, groups: 8, group_size: 8}
methods:
  linear_probe: {}
  lora: {rank: 2}
train: {epochs: 1, batch_size: 16, warmup_epochs: 0, drop_path: 0}
references:
  nearest_neighbour: {baseline: nearest_neighbour}
"""


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", "suite.yaml", "--json", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}, done.stderr


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("results/trials/*/result.json")}


def test_run_resume_and_share(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    code, summary, err = run(tmp_path, "--only", "method=lora", "--no-mlflow")
    assert (code, summary["done"], summary["failed"]) == (0, 2, {}), err
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("results/trials/*/result.json")}
    assert len(before) == 2

    code, summary, err = run(tmp_path, "--check")
    assert (code, summary["trials"], summary["done"]) == (0, 5, 5), err
    assert "2 done before, 3 to run" in err
    assert {path: path.stat().st_mtime_ns for path in before} == before, "a finished trial was touched"
    found = results(tmp_path)
    assert {result["status"] for result in found.values()} == {"done"}
    assert all(result["metrics"]["total"] == 135 for result in found.values())
    assert {Path(path).suffix for path in summary["reports"]} == {".md", ".csv", ".json", ".html", ".tex", ".parquet"}
    assert all((tmp_path / path).stat().st_size > 100 for path in summary["reports"])
    assert (tmp_path / "results" / "mlflow.db").is_file() and summary["mlflow"] is None
    assert not list(tmp_path.glob("results/trials/*/running.json"))


@pytest.mark.slow
def test_a_users_own_files_in_the_default_folder(tmp_path: Path) -> None:
    """ScanObjectNN's layout under `data`, relative to where the command is given, with the papers' point rule."""
    import h5py
    import numpy as np

    folder = tmp_path / "data" / "ScanObjectNN" / "main_split"
    folder.mkdir(parents=True)
    for name, items in (("training_objectdataset.h5", 40), ("test_objectdataset.h5", 15)):
        generator = np.random.default_rng(items)
        with h5py.File(folder / name, "w") as file:
            file["data"] = generator.normal(size=(items, 2048, 3)).astype(np.float32)
            file["label"] = np.arange(items) % 15
    text = SUITE.replace("[sweethome12]", "[scanobjectnn_obj_bg]") + "data: {points: 1024, sampling: fps}\n"
    (tmp_path / "suite.yaml").write_text(text)
    code, summary, err = run(tmp_path, "--only", "method=lora", "--only", "seed=0", "--no-mlflow")
    assert (code, summary["failed"]) == (0, {}), err
    (result,) = results(tmp_path).values()
    assert result["metrics"]["total"] == 15
