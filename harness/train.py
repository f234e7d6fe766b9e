"""One trial in this process: build, train with Accelerate, evaluate once, write the result.

    spec -> encoder + weights -> method attached -> epochs -> chosen model -> test split -> result.json

Nothing here knows a method by name, and nothing touches global state that another trial could see: trials run in a
fresh process each (harness/launch.py).
"""

from __future__ import annotations

import errno
import hashlib
import math
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, astuple
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.adapter import pack as pack_adapter
from harness.baselines import BASELINES
from harness.build import build, set_training
from harness.checkpoint import NotResumable, Pace, Progress, Streams, pack, resume
from harness.data.augment import augmentation
from harness.data.splits import Split, load_splits, test_batches
from harness.errors import UserError
from harness.evaluation import Evaluation, precision_on
from harness.headline import others
from harness.measure.cost import predicted_result
from harness.measure.environment import code_digest, cpu_name, environment, libraries
from harness.measure.flops import Flops, StepFlops
from harness.measure.latency import BATCHES, latency
from harness.measure.memory import NO_ESTIMATE, NO_GPU, NOT_YET, MemoryWindow
from harness.measure.nvml import GpuMeter
from harness.measure.steps import StepTimer
from harness.optimizer import AdamW
from harness.prediction import key_of, known
from harness.processes import Ranks, accelerator_for
from harness.result import SECTIONS, Compute, Parameters, Result, Status, Storage, Time
from harness.result import Memory as MemoryRecord
from harness.settings import Train
from harness.tasks import task_of
from harness.trial import Seeds, Trial
from harness.trial_folder import (
    ADAPTER,
    ADAPTER_CARD,
    ADAPTER_HEAD,
    CHECKPOINT,
    CannotWrite,
    LeaseLost,
    Onlooker,
    TrialWriter,
    failure,
)

MINIMUM_RATE = 1e-6
GPU_PEAKS = ("train_peak", "train_reserved", "eval_peak", "total_peak", "device", "retries")
ONLY_GPU = (*GPU_PEAKS, "train_peak_sum")
"""Numbers of result.json's `memory` that are of a GPU."""


class Diverged(Exception):
    """The loss is no longer a number."""


def run_trial(trial: Trial, writer: TrialWriter, *, git: str | None = None) -> Result:
    """Run a trial in this process and write its result; a failure is a result too.

    Raises LeaseLost or CannotWrite, after which nothing has been finished.
    """
    result = attempt(trial, writer, git=git)
    finish(trial, writer, result)
    return result


def attempt(trial: Trial, writer: TrialWriter | Onlooker, *, git: str | None = None) -> Result:
    """A trial up to its result, which is still to be written; from a checkpoint on where one fits.

    The processes of a trial all do this, each with a part of every batch. Raises LeaseLost or CannotWrite.
    """
    status: Status
    try:
        result = _way(trial)(trial, writer, git)
    except (LeaseLost, CannotWrite):
        raise
    except Exception as problem:
        status, error = _failure_class(problem)
        result = failure(trial.identity, trial.spec(), task=trial.dataset.task, status=status, error=error)
    result.reasons = explain_nulls(result)
    return result


def _way(trial: Trial) -> Callable[[Trial, TrialWriter | Onlooker, str | None], Result]:
    """How a trial comes to its result."""
    if trial.baseline is not None:
        return _baseline
    if task_of(trial.dataset).needs_gpu and not torch.cuda.is_available():
        return _predict
    return _train


def _train(trial: Trial, writer: TrialWriter | Onlooker, git: str | None) -> Result:
    return Training(trial, writer).run(git)


def _predict(trial: Trial, writer: TrialWriter | Onlooker, git: str | None) -> Result:
    writer.begin(epochs=1, resumed=None)
    return predicted_result(trial, git=git)


def finish(trial: Trial, writer: TrialWriter, result: Result) -> None:
    """Write an attempt's result, and drop what the suite does not keep. Raises LeaseLost or CannotWrite."""
    drop = {"all": (), "adapter": (CHECKPOINT,), "none": (CHECKPOINT, ADAPTER, ADAPTER_HEAD)}[trial.keep]
    writer.finish(result, drop=drop if result.status == "done" else ())


