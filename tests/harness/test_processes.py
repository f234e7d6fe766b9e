"""Trials of several processes: the same training as one process, whatever their number."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, distributed

from harness import registry
from harness.errors import SuiteError
from harness.launch import Errand, launch
from harness.models.weights import data_root
from harness.processes import Ranks
from harness.result import Result, Status
from harness.store import Store
from harness.suite import load_suite
from harness.trial_folder import TrialFolder

SUITE = """\
format: 1
name: together
seeds: 1
datasets: [sweethome12]
backbones: {{point_mae: {{preset: tiny, {backbone}}}}}
methods: {{{methods}}}
train: {{epochs: 1, batch_size: 16, learning_rate: 2.0e-3, warmup_epochs: 0, drop_path: 0, head_dropout: 0}}
protocol: {{batchnorm: {batchnorm}}}
data: {{points: 128}}
"""
METHODS = sorted(registry.names("methods"))
WHOLE, SMALL = "weights: point_mae_tiny_parts", "depth: 1, groups: 8, group_size: 8"
Trained = dict[str, tuple[Result, Path]]


def run(folder: Path, methods: list[str], count: int, *, batchnorm: str = "global", backbone: str = WHOLE) -> Trained:
    """Whole trials by so many processes, without any dropout: result and folder by method."""
    folder.mkdir(exist_ok=True)
    suite, output = folder / "suite.yaml", folder / f"results{count}"
    chosen = ", ".join(map(without_dropout, methods))
    suite.write_text(SUITE.format(methods=chosen, batchnorm=batchnorm, backbone=backbone))
    Store(output).prepare()
    processes = []
    for index in range(count):
        place = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if count > 1:
            environment |= {name: str(value) for name, value in place.items()}
        arguments = [str(suite), str(output), str(folder / f"rendezvous{count}"), str(index), str(count)]
        command = [sys.executable, "-m", "tests.harness.one_process", *arguments]
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=1200)[1] for process in processes]
    assert not any(process.returncode for process in processes), said
    found = {}
    for trial in load_suite(str(suite), [f"resources.processes={count}"]).trials:
        result = Store(output).trial(trial.identity).result()
        assert result is not None and result.status == "done"
        found[trial.method_name] = (result, output / "trials" / trial.identity)
    return found


def without_dropout(method: str) -> str:
    """The method with whatever dropout it has at 0, as a suite has it."""
    settings = [name for name in registry.get("methods", method).model_fields if "dropout" in name]
    return f"{method}: {{{', '.join(f'{name}: 0' for name in settings)}}}"


def trained(folder: Path) -> dict[str, Tensor]:
    parts = (folder / "adapter" / name for name in ("adapter_model.safetensors", "head.safetensors"))
    return {name: tensor for part in parts for name, tensor in load_file(part).items()}


def assert_equal(first: Path, second: Path) -> None:
    """Weights to 1e-5 of each tensor's length, predictions exactly."""
    ours, theirs = trained(first), trained(second)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-5 * float(value.double().norm()), msg=name)
    predictions = [np.load(folder / "predictions.npz")["prediction"] for folder in (first, second)]
    assert np.array_equal(*predictions)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """With a frozen tokenizer: its statistics are the batch's all the same."""
    alone, first = run(tmp_path, ["dapt"], 1, backbone=SMALL)["dapt"]
    together, second = run(tmp_path, ["dapt"], 2, backbone=SMALL)["dapt"]
    assert_equal(first, second)
    assert alone.metrics.loss == pytest.approx(together.metrics.loss, rel=1e-9)
    assert together.parameters == alone.parameters
    assert together.compute.flops_train and alone.compute.flops_train
    # The same work, but for products of weights alone, which every process makes.
    assert 1 <= together.compute.flops_train / alone.compute.flops_train < 1.01
    memory = together.memory
    assert memory.host_peak is not None and memory.host_peak_sum is not None
    assert memory.host_peak < memory.host_peak_sum <= 2 * memory.host_peak


