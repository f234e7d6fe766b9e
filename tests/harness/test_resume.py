"""A training that is cut off and goes on ends with the same bits as one that never was: weights and predictions."""

import contextlib
import os
import random
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from harness import registry
from harness.launch import Errand, launch
from harness.models.point_mae import PointMAE
from harness.models.weights import data_root
from harness.result import Result
from harness.settings import Data, Protocol, Resources, Train
from harness.train import Training, run_trial
from harness.trial import Trial
from harness.trial_folder import CHECKPOINT, TrialFolder

pytestmark = pytest.mark.faults

DROPOUTS = {"adapter": {"dropout": 0.2}, "dapt": {"adapter_dropout": 0.2}, "point_peft": {"adapter_dropout": 0.2}}
CASES = [
    *((name, DROPOUTS.get(name, {})) for name in registry.names("methods")),
    ("point_peft", {"official_quirks": True}),
]
EVERY_TIME = ("full", "vpt", "lora", "dapt", "point_peft")
"""The methods that are cut off in every test run; the others with the slow tests, where all are."""
SOME = [case if case[0] in EVERY_TIME else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]


def make_trial(method: str, settings: dict[str, Any], *, epochs: int = 4, **protocol: Any) -> Trial:
    """Dropout, drop path and augmentation are on, and batch norms keep learning their statistics."""
    return Trial(
        method_label=method,
        backbone_label="point_mae",
        method_name=method,
        method=registry.get("methods", method).model_validate(settings),
        backbone_name="point_mae",
        backbone=PointMAE(preset="tiny", depth=2, groups=8, group_size=8),
        dataset=registry.get("datasets", "sweethome12"),
        train=Train(epochs=epochs, batch_size=64, warmup_epochs=1, learning_rate=1e-3, drop_path=0.2, head_dropout=0.5),
        protocol=Protocol(frozen_batchnorm="batch", **protocol),
        data=Data(points=128),
        resources=Resources(),
    )


def outcome(folder: TrialFolder) -> tuple[str, np.ndarray, list[float]]:
    """What must be the same to the last bit."""
    result = folder.result()
    assert result is not None and result.status == "done", result
    with np.load(folder.path / "predictions.npz") as stored:
        return result.digests["adapter"], stored["prediction"], [row["train/loss"] for row in folder.metrics()]


def assert_same(one: TrialFolder, other: TrialFolder) -> None:
    first, second = outcome(one), outcome(other)
    assert first[0] == second[0], "other weights"
    assert np.array_equal(first[1], second[1])
    assert first[2] == second[2]


def run(trial: Trial, root: Path) -> Result:
    return run_trial(trial, TrialFolder(root / trial.identity).claim(trial.spec()))