def _failure_class(problem: Exception) -> tuple[Status, str]:
    """The status and the message of what went wrong in a trial. Raises CannotWrite for a full disk."""
    if isinstance(problem, OSError) and problem.errno in (errno.ENOSPC, errno.EDQUOT):
        raise CannotWrite(str(problem)) from problem
    if isinstance(problem, torch.cuda.OutOfMemoryError | MemoryError):
        return "oom", f"out of memory: {problem}"
    if isinstance(problem, RuntimeError) and "not enough memory" in str(problem):  # torch's own allocator on the host
        return "oom", f"out of memory: {problem}"
    if isinstance(problem, Diverged):
        return "diverged", str(problem)
    if isinstance(problem, UserError):
        return "failed", str(problem)
    return "failed", f"{type(problem).__name__}: {problem}\n{''.join(traceback.format_exception(problem, limit=-8))}"


def explain_nulls(result: Result) -> dict[str, str]:
    """Why each number that is null is null, for those that nothing has explained yet."""
    reasons = dict(result.reasons)
    default = f"the trial ended as {result.status}" if result.status != "done" else NOT_YET
    headline = result.headline
    special = {f"metrics.{key}": f"not a number of {result.task}" for key in others(headline)} | {
        f"metrics.{headline.best_on_test}": "recorded only with selection: paper",
        f"metrics.{headline.vote}": "no voting was asked for",
        f"metrics.{headline.validation}": "no validation split was asked for",
    }
    for section in SECTIONS:
        for key, value in getattr(result, section).model_dump().items():
            if value is None:
                reasons.setdefault(f"{section}.{key}", special.get(f"{section}.{key}", default))
    return reasons


def learning_rate(settings: Train, step: int, steps_per_epoch: int) -> float:
    """The rate of a step, from 1e-6 up to the highest and down to 1e-6, by `train.schedule`."""
    return SCHEDULES[settings.schedule](settings, step, steps_per_epoch)