@pytest.fixture(scope="module")
def by_count(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Trained]:
    folder = tmp_path_factory.mktemp("every")
    return {count: run(folder, METHODS, count) for count in (1, 2, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [2, 4])
def test_every_method_trains_alike_on_one_two_and_four_processes(
    method: str, count: int, by_count: dict[int, Trained]
) -> None:
    assert_equal(by_count[1][method][1], by_count[count][method][1])


def test_numbers_of_every_type_are_gathered(tmp_path: Path) -> None:
    """NCCL and gloo themselves have no int16."""
    distributed.init_process_group("gloo", store=distributed.FileStore(str(tmp_path / "met"), 1), rank=0, world_size=1)
    try:
        for dtype in (torch.int16, torch.uint8, torch.int64, torch.float32, torch.bool):
            tensor = torch.tensor([[0, 1], [1, 0], [1, 1]]).to(dtype)
            found = Ranks._gathered(tensor)
            assert found.dtype == dtype and torch.equal(found, tensor)
            assert torch.equal(Ranks._gathered(tensor[:, 1]), tensor[:, 1]), "not contiguous"
    finally:
        distributed.destroy_process_group()


@pytest.mark.slow
def test_local_statistics_differ(tmp_path: Path) -> None:
    """Which is what `local` means, and shows that the tests above can fail."""
    _, first = run(tmp_path, ["linear_probe"], 1, batchnorm="local")["linear_probe"]
    with pytest.raises(AssertionError):
        assert_equal(first, run(tmp_path, ["linear_probe"], 2, batchnorm="local")["linear_probe"][1])


def launched(
    folder: Path, *, suite: str = SUITE, method: str = "", backbone: str = WHOLE, **resources: object
) -> tuple[Result, Path]:
    """A small trial as a launcher runs it: fresh processes, a private rendezvous, one result."""
    sections = ", ".join(f"{name}: {value}" for name, value in resources.items())
    text = suite.format(methods=method or without_dropout("lora"), batchnorm="local", backbone=backbone)
    text += f"resources: {{{sections}}}\n"
    folder.mkdir(exist_ok=True)
    (folder / "suite.yaml").write_text(text)
    (trial,) = load_suite(str(folder / "suite.yaml")).trials
    writer = Store(folder).trial(trial.identity).claim(trial.spec())
    return launch(Errand.of(trial), writer, data=data_root().resolve()), writer.path


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_deepspeed_trains_as_ddp(strategy: str, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    (alone, plain), (divided, folder) = (
        launched(tmp_path / name, processes=2, strategy=name, timeout="10m") for name in ("ddp", strategy)
    )
    assert (alone.status, divided.status) == ("done", "done"), divided.error
    assert divided.metrics.loss == pytest.approx(alone.metrics.loss, rel=0.03)
    assert {name: value.shape for name, value in trained(folder).items()} == {
        name: value.shape for name, value in trained(plain).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_blocks_that_run_again_end_alike_on_two_processes(strategy: str, tmp_path: Path) -> None:
    if strategy != "ddp":
        pytest.importorskip("deepspeed")
    how = {"processes": 2, "strategy": strategy, "timeout": "10m"}
    kept, again = (
        launched(
            tmp_path / on, suite=LONG, method="lora: {rank: 2}", backbone=SMALL, activation_checkpointing=on, **how
        )
        for on in ("false", "true")
    )
    assert (kept[0].status, again[0].status) == ("done", "done"), again[0].error
    assert again[0].metrics.loss == kept[0].metrics.loss
    assert again[0].compute == kept[0].compute
    first, second = trained(kept[1]), trained(again[1])
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


LONG = (
    SUITE.replace("epochs: 1,", "epochs: 6,")
    .replace("head_dropout: 0}", "head_dropout: 0.5}")
    .replace("protocol: {{", "protocol: {{selection: validation, validation_fraction: 0.2, ")
)


def kill_in_training(folder: Path, killed: list[int]) -> None:
    """kill -9 of a trial's first process, once there is a checkpoint and another epoch has ended."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for path in folder.glob("trials/*/checkpoint.safetensors"):
            lease = TrialFolder(path.parent).lease()
            if lease is not None and lease.pid != os.getpid() and lease.done >= 2:
                os.kill(lease.pid, signal.SIGKILL)
                killed.append(lease.done)
                return
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_goes_on_exactly_after_a_kill(strategy: str, tmp_path: Path) -> None:
    """The same weights, predictions and losses as without, whoever holds the optimiser's state; dropout is on."""
    if strategy != "ddp":
        pytest.importorskip("deepspeed")
    how = {"processes": 2, "strategy": strategy, "timeout": "10m"}
    (tmp_path / "cut").mkdir()
    killed: list[int] = []
    killer = threading.Thread(target=kill_in_training, args=(tmp_path / "cut", killed))
    killer.start()
    first, _ = launched(tmp_path / "cut", suite=LONG, method="lora: {rank: 2}", backbone=SMALL, **how)
    killer.join()
    assert (first.status, len(killed)) == ("lost", 1), first.error
    second, cut = launched(tmp_path / "cut", suite=LONG, method="lora: {rank: 2}", backbone=SMALL, **how)
    whole, uncut = launched(tmp_path / "whole", suite=LONG, method="lora: {rank: 2}", backbone=SMALL, **how)
    assert (second.status, whole.status) == ("done", "done"), second.error
    assert [attempt["status"] for attempt in second.attempts] == ["lost", "done"]
    assert second.attempts[1]["resumed"] >= 1
    print(f"killed after epoch {killed[0]}, resumed from epoch {second.attempts[1]['resumed']}")
    assert second.digests == whole.digests
    assert second.metrics == whole.metrics
    losses = ([row["train/loss"] for row in TrialFolder(path).metrics()] for path in (cut, uncut))
    assert next(losses) == next(losses)
    predictions = [np.load(path / "predictions.npz")["prediction"] for path in (cut, uncut)]
    assert np.array_equal(*predictions)
    assert not (cut / "checkpoint.safetensors").exists()


@pytest.mark.slow
def test_one_error_of_all_processes_is_the_trials_error(tmp_path: Path) -> None:
    result, _ = launched(tmp_path, processes=2)
    assert result.status == "done"
    changed = SUITE.replace("batch_size: 16", "batch_size: 600")
    (tmp_path / "suite.yaml").write_text(
        changed.format(methods="lora: {}", batchnorm="local", backbone=WHOLE) + "resources: {processes: 2}\n"
    )
    (trial,) = load_suite(str(tmp_path / "suite.yaml")).trials
    writer = Store(tmp_path).trial(trial.identity).claim(trial.spec())
    result = launch(Errand.of(trial), writer, data=data_root().resolve())
    assert result.status == "failed" and "fewer than train.batch_size 600" in (result.error or "")
    assert writer.folder.lease() is None


@pytest.mark.parametrize(
    ("broken", "said", "status"),
    [
        (None, ["failed", "oom"], "oom"),
        (-6, ["oom"], "oom"),
        (None, ["failed", "failed"], "failed"),
        (-9, ["failed"], "lost"),
    ],
)
def test_the_cause_is_the_trials_not_what_others_say_of_it(
    broken: int | None, said: list[Status], status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process is out of memory, or killed; the others find that it is gone, and may be heard first."""

    class Crew:
        def __init__(self, errand: Errand, *_: object, **__: object) -> None:
            self.broken = broken
            self.said = [errand.came_to(name, name) for name in said]

        def at_work(self) -> bool:
            return False

        def end(self, *, patience: float) -> None:
            """All are gone."""

    monkeypatch.setattr("harness.launch._Crew", Crew)
    writer = Store(tmp_path).trial("abc").claim({})
    errand = Errand("abc", {}, "part segmentation", timeout=60.0, threads=1, processes=2, packed=b"")
    assert launch(errand, writer, data=tmp_path).status == status
    found = writer.folder.result()
    assert found is not None and (found.status, found.task) == (status, "part segmentation")


def test_what_processes_cannot_share_is_said_before_anything_runs(tmp_path: Path) -> None:
    text = SUITE.format(methods="lora: {}", batchnorm="local", backbone=WHOLE)
    for resources, words in (
        ("processes: 3", "train.batch_size: 16 does not divide among 3 processes"),
        ("processes: 16", "16 does not divide among 16 processes into parts of at least two"),
        ("strategy: zero2", "resources.strategy: zero2 divides among processes"),
        ("processes: 2, strategy: zero4", "resources.strategy"),
        ("processes: 2, strategy: zero2, precision: auto", "resources.precision: auto with zero2"),
    ):
        (tmp_path / "suite.yaml").write_text(text + f"resources: {{{resources}}}\n")
        with pytest.raises(SuiteError, match=words):
            load_suite(str(tmp_path / "suite.yaml"))
