"""Several small trials on one GPU; no GPU is needed to see what is reserved, flagged and tried again."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness import run, schedule, sharing
from harness.prediction import Prediction
from harness.result import Result
from harness.run import to_run, with_shares
from harness.schedule import Job, bundle
from harness.settings import Resources
from harness.sharing import CONTEXT, MARGIN, at_once, share
from harness.store import Store
from harness.suite import load_suite
from harness.trial import Trial
from tests.harness.test_flops import make_trial

GPU = 80 * 10**9


def shared(**resources: Any) -> Trial:
    return replace(make_trial("lora"), resources=Resources(gpus="shared", **resources))


def test_a_share_holds_what_was_predicted_and_shares_fit_together() -> None:
    for peak in (10**8, 3 * 10**9, 10**10, 2 * 10**10):
        part = share(peak, GPU)
        assert peak * MARGIN + CONTEXT <= part * GPU
        assert int(1 / part + 1e-9) <= at_once(peak, GPU)
    assert share(10**8, GPU) == 0.05
    assert share(4 * 10**10, GPU) == 1, "no room for a second one"


def test_who_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Prediction(memory={"activations": 10**9}, flops_forward=1, flops_train=1, trainable=1, total=1)
    monkeypatch.setattr(sharing.Predictions, "complete", lambda self, progress: None)
    monkeypatch.setattr(sharing.Predictions, "of", lambda self, trial: small)
    monkeypatch.setattr(run, "gpu_memory", lambda cluster: GPU)
    trials = {
        "small": shared(),
        "of two processes": shared(processes=2),
        "without a GPU": replace(shared(gpus_per_process=0), seed=1),
        "exclusive": replace(make_trial("lora"), seed=2),
    }
    parts = {}
    for here in (0, 2):
        monkeypatch.setattr(run, "gpus_here", lambda here=here: here)
        jobs = with_shares([Job(t) for t in trials.values()], cluster=None, progress=lambda ready, of: None)
        parts[here] = dict(zip(trials, [job.share for job in jobs], strict=True))
    assert parts[0] == dict.fromkeys(trials, 1.0)
    assert parts[2] == parts[0] | {"small": 0.05}
    assert bundle(shared(), gpus=2, share=0.05) == {"CPU": 1.0, "GPU": 0.05}
    (before,) = with_shares([Job(shared(), crowded=True)], cluster=None, progress=lambda ready, of: None)
    assert before.share == 1


def test_out_of_memory_on_a_part_gets_a_whole_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the next round, or in the next run; out of memory on a whole one is the end."""
    trial, store = shared(), Store(tmp_path)
    folder = store.trial(trial.identity)
    shares: list[float] = []

    def run_out(jobs: Any, *_: Any, **__: Any) -> None:
        (job,) = jobs
        shares.append(job.share)
        environment = {"gpu_share": job.share} if job.share < 1 else {}
        result = Result(id=trial.identity, spec=trial.spec(), status="oom", environment=environment)
        folder.claim(trial.spec()).finish(result)

    monkeypatch.setattr(schedule, "_round", run_out)
    monkeypatch.setattr(schedule, "start_launchers", lambda generation: [])
    observer: Any = SimpleNamespace(finished=lambda trial, result: None)
    run_out([Job(trial, share=0.25)])
    (again,) = to_run([trial], store)
    assert again.crowded
    schedule._rounds([replace(again, share=0.25)], [], store=store, observer=observer)
    assert shares == [0.25, 0.25, 1.0]
    result = folder.result()
    assert result is not None and not result.crowded and len(result.attempts) == 3
    assert to_run([trial], store) == []


SUITE = """\
format: 1
name: small
seeds: 4
datasets: [sweethome12]
backbones:
  point_mae: {preset: tiny, depth: 1, groups: 8, group_size: 8}
methods:
  linear_probe: {}
train: {epochs: 3, batch_size: 16, warmup_epochs: 0, drop_path: 0}
resources: {gpus: shared, timeout: 120s}
"""
DRIVER = """\
import harness.run
harness.run.gpu_memory = lambda cluster: 6_000_000_000  # of a GPU that Ray is only told of
from harness.cli import main
main()
"""


@pytest.fixture
def one_gpu(tmp_path: Path) -> Iterator[str]:
    """The address of a Ray node that believes in one GPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray = Path("/tmp") / f"hs{os.getpid()}"  # sockets' paths must be short
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--head", "--port", str(port)]
    command += ["--num-cpus", "2", "--num-gpus", "1", "--include-dashboard=false", "--disable-usage-stats"]
    log = tmp_path / "ray.log"
    with log.open("wb") as file:
        node = subprocess.Popen(
            [*command, "--temp-dir", str(ray), "--object-store-memory", "80000000"],
            stdout=file,
            stderr=file,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        )
    try:
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        started = psutil.Process(node.pid).children(recursive=True)
        node.terminate()
        node.wait(30)
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(ray, ignore_errors=True)


@pytest.mark.slow
def test_trials_share_a_gpu_and_say_so(tmp_path: Path, one_gpu: str) -> None:
    """All run in parts of it, and their results are flagged."""
    (tmp_path / "suite.yaml").write_text(SUITE)
    command = [sys.executable, "-c", DRIVER, "run", "suite.yaml", "--json", "--no-mlflow", "--address", one_gpu]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["done"] == 4
    attempts = []
    for trial in load_suite(str(tmp_path / "suite.yaml")).trials:
        result = Store(tmp_path / "results").trial(trial.identity).result()
        assert result is not None and 0 < result.environment["gpu_share"] <= 0.5
        attempts.append((result.attempts[0]["started"], result.attempts[0]["ended"]))
    (_, first_ended), (second_started, _), *_ = sorted(attempts)
    assert second_started < first_ended, "two at a time, though Ray has one GPU"