def _cosine(settings: Train, step: int, steps_per_epoch: int) -> float:
    """Per step: linear warm-up, then half a cosine over what is left."""
    warmup, total = settings.warmup_epochs * steps_per_epoch, settings.epochs * steps_per_epoch
    span = settings.learning_rate - MINIMUM_RATE
    if step < warmup:
        return MINIMUM_RATE + span * (step + 1) / warmup
    return MINIMUM_RATE + span * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _paper(settings: Train, step: int, steps_per_epoch: int) -> float:
    """Per epoch: timm 0.4.5's CosineLRScheduler as the official runners step it, at an epoch's end by its number.

    Epoch e so trains with the rate of e - 1, and the first two with the lowest. The cosine is that of the whole
    training, warm-up included: after it the rate is a little under the highest.
    """
    epoch = max(0, step // steps_per_epoch - 1)
    span = settings.learning_rate - MINIMUM_RATE
    if epoch < settings.warmup_epochs:
        return MINIMUM_RATE + span * epoch / settings.warmup_epochs
    return MINIMUM_RATE + span * 0.5 * (1 + math.cos(math.pi * epoch / settings.epochs))


SCHEDULES: dict[str, Callable[[Train, int, int], float]] = {"cosine": _cosine, "paper": _paper}


class Training:
    """A trial's training: everything it holds from epoch to epoch. Use once: `Training(trial, writer).run(git)`."""

    def __init__(self, trial: Trial, writer: TrialWriter | Onlooker) -> None:
        self.began = time.perf_counter()
        self.trial, self.writer, self.settings = trial, writer, trial.train
        self.accelerator = accelerator_for(trial)
        self.ranks = Ranks(self.accelerator, trial.resources.strategy)
        self.device = self.accelerator.device
        self.meter = GpuMeter(self.device)
        self.task = task_of(trial.dataset)
        self.train, test, validation, data_digest = self.task.load(trial, self.device)
        if len(self.train) < self.settings.batch_size:
            raise UserError(
                f"{trial.dataset.name} has {len(self.train)} training clouds, "
                f"fewer than train.batch_size {self.settings.batch_size}"
            )
        self.test = self.task.at_test(test, trial)
        self.validation = self.task.at_test(validation, trial) if validation is not None else None
        self.voted = test if trial.protocol.vote else None
        self.steps = len(self.train) // self.settings.batch_size
        self.attached, digests = build(trial, device=self.device, train_items=len(self.train), train=self.train)
        self.digests = digests | {"data": data_digest}
        groups = self.attached.optimizer_groups(self.settings.weight_decay)
        optimizer = AdamW(groups, lr=self.settings.learning_rate, fused=True)
        self.starved = self.attached.watch()
        self.model, self.optimizer = self.ranks.prepare(self.attached, optimizer, batchnorm=trial.protocol.batchnorm)
        self.augment = augmentation(self.settings.augment, up=trial.dataset.up)
        seeds = trial.seeds
        self.order = torch.Generator().manual_seed(seeds.order)
        self.noise = torch.Generator(device=self.device).manual_seed(seeds.augmentation)
        self.streams = Streams(order=self.order, noise=self.noise, device=self.device)
        self.best: dict[str, Tensor] | None = None
        self.fingerprint = self._fingerprint()  # once: it reads all source, and later edits are not what runs
        self.progress = self._begin(seeds)
        self.resumed = self.progress.epoch > 0
        if self.resumed:
            self.starved()  # the first step, which it is for, was seen
        self.timer = StepTimer(self.device, earlier=self.progress.times)
        self.memory = MemoryWindow(self.device, earlier=self.progress.peaks)
        self.flops = StepFlops(earlier=Flops(*self.progress.flops) if self.progress.flops else None)

    def _begin(self, seeds: Seeds) -> Progress:
        """Go on from the checkpoint, or start: fill what the method fills before training, seed dropout."""
        progress = Progress()
        try:
            with self.ranks.whole(self.attached.model, changing=True):
                progress, self.best = resume(
                    self.writer.path / CHECKPOINT,
                    fingerprint=self.fingerprint,
                    attached=self.attached,
                    restore_optimizer=partial(self.ranks.restore_optimizer, self.optimizer),
                    streams=self.streams,
                    scaler=self.accelerator.scaler,
                )
            print(f"going on after epoch {progress.epoch} of {self.settings.passes}")  # noqa: T201
        except NotResumable as reason:
            if str(reason):
                print(f"starting anew: {reason}")  # noqa: T201
        begun = self.ranks.numbers({"epoch": progress.epoch})["epoch"] or []
        if len(set(begun)) > 1:  # they would average gradients of different models
            raise RuntimeError(f"the processes found different checkpoints (of epochs {begun}); run the trial again")
        if not progress.epoch:
            if self.attached.before_training is not None:
                with self.ranks.whole(self.attached.model, changing=True):
                    self.attached.before_training(clouds for _, clouds in self.task.clouds(self.train, self.trial))
            self.streams.seed(seeds.dropout)
        self.writer.begin(epochs=self.settings.passes, resumed=progress.epoch or None)
        return progress

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on from."""
        plugins = (type(self.trial.method), type(self.trial.backbone), type(self.trial.dataset))
        return {
            "trial": self.trial.identity,
            "data": self.digests["data"],
            "weights": self.digests.get("weights"),
            "code": code_digest(*plugins),
            "versions": libraries(),
            "device": cpu_name() if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            "threads": torch.get_num_threads(),
        }

    def run(self, git: str | None) -> Result:
        """Train the epochs that are left, choose the model, evaluate it on the test split, save what was trained."""
        if self.progress.startup is None:
            self.progress.startup = time.perf_counter() - self.began
        earlier, pace = self.progress.seconds, Pace()
        for epoch in range(self.progress.epoch, self.settings.passes):
            row = self._epoch(epoch)
            self._validate(epoch, row)
            self.writer.log_metrics(row)
            self.writer.progress(epoch + 1)
            self.progress.epoch, self.progress.row = epoch + 1, row
            if self.ranks.of_first(pace.due()):
                clock = time.perf_counter()
                self.progress.seconds = earlier + clock - self.began
                self._checkpoint()
                pace.wrote(time.perf_counter() - clock)
        self.memory.end_training()
        return self._finish(git, earlier)

    def _epoch(self, epoch: int) -> dict[str, Any]:
        """One pass over the training clouds; returns its line of metrics.jsonl."""
        settings, batch_size = self.settings, self.settings.batch_size
        set_training(self.model, frozen_batchnorm=self.trial.protocol.frozen_batchnorm)
        if self.ranks.count > 1:  # dropout is each process's own, and a resumed one finds it again
            own = np.random.SeedSequence([self.trial.seeds.dropout, epoch, self.ranks.index]).generate_state(1)
            self.streams.seed(int(own[0]))
        shuffled = torch.randperm(len(self.train), generator=self.order).to(self.device)
        losses = torch.zeros((), device=self.device)
        for batch in range(self.steps):
            self.timer.start()
            step = epoch * self.steps + batch
            rate = learning_rate(settings, step, self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            rows = shuffled[batch * batch_size : (batch + 1) * batch_size]
            seen = self.task.batch(self.train, rows, self.trial, self.augment, self.noise).part(self.ranks.part)
            self.timer.data_ready()
            with self.flops.counting():
                with self.accelerator.autocast():
                    loss = self.task.loss(self.model(*seen.inputs), seen.targets, settings)
                self.flops.after_forward(len(seen.targets))
                self.optimizer.zero_grad()
                self.accelerator.backward(loss)
            if step == 0 and (starved := self.starved()):
                raise RuntimeError(f"declared trainable, but without a gradient: {', '.join(starved)}")
            self.accelerator.clip_grad_norm_(self.attached.trainable.values(), settings.clip_norm)
            self.optimizer.step()
            losses += loss.detach()
            self.timer.stop()
            self.memory.after_step()
        self.ranks.take_buffers_of_first(self.attached.model)
        mean = self.ranks.mean(losses).item() / self.steps
        if not math.isfinite(mean):
            raise Diverged(f"the training loss became {mean} in epoch {epoch}; lower train.learning_rate")
        return {"epoch": epoch, "time": time.time(), "train/loss": mean, "train/rate": rate}

    def _validate(self, epoch: int, row: dict[str, Any]) -> None:
        """What the protocol asks of an epoch: the best model so far by validation, or the papers' best on test."""
        selection, number = self.trial.protocol.selection, self.task.headline.key
        if selection == "paper":  # chooses nothing: the number goes into a column of its own
            score = row[f"test/{number}"] = self._score(self.test)
            self.progress.best_on_test = max(self.progress.best_on_test or 0.0, score)
        choosing = selection == "validation"
        if self.validation is None or not (choosing or epoch + 1 == self.settings.passes):
            return
        score = row[f"validation/{number}"] = self._score(self.validation)
        if choosing and (self.progress.best is None or score > self.progress.best):
            with self.ranks.whole(self.attached.model):
                self.progress.best, self.best = score, self.attached.snapshot()

    def _score(self, split: Any) -> float:
        self.memory.end_training()
        return self.task.score(self.task.evaluate(self.model, split, self.trial, self.ranks))

    def _checkpoint(self) -> None:
        """What all processes hold together, in one file that the first one writes."""
        self.progress.times, self.progress.peaks = self.timer.times(), self.memory.peaks()
        self.progress.flops = astuple(self.flops.counted) if self.flops.counted else None
        optimizer = self.ranks.optimizer_state(self.optimizer)
        with self.ranks.whole(self.attached.model):
            if not self.ranks.first:
                return
            content = pack(
                fingerprint=self.fingerprint,
                progress=self.progress,
                attached=self.attached,
                best=self.best,
                optimizer=optimizer,
                streams=self.streams,
                scaler=self.accelerator.scaler,
            )
        self.writer.write_file(CHECKPOINT, content)

    def _finish(self, git: str | None, earlier: float) -> Result:
        """The chosen model on the test split, and everything that the result says."""
        trial, task, memory = self.trial, self.task, self.memory
        if self.best is not None:
            with self.ranks.whole(self.attached.model, changing=True):
                self.attached.restore(self.best)
        memory.begin_evaluation()
        clock = time.perf_counter()
        outcome = task.evaluate(self.model, self.test, trial, self.ranks)
        evaluation_time = time.perf_counter() - clock
        memory.end_evaluation()
        peaks = memory.peaks() | {"eval_peak": memory.eval_peak, "device": self.meter.memory()}
        shared = self.ranks.numbers(peaks)  # before what is no part of training or evaluation: votes, the adapter
        ballot = task.vote(self.model, self.voted, trial, self.ranks) if self.voted is not None else None
        votes = {} if ballot is None else {"vote": ballot.columns()["prediction"]}
        energy = self._energy()  # before what only measures
        self.writer.write_predictions({**outcome.columns(), **votes})
        with self.ranks.whole(self.attached.model):
            size = self._save_adapter()
            ended = time.perf_counter()
            latencies = [self._latency(clouds) for clouds in BATCHES]
        times = self.timer.median()
        precision = precision_on(self.device, trial.resources.precision)
        predicted = known(key_of(trial, precision=precision))
        memory_estimated = predicted.peak if predicted is not None else None
        headline = task.headline
        last = self.progress.row.get(f"validation/{headline.key}")
        beside = {
            headline.validation: self.progress.best if self.best is not None else last,
            headline.best_on_test: self.progress.best_on_test,
        } | ({headline.vote: task.score(ballot)} if ballot is not None else {})
        return Result(
            id=trial.identity,
            spec=trial.spec(),
            status="done",
            task=trial.dataset.task,
            metrics=outcome.metrics().model_copy(update=beside),
            parameters=Parameters(**asdict(self.attached.counts)),
            memory=MemoryRecord(
                estimated=memory_estimated,
                **{key: max(values) for key, values in shared.items() if values},
                **{f"{key}_sum": sum(shared[key] or ()) or None for key in ("train_peak", "host_peak")},
            ),
            time=Time(
                step=times.step if times else None,
                data=times.data if times else None,
                throughput=self.settings.batch_size / times.step if times else None,
                evaluate=evaluation_time,
                latency=latencies[0],
                latency_32=latencies[1],
                total=earlier + ended - self.began,
                startup=self.progress.startup,
            ),
            compute=self._compute(energy),
            storage=Storage(adapter=size),
            environment=environment(
                self.device,
                precision=precision,
                threads=torch.get_num_threads(),
                git=git,
            )
            | ({"gpu_busy": self.meter.busy} if self.meter.busy else {}),
            digests=self.digests,
            reasons=self.meter.reasons
            | ({} if memory_estimated is not None else {"memory.estimated": NO_ESTIMATE})
            | ({} if self.device.type == "cuda" else {f"memory.{key}": NO_GPU for key in ONLY_GPU}),
        )

    def _latency(self, clouds: int) -> float:
        """Of the trained model on clouds without a shape."""
        inputs = [part.to(self.device) for part in self.task.random_batch(self.trial, clouds).inputs]
        with self.accelerator.autocast():
            return latency(self.attached.model.eval(), inputs)

    def _energy(self) -> int | None:
        """Joules of the GPUs of all processes."""
        joules = self.meter.energy(whole=not self.resumed)
        spent = self.ranks.numbers({"energy": None if joules is None else round(joules)})["energy"]
        return sum(spent) if spent else None

    def _compute(self, energy: int | None) -> Compute:
        """FLOPs as counted in the first step; every process did as many."""
        flops = self.flops.counted
        counted = {"flops_forward": flops.forward, "flops_train": flops.train * self.ranks.count} if flops else {}
        return Compute(energy=energy, **counted)

    def _save_adapter(self) -> int:
        """Write what turns the base weights into the trained model (harness.adapter). Returns the files' size."""
        packed = pack_adapter(self.attached, self.trial, train_items=len(self.train))
        self.writer.write_file(ADAPTER_CARD, packed.described())
        for name, file, content in (("adapter", ADAPTER, packed.adapter), ("head", ADAPTER_HEAD, packed.head)):
            self.writer.write_file(file, content)
            self.digests[name] = hashlib.sha256(content).hexdigest()
        return len(packed.adapter) + len(packed.head)


def _baseline(trial: Trial, writer: TrialWriter | Onlooker, git: str | None) -> Result:
    """A reference that trains nothing (harness.baselines), on the clouds that the encoder would see at test."""
    began = time.perf_counter()
    assert trial.baseline is not None
    writer.begin(epochs=1, resumed=None)
    train, test, _, digest = load_splits(trial, torch.device("cpu"))

    def seen(split: Split) -> npt.NDArray[np.floating]:
        return torch.cat([clouds for _, clouds in test_batches(split, trial)]).numpy()

    prediction = BASELINES[trial.baseline](seen(train), train.labels.numpy(), seen(test))
    outcome = Evaluation(prediction, test.labels.numpy(), math.nan)
    writer.write_predictions(outcome.columns())
    nothing = "a baseline trains nothing"
    sections = {"parameters": Parameters, "memory": MemoryRecord, "compute": Compute, "storage": Storage}
    reasons = {f"{name}.{key}": nothing for name, record in sections.items() for key in record().model_dump()}
    reasons |= {f"time.{key}": nothing for key in ("step", "data", "throughput", "startup", "evaluate")}
    return Result(
        id=trial.identity,
        spec=trial.spec(),
        status="done",
        task=trial.dataset.task,
        metrics=outcome.metrics(),
        time=Time(total=time.perf_counter() - began),
        environment=environment(torch.device("cpu"), precision="fp32", threads=torch.get_num_threads(), git=git),
        digests={"data": digest},
        reasons=reasons | {"metrics.loss": nothing},
    )


def main() -> None:
    """`python -m harness.train SUITE …`, also under `accelerate launch`: one trial without Ray (harness.alone)."""
    from harness.alone import main as alone

    alone()


if __name__ == "__main__":
    main()
