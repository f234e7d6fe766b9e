"""Runs of small suites on real Ray, in real processes: results, resume, time-outs, lost processes, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", "suite.yaml", "--json", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background may ignore Ctrl-C
    )


def run(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, json.loads(out) if out.strip() else {}, err


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("results/trials/*/result.json")}


def running(folder: Path) -> list[dict[str, Any]]:
    marks = []
    for path in folder.glob("results/trials/*/running.json"):
        try:
            marks.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue
    return marks


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
    assert {Path(path).suffix for path in summary["reports"]} == {".md", ".csv", ".json", ".html"}
    assert all((tmp_path / path).stat().st_size > 100 for path in summary["reports"])
    assert (tmp_path / "results" / "mlflow.db").is_file() and summary["mlflow"] is None
    assert not running(tmp_path)


@pytest.mark.slow
def test_a_trial_that_takes_too_long_is_a_result(tmp_path: Path) -> None:
    text = SUITE.replace("epochs: 1", "epochs: 100000") + "resources: {timeout: 3s}\n"
    (tmp_path / "suite.yaml").write_text(text)
    code, summary, err = run(tmp_path, "--only", "method=lora", "--only", "seed=0", "--no-mlflow")
    assert code == 1, err
    assert "timeout" in next(iter(summary["failed"].values()))
    assert [result["status"] for result in results(tmp_path).values()] == ["timeout"]


@pytest.mark.slow
def test_a_killed_trial_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("epochs: 1", "epochs: 12"))
    process = start(tmp_path, "--only", "method=lora", "--only", "seed=0", "--no-mlflow")
    mark = wait_for(lambda: next((mark for mark in running(tmp_path) if mark.get("done", 0) >= 2), None))
    os.kill(mark["pid"], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out)["done"] == 1
    (result,) = results(tmp_path).values()
    assert [attempt["status"] for attempt in result["attempts"]] == ["lost", "done"]


@pytest.mark.slow
def test_ctrl_c_stops_and_the_next_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("epochs: 1", "epochs: 60"))
    process = start(tmp_path, "--no-mlflow")
    mark = wait_for(lambda: next((mark for mark in running(tmp_path) if mark.get("done", 0) >= 2), None))
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert json.loads(out)["interrupted"] is True
    with pytest.raises(ProcessLookupError):
        os.kill(mark["pid"], 0)
    assert "interrupted" in {result["status"] for result in results(tmp_path).values()}
    (tmp_path / "suite.yaml").write_text(SUITE.replace("epochs: 1", "epochs: 60"))
    code, summary, err = run(tmp_path, "--no-mlflow")
    assert (code, summary["done"]) == (0, 5), err


@pytest.mark.slow
def test_nothing_of_a_run_survives_its_driver(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE.replace("epochs: 1", "epochs: 100000"))
    process = start(tmp_path)
    mark = wait_for(lambda: next((mark for mark in running(tmp_path) if mark.get("done", 0) >= 1), None))
    process.kill()
    process.communicate()

    def gone() -> bool:
        try:
            os.kill(mark["pid"], 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone, seconds=10)


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
