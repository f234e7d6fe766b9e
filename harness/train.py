"""One trial in this process: build, train with Accelerate, evaluate once, write the result.

    spec -> encoder + weights -> method attached -> epochs -> chosen model -> test split -> result.json

Nothing here knows a method by name, and nothing touches global state that another trial could see: trials run in a
fresh process each (harness/launch.py).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from harness.baselines import BASELINES
from harness.data.augment import augmentation
from harness.data.dataset import PointClouds, combined_digest
from harness.data.sampling import test_points, train_points
from harness.errors import UserError
from harness.measure.environment import environment
from harness.measure.memory import NO_GPU, NOT_YET, MemoryWindow, host_peak
from harness.measure.steps import StepTimer
from harness.method import Attached, Task, attach
from harness.models.encoder import Encoder
from harness.models.weights import data_root, load_weights
from harness.settings import Train
from harness.store import Memory as MemoryRecord
from harness.store import Metrics, Parameters, Result, Status, Storage, Time, TrialFolder, write_atomically
from harness.trial import Seeds, Trial, validation_seed

EVALUATION_BATCH = 64
MINIMUM_RATE = 1e-6


class Diverged(Exception):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Split:
    """Clouds on the device."""

    points: Tensor
    """(n, N, 3) float32"""
    labels: Tensor
    """(n,) int64"""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Evaluation:
    """Predictions for every item of a split, in index order."""

    prediction: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    loss: float

    @property
    def correct(self) -> int:
        """Items classified right."""
        return int((self.prediction == self.label).sum())

    @property
    def accuracy(self) -> float:
        """Overall accuracy, 0 to 1."""
        return self.correct / len(self.label)

    @property
    def class_accuracy(self) -> float:
        """Mean over classes of the accuracy within the class; classes without items are left out."""
        hits = self.prediction == self.label
        return float(np.mean([hits[self.label == c].mean() for c in np.unique(self.label)]))


def run_trial(
    trial: Trial,
    folder: TrialFolder,
    *,
    attempt: int = 1,
    earlier: list[dict[str, Any]] | None = None,
    git: str | None = None,
    progress: Callable[[int, int], None] = lambda done, epochs: None,
) -> Result:
    """Run a trial in this process and write its result; a failure is a result too.

    `earlier` are the attempts before this one. `progress(done, epochs)` is called after every epoch.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    result = Result(id=trial.identity, spec=trial.spec(), status="done")
    status: Status = "done"
    error: str | None = None
    try:
        work = _baseline if trial.baseline is not None else _train
        result = work(trial, folder, git, progress)
    except (torch.cuda.OutOfMemoryError, MemoryError) as problem:
        status, error = "oom", f"out of memory: {problem}"
    except Diverged as problem:
        status, error = "diverged", str(problem)
    except UserError as problem:
        status, error = "failed", str(problem)
    except Exception as problem:
        status, error = "failed", f"{type(problem).__name__}: {problem}\n{traceback.format_exc(limit=-8)}"
    record = {
        "attempt": attempt,
        "started": started,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    result.status, result.error = status, error
    result.attempts = [*(earlier or []), record | {"status": status, "error": error}]
    result.reasons = explain_nulls(result)
    folder.write_result(result)
    return result


def explain_nulls(result: Result) -> dict[str, str]:
    """Why each number that is null is null, for those that nothing has explained yet."""
    reasons = dict(result.reasons)
    default = f"the trial ended as {result.status}" if result.status != "done" else NOT_YET
    special = {
        "metrics.accuracy_best_on_test": "recorded only with selection: paper",
        "metrics.accuracy_vote": "no voting was asked for",
        "metrics.validation_accuracy": "no validation split was asked for",
    }
    for section in ("metrics", "parameters", "memory", "time", "compute", "storage"):
        for key, value in getattr(result, section).model_dump().items():
            if value is None:
                reasons.setdefault(f"{section}.{key}", special.get(f"{section}.{key}", default))
    return reasons


# Data


def _load(trial: Trial, device: torch.device) -> tuple[Split, Split, Split | None, str]:
    """Train, test and, if asked for, validation split on the device, and the data's digest."""
    root = data_root()
    train, test = trial.dataset.load("train", root), trial.dataset.load("test", root)
    held = carve_validation(train.labels, trial.protocol.validation_fraction, seed=validation_seed(trial.dataset.name))
    digest = combined_digest(train, test)

    def on_device(clouds: PointClouds, rows: npt.NDArray[np.bool_] | slice) -> Split:
        points, labels = torch.from_numpy(clouds.points[rows]), torch.from_numpy(clouds.labels[rows])
        return Split(points.float().to(device), labels.to(device))

    validation = on_device(train, held) if held.any() else None
    return on_device(train, ~held), on_device(test, slice(None)), validation, digest


def carve_validation(labels: npt.NDArray[np.int64], fraction: float, *, seed: int) -> npt.NDArray[np.bool_]:
    """Which training items are held out: the same fraction of every class, at least one, by a fixed seed."""
    held = np.zeros(len(labels), dtype=bool)
    if fraction:
        generator = np.random.default_rng(seed)
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            held[members[: max(1, round(fraction * len(members)))]] = True
    return held


def _test_batches(split: Split, trial: Trial) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, clouds as the encoder sees them at test), in index order."""
    count = trial.data.points
    assert count is not None
    for begin in range(0, len(split), EVALUATION_BATCH):
        indices = torch.arange(begin, min(begin + EVALUATION_BATCH, len(split)), device=split.labels.device)
        yield indices, test_points(split.points[indices], count, trial.data.sampling)


# Model


def build(trial: Trial, train: Split, seeds: Seeds) -> tuple[Attached, dict[str, str]]:
    """The attached model of a trial on the clouds' device, and the digest of its pre-trained weights."""
    device = train.points.device
    torch.manual_seed(seeds.initialisation)
    encoder = trial.backbone.build(drop_path=trial.train.drop_path)
    digests: dict[str, str] = {}
    if trial.backbone.weights != "random":
        digests["weights"] = load_weights(encoder, trial.backbone.weights)
    encoder.to(device)
    if trial.backbone.weights == "random" and trial.protocol.frozen_batchnorm == "running":
        _calibrate(encoder, train, trial)
    task = Task(classes=len(trial.dataset.classes), train_items=len(train))
    attached = attach(trial.method, encoder, task, head_dropout=trial.train.head_dropout)
    attached.model.to(device)
    return attached, digests