def cut_off(monkeypatch: pytest.MonkeyPatch, trial: Trial, root: Path, *, epoch: int) -> None:
    """Let a trial die in the middle of an epoch."""

    class Died(BaseException):
        pass

    whole = Training._epoch

    def dying(self: Training, number: int) -> dict[str, Any]:
        if number == epoch:
            torch.rand(3)  # the random streams have moved on since the checkpoint
            raise Died
        return whole(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_epoch", dying)
        patch.setattr("harness.checkpoint.SHARE", 1e9)  # a checkpoint at every epoch's end
        with pytest.raises(Died):
            run(trial, root)
    # the lease says that this process works here: let it be a dead one
    folder = TrialFolder(root / trial.identity)
    lease = folder.lease()
    assert lease is not None and lease.pid == os.getpid()
    (folder.path / "running.json").write_text(lease.model_copy(update={"pid": dead_process()}).model_dump_json())


def dead_process() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.parametrize(("method", "settings"), SOME, ids=str)
def test_goes_on_exactly(
    method: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial(method, settings)
    run(trial, tmp_path / "whole")
    cut_off(monkeypatch, trial, tmp_path / "cut", epoch=2)
    result = run(trial, tmp_path / "cut")
    assert_same(TrialFolder(tmp_path / "whole" / trial.identity), TrialFolder(tmp_path / "cut" / trial.identity))
    assert [attempt["status"] for attempt in result.attempts] == ["lost", "done"]
    assert [attempt["resumed"] for attempt in result.attempts] == [None, 2]
    assert not (tmp_path / "cut" / trial.identity / CHECKPOINT).exists()


@pytest.mark.parametrize(
    "protocol", [{"selection": "validation", "validation_fraction": 0.2}, {"selection": "paper", "vote": 2}], ids=str
)
def test_the_best_epoch_so_far_is_kept(
    protocol: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial("lora", {}, epochs=6, **protocol)
    whole = run(trial, tmp_path / "whole")
    for epoch in (1, 3, 5):
        cut_off(monkeypatch, trial, tmp_path / "cut", epoch=epoch)
    result = run(trial, tmp_path / "cut")
    assert_same(TrialFolder(tmp_path / "whole" / trial.identity), TrialFolder(tmp_path / "cut" / trial.identity))
    assert result.metrics == whole.metrics
    assert [attempt["resumed"] for attempt in result.attempts] == [None, 1, 3, 5]


def test_goes_on_after_the_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial("lora", {})
    run(trial, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_finish", lambda *_: 1 / 0)
        patch.setattr("harness.checkpoint.SHARE", 1e9)
        assert run(trial, tmp_path / "cut").status == "failed"
    folder = TrialFolder(tmp_path / "cut" / trial.identity)
    result = run_trial(trial, folder.claim(trial.spec(), replaces=folder.stamp()))
    assert_same(TrialFolder(tmp_path / "whole" / trial.identity), folder)
    assert [attempt["resumed"] for attempt in result.attempts] == [None, 4]
    assert result.time.step is not None, "the steps of the first process count"


@pytest.mark.parametrize("damage", ["cut", "zeros", "a byte", "other tensors", "other code", "other data"])
def test_a_checkpoint_that_does_not_fit_is_not_gone_on_from(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = make_trial("lora", {})
    run(trial, tmp_path / "whole")
    cut_off(monkeypatch, trial, tmp_path / "cut", epoch=2)
    path = tmp_path / "cut" / trial.identity / CHECKPOINT
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "zeros":
        path.write_bytes(bytes(len(content)))
    elif damage == "other tensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        tensors = load_file(path)
        tensors.pop(next(name for name in tensors if name.startswith("model/")))
        save_file(tensors, path, metadata=header)
    elif damage == "a byte":
        path.write_bytes(content[:-500] + bytes([content[-500] ^ 1]) + content[-499:])
    else:
        own = Training._fingerprint
        changed = {damage.removeprefix("other "): "another"}
        monkeypatch.setattr(Training, "_fingerprint", lambda self: own(self) | changed)
    result = run(trial, tmp_path / "cut")
    assert_same(TrialFolder(tmp_path / "whole" / trial.identity), TrialFolder(tmp_path / "cut" / trial.identity))
    assert [attempt["resumed"] for attempt in result.attempts] == [None, None]
    assert "starting anew: the checkpoint" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("keep", "left"), [("adapter", {"adapter"}), ("none", set()), ("all", {"adapter", "checkpoint"})]
)
def test_what_a_finished_trial_keeps(keep: Any, left: set[str], tmp_path: Path) -> None:
    trial = replace(make_trial("linear_probe", {}, epochs=1), keep=keep)
    result = run(trial, tmp_path)
    folder = tmp_path / trial.identity
    found = {"adapter": folder / "adapter" / "adapter_model.safetensors", "checkpoint": folder / CHECKPOINT}
    assert {name for name, path in found.items() if path.exists()} == left
    assert result.storage.adapter is not None and "adapter" in result.digests
    assert replace(trial, keep="all").identity == trial.identity


@pytest.mark.slow
@pytest.mark.parametrize(("method", "settings"), [case for case in CASES if case[0] in EVERY_TIME], ids=str)
def test_killed_at_random_moments(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 of the real process, three times, whenever it comes. (Every method goes on exactly: tested above.)"""
    trial = make_trial(method, settings, epochs=12)
    data = data_root().resolve()
    whole, cut = (TrialFolder(tmp_path / name / trial.identity) for name in ("whole", "cut"))
    duration = launch(Errand.of(trial), whole.claim(trial.spec()), data=data).time.total
    assert duration is not None
    seed = random.SystemRandom().randrange(10**6)
    print("seed of the moments:", seed)
    moments = random.Random(seed)
    for _ in range(3):
        killer = threading.Thread(target=kill_worker, args=[cut, moments.uniform(0.05, 0.4) * duration])
        killer.start()
        result = launch(Errand.of(trial), cut.claim(trial.spec()), data=data)
        killer.join()
        if result.status == "done":
            break
        assert result.status == "lost"
    else:
        result = launch(Errand.of(trial), cut.claim(trial.spec()), data=data)
    assert "lost" in [attempt["status"] for attempt in result.attempts], "it was never killed"
    assert_same(whole, cut)


def kill_worker(folder: TrialFolder, seconds: float) -> None:
    """Kill the process that works on a trial, so many seconds after it has begun."""
    for _ in range(3000):
        lease = folder.running()
        if lease is not None and lease.pid != os.getpid():
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(lease.pid, signal.SIGKILL)
            return
        time.sleep(0.01)
