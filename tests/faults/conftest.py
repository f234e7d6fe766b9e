"""A suite in a folder of its own, real runs of it, and what must hold after every fault."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
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
overrides:
  - when: {method: lora}
    set: {train.epochs: 20}
resources: {timeout: 60s}
"""
TRIALS = 4


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Poll until something is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


class Scene:
    """A folder with suite.yaml, and the runs of it. Every process of a run carries the scene's mark."""

    def __init__(self, folder: Path, *, output: Path) -> None:
        self.folder, self.output = folder, output
        self.mark = f"HARNESS_SCENE={uuid.uuid4().hex}"
        self.untouched: dict[Path, tuple[str, int]] = {}
        self.write(SUITE)

    def write(self, suite: str) -> None:
        (self.folder / "suite.yaml").write_text(suite)

    def start(self, *arguments: str, command: str = "run", **environment: str) -> subprocess.Popen[str]:
        code = "from harness.cli import main; main()"
        name, _, value = self.mark.partition("=")
        return subprocess.Popen(
            [sys.executable, "-c", code, command, "suite.yaml", "--json", "--output", str(self.output), *arguments],
            cwd=self.folder,
            env=os.environ | {name: value} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background may ignore Ctrl-C
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, what --json printed, and stderr."""
        return self.end(self.start(*arguments, **environment))

    def end(self, process: subprocess.Popen[str], *, patience: float = 300) -> tuple[int, dict[str, Any], str]:
        out, err = process.communicate(timeout=patience)
        assert "Traceback" not in err, err
        assert not out.strip() or out.lstrip().startswith("{"), out
        return process.returncode, json.loads(out) if out.strip() else {}, err

    def undisturbed(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """Results of the same suite, run without a fault into a folder of its own."""
        output, self.output = self.output, self.folder / "undisturbed"
        code, _, err = self.run(*arguments)
        assert code == 0, err
        found, self.output = self.results(), output
        return found

    # What is on disk

    def results(self) -> dict[str, dict[str, Any]]:
        found = {}
        for path in sorted(self.output.glob("trials/*/result.json")):
            try:
                found[path.parent.name] = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
        return found

    def leases(self) -> list[dict[str, Any]]:
        found = []
        for path in self.output.glob("trials/*/running.json"):
            try:
                found.append(json.loads(path.read_text()) | {"folder": path.parent})
            except (OSError, ValueError):
                continue
        return found

    def trains(self, *, epoch: int = 3, driver: subprocess.Popen[str] | None = None) -> dict[str, Any]:
        """Wait for a trial that is in the middle of its training; returns its lease."""

        def found() -> Any:
            assert driver is None or driver.poll() is None, driver.communicate()
            return next((lease for lease in self.leases() if epoch <= lease["done"] < lease["epochs"] - 3), None)

        lease: dict[str, Any] = wait_for(found)
        return lease

    def processes(self) -> list[psutil.Process]:
        """Every live process of the scene's runs."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and self.mark.encode() in Path(
                    f"/proc/{process.pid}/environ"
                ).read_bytes().split(b"\0"):
                    found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    # What must hold

    def finish_some(self) -> None:
        """Finish two trials before the fault; they must not be touched by what follows."""
        code, summary, err = self.run("--only", "method=linear_probe")
        assert (code, summary["done"]) == (0, 2), err
        self.remember_finished()
        assert len(self.untouched) == 2

    def remember_finished(self) -> None:
        for path in self.output.glob("trials/*/result.json"):
            if json.loads(path.read_text())["status"] == "done":
                self.untouched[path] = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)

    def assert_untouched(self) -> None:
        for path, (digest, written) in self.untouched.items():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
            assert path.stat().st_mtime_ns == written

    def assert_complete(self, *, uri: str | None = None) -> None:
        """All trials are done, finished ones untouched, nothing is left running, MLflow has each trial once."""
        self.assert_untouched()
        assert [result["status"] for result in self.results().values()] == ["done"] * TRIALS
        assert not self.leases()
        assert not list(self.output.glob("trials/*/checkpoint.safetensors"))
        assert not [path for path in self.output.glob("trials/*/.*") if path.name != ".lock"], "temporary files"
        assert sorted(self.mlflow(uri)) == sorted((identity, "FINISHED") for identity in self.results())

    def mlflow(self, uri: str | None = None) -> list[tuple[str, str]]:
        """(trial, status) of every run, deleted ones included."""
        from mlflow import MlflowClient

        client = MlflowClient(uri or f"sqlite:///{self.output / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("small")
        runs = client.search_runs([experiment.experiment_id], run_view_type=3)
        return [(run.data.tags["harness.trial"], run.info.status) for run in runs if "harness.trial" in run.data.tags]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path, output=tmp_path / "results")
    yield made
    for process in made.processes():
        process.kill()