@torch.no_grad()
def _calibrate(encoder: Encoder, train: Split, trial: Trial) -> None:
    """Set the running statistics of random weights from the training clouds.

    Frozen batch norms with mean 0 and variance 1 would make random weights look worse than they are.
    """
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    encoder.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average over all batches
    for _, clouds in _test_batches(train, trial):
        encoder(clouds)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def set_training(model: nn.Module, *, frozen_batchnorm: str) -> None:
    """Training mode; batch norms without trainable parameters keep their running statistics if asked to."""
    model.train()
    if frozen_batchnorm == "running":
        for module in model.modules():
            if isinstance(module, _BatchNorm) and not any(p.requires_grad for p in module.parameters()):
                module.eval()


def learning_rate(settings: Train, step: int, steps_per_epoch: int) -> float:
    """Cosine schedule with linear warm-up, per step: from 1e-6 up to the rate, then down to 1e-6."""
    warmup, total = settings.warmup_epochs * steps_per_epoch, settings.epochs * steps_per_epoch
    span = settings.learning_rate - MINIMUM_RATE
    if step < warmup:
        return MINIMUM_RATE + span * (step + 1) / warmup
    return MINIMUM_RATE + span * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


# Training


def _train(trial: Trial, folder: TrialFolder, git: str | None, progress: Callable[[int, int], None]) -> Result:
    began = time.perf_counter()
    settings, seeds = trial.train, Seeds.of(trial.dataset.name, trial.seed)
    precision = trial.resources.precision
    accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision)
    device = accelerator.device
    train, test, validation, data_digest = _load(trial, device)
    if len(train) < settings.batch_size:
        raise UserError(
            f"{trial.dataset.name} has {len(train)} training clouds, fewer than train.batch_size {settings.batch_size}"
        )
    attached, digests = build(trial, train, seeds)
    initial = {name: buffer.clone() for name, buffer in attached.model.named_buffers()}
    if attached.before_training is not None:
        attached.before_training(clouds for _, clouds in _test_batches(train, trial))

    optimizer = torch.optim.AdamW(
        attached.optimizer_groups(settings.weight_decay), lr=settings.learning_rate, fused=True
    )
    model, optimizer = accelerator.prepare(attached.model, optimizer)
    memory, timer = MemoryWindow(device), StepTimer(device)
    torch.manual_seed(seeds.dropout)
    order = torch.Generator().manual_seed(seeds.order)
    noise = torch.Generator(device=device).manual_seed(seeds.augmentation)
    augment = augmentation(settings.augment, up=trial.dataset.up)
    steps, count = len(train) // settings.batch_size, trial.data.points
    assert count is not None
    startup = time.perf_counter() - began

    best: tuple[float, dict[str, Tensor]] | None = None
    for epoch in range(settings.epochs):
        set_training(model, frozen_batchnorm=trial.protocol.frozen_batchnorm)
        shuffled = torch.randperm(len(train), generator=order).to(device)
        losses = torch.zeros((), device=device)
        for batch in range(steps):
            timer.start()
            step = epoch * steps + batch
            rate = learning_rate(settings, step, steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = shuffled[batch * settings.batch_size : (batch + 1) * settings.batch_size]
            clouds = augment(train_points(train.points[rows], count, trial.data.sampling, noise), noise)
            timer.data_ready()
            with accelerator.autocast():
                loss = F.cross_entropy(model(clouds), train.labels[rows], label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            accelerator.backward(loss)
            if step == 0 and (starved := attached.starved()):
                raise RuntimeError(f"declared trainable, but without a gradient: {', '.join(starved)}")
            accelerator.clip_grad_norm_(attached.trainable.values(), settings.clip_norm)
            optimizer.step()
            losses += loss.detach()
            timer.stop()
            memory.after_step(step)
        row: dict[str, Any] = {
            "epoch": epoch,
            "time": time.time(),
            "train/loss": losses.item() / steps,
            "train/rate": rate,
        }
        if not math.isfinite(row["train/loss"]):
            raise Diverged(f"the training loss became {row['train/loss']} in epoch {epoch}; lower train.learning_rate")
        if validation is not None and (trial.protocol.selection == "validation" or epoch + 1 == settings.epochs):
            memory.end_training()
            held = evaluate(model, validation, trial, accelerator)
            row["validation/accuracy"] = held.accuracy
            if best is None or held.accuracy > best[0]:
                best = held.accuracy, attached.snapshot()
        folder.log_metrics(row)
        progress(epoch + 1, settings.epochs)
    memory.end_training()

    last = row.get("validation/accuracy")
    if trial.protocol.selection == "validation" and best is not None:
        last = best[0]
        attached.restore(best[1])
    memory.begin_evaluation()
    clock = time.perf_counter()
    outcome = evaluate(model, test, trial, accelerator)
    evaluation_time = time.perf_counter() - clock
    memory.end_evaluation()

    folder.write_predictions(prediction=outcome.prediction, label=outcome.label)
    digests |= {"data": data_digest} | _save_adapter(trial, folder, attached, initial, digests)
    times = timer.median()
    gpu = (
        {}
        if device.type == "cuda"
        else {f"memory.{key}": NO_GPU for key in ("train_peak", "train_reserved", "device", "eval_peak", "total_peak")}
    )
    return Result(
        id=trial.identity,
        spec=trial.spec(),
        status="done",
        metrics=_metrics(outcome, validation_accuracy=last),
        parameters=Parameters(**asdict(attached.counts)),
        memory=MemoryRecord(
            train_peak=memory.train_peak,
            train_reserved=memory.train_reserved,
            eval_peak=memory.eval_peak,
            total_peak=memory.total_peak,
            host_peak=host_peak(),
        ),
        time=Time(
            step=times.step if times else None,
            data=times.data if times else None,
            throughput=settings.batch_size / times.step if times else None,
            evaluate=evaluation_time,
            total=time.perf_counter() - began,
            startup=startup,
        ),
        storage=Storage(adapter=(folder.path / "adapter" / "adapter_model.safetensors").stat().st_size),
        environment=environment(device, precision=precision, threads=torch.get_num_threads(), git=git),
        digests=digests,
        reasons=gpu,
    )


def _metrics(outcome: Evaluation, *, validation_accuracy: float | None = None) -> Metrics:
    return Metrics(
        accuracy=outcome.accuracy,
        class_accuracy=outcome.class_accuracy,
        correct=outcome.correct,
        total=len(outcome.label),
        loss=outcome.loss if math.isfinite(outcome.loss) else None,
        validation_accuracy=validation_accuracy,
    )


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, trial: Trial, accelerator: Accelerator) -> Evaluation:
    """Predict every item of a split exactly once, gathered by index. Raises RuntimeError if any was missed."""
    model.eval()
    seen = torch.zeros(len(split), dtype=torch.bool, device=split.labels.device)
    prediction = torch.zeros(len(split), dtype=torch.long, device=split.labels.device)
    loss = torch.zeros((), device=split.labels.device)
    for indices, clouds in _test_batches(split, trial):
        with accelerator.autocast():
            scores = model(clouds).float()
        indices, guess, part = accelerator.gather(
            (indices, scores.argmax(1), F.cross_entropy(scores, split.labels[indices], reduction="sum")[None])
        )
        seen[indices] = True
        prediction[indices] = guess
        loss += part.sum()
    if not bool(seen.all()):
        raise RuntimeError(f"evaluation missed {int((~seen).sum())} of {len(split)} items")
    return Evaluation(prediction.cpu().numpy(), split.labels.cpu().numpy(), loss.item() / len(split))


def _save_adapter(
    trial: Trial, folder: TrialFolder, attached: Attached, initial: dict[str, Tensor], digests: dict[str, str]
) -> dict[str, str]:
    """Write what training changed: trainable tensors and changed buffers. With the base weights they are the model."""
    state = {name: parameter.detach() for name, parameter in attached.trainable.items()}
    for name, buffer in attached.model.named_buffers():
        if not torch.equal(buffer, initial[name]):
            state[name] = buffer
    content = save(
        {name: value.contiguous().cpu().clone() for name, value in sorted(state.items())},
        metadata={"trial": trial.identity},
    )
    config = {
        "trial": trial.identity,
        "spec": trial.spec(),
        "base_weights": digests.get("weights"),
        "tensors": sorted(state),
    }
    write_atomically(folder.path / "adapter" / "adapter_model.safetensors", content)
    write_atomically(folder.path / "adapter" / "adapter_config.json", json.dumps(config, indent=1))
    return {"adapter": hashlib.sha256(content).hexdigest()}


# Baselines


def _baseline(trial: Trial, folder: TrialFolder, git: str | None, progress: Callable[[int, int], None]) -> Result:
    """A reference that trains nothing (harness.baselines), on the clouds that the encoder would see at test."""
    began = time.perf_counter()
    assert trial.baseline is not None
    train, test, _, digest = _load(trial, torch.device("cpu"))

    def seen(split: Split) -> npt.NDArray[np.floating]:
        return torch.cat([clouds for _, clouds in _test_batches(split, trial)]).numpy()

    prediction = BASELINES[trial.baseline](seen(train), train.labels.numpy(), seen(test))
    outcome = Evaluation(prediction, test.labels.numpy(), math.nan)
    folder.write_predictions(prediction=outcome.prediction, label=outcome.label)
    progress(1, 1)
    nothing = "a baseline trains nothing"
    sections = {"parameters": Parameters, "memory": MemoryRecord, "storage": Storage}
    reasons = {f"{name}.{key}": nothing for name, record in sections.items() for key in record().model_dump()}
    reasons |= {f"time.{key}": nothing for key in ("step", "data", "throughput", "startup", "evaluate")}
    return Result(
        id=trial.identity,
        spec=trial.spec(),
        status="done",
        metrics=_metrics(outcome),
        time=Time(total=time.perf_counter() - began),
        environment=environment(torch.device("cpu"), precision="fp32", threads=torch.get_num_threads(), git=git),
        digests={"data": digest},
        reasons=reasons | {"metrics.loss": nothing},
    )
