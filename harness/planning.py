"""What a suite will cost: memory, work, time and disk of its trials, from predictions and from results there are.

Nothing here is a measurement of the trials that are planned, and the output says so. Times are those of equal trials
that ran on the same processor, where the results folder has some; else the counted work over an assumed speed.
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.hardware import Hardware
from harness.prediction import Prediction, Predictions, Unpredictable
from harness.sharing import at_once
from harness.store import Store
from harness.trial import Trial

FILES = 60_000
"""Bytes of a trial's result, log, metrics and predictions; measured with the quickstart."""
BYTES = 4
"""Of a parameter that is kept."""


@dataclass(frozen=True)
class Cost:
    """Of one trial; None where it has not been predicted."""

    memory: int | None = None
    """Bytes at the peak of training, of one of its processes: `memory.estimated`."""
    flops_step: int | None = None
    """Of a training step."""
    flops: int | None = None
    """Of the whole trial: training and evaluation."""
    at_once: int | None = None
    """How many such trials fit one GPU by their memory; 0 when it is too small."""
    seconds: float | None = None
    """On the hardware that was asked for."""
    measured: bool = False
    """Whether `seconds` are those of an equal trial that ran on such hardware."""
    disk: int | None = None
    """Bytes that stay."""
    problem: str | None = None
    """Why it cannot be predicted."""


def evaluations(trial: Trial) -> int:
    """Clouds seen in evaluations: the test split, votes, and what the selection looks at in every epoch."""
    protocol, dataset = trial.protocol, trial.dataset
    every = {"last": 0, "validation": held_out(trial), "paper": dataset.test_items}[protocol.selection]
    return dataset.test_items * (1 + protocol.vote) + every * trial.train.passes


def steps(trial: Trial) -> int:
    """Training steps of a trial."""
    return trial.train.passes * ((trial.dataset.train_items - held_out(trial)) // trial.train.batch_size)


def held_out(trial: Trial) -> int:
    """Training clouds that validate, but for the rounding class by class."""
    return round(trial.dataset.train_items * trial.protocol.validation_fraction)


class Planner:
    """Costs of a suite's trials on some hardware."""

    def __init__(self, predictions: Predictions, *, hardware: Hardware | None, store: Store) -> None:
        self.predictions, self.hardware = predictions, hardware
        self._speeds = _measured(predictions, hardware, store) if hardware is not None else {}

    def cost(self, trial: Trial) -> Cost:
        """Of one trial; a baseline trains nothing, and costs nothing worth planning."""
        if trial.baseline is not None:
            return Cost(disk=FILES)
        found = self.predictions.of(trial)
        if isinstance(found, Unpredictable):
            return Cost(problem=found.problem)
        if found is None:
            return Cost()
        flops = found.flops_train * steps(trial) + found.flops_forward * evaluations(trial)
        seconds, measured = self._seconds(trial, found, flops)
        return Cost(
            memory=found.peak,
            flops_step=found.flops_train,
            flops=flops,
            at_once=at_once(found.peak, self.hardware.memory) if self.hardware and self.hardware.gpu else None,
            seconds=seconds,
            measured=measured,
            disk=FILES + BYTES * found.trainable if trial.keep != "none" else FILES,
        )

    def _seconds(self, trial: Trial, found: Prediction, flops: int) -> tuple[float | None, bool]:
        if self.hardware is None:
            return None, False
        speed = self._speeds.get(self.predictions.key(trial))
        if speed is not None:
            return flops / speed, True
        precision = self.predictions.precision(trial)
        flops += found.flops_repeated * steps(trial)
        return self.hardware.seconds(flops / trial.processes, precision=precision), False


def _measured(predictions: Predictions, hardware: Hardware, store: Store) -> dict[str, float]:
    """FLOP per second of whole trials that ran on such hardware, by the key of their prediction."""
    rates: dict[str, list[float]] = {}
    for trial in predictions.trials:
        result = store.trial(trial.identity).result()
        if result is None or result.status != "done" or not result.time.total or not result.compute.flops_train:
            continue
        ran_on = result.environment.get("gpu") or result.environment.get("cpu")
        if ran_on != hardware.name or result.environment.get("gpu_share"):
            continue
        done = result.compute.flops_train * steps(trial) + (result.compute.flops_forward or 0) * evaluations(trial)
        rates.setdefault(predictions.key(trial), []).append(done / result.time.total)
    return {key: statistics.median(found) for key, found in rates.items()}


def makespan(seconds: Iterable[float], *, slots: int) -> float:
    """Seconds until the last of some trials has ended, longest first on so many slots."""
    free = [0.0] * slots
    for length in sorted(seconds, reverse=True):
        heapq.heappush(free, heapq.heappop(free) + length)
    return max(free)


@dataclass(frozen=True)
class Total:
    """Of the trials that are to run."""

    trials: int
    unknown: int
    """Trials without a prediction; the sums leave them out."""
    flops: int
    processor_seconds: float | None
    """GPU seconds, or those of cores."""
    wall_seconds: float | None
    disk: int


def total(trials: Sequence[Trial], costs: Sequence[Cost], *, slots: int) -> Total:
    """Sums over trials on `slots` GPUs or cores."""
    known = [(trial, cost) for trial, cost in zip(trials, costs, strict=True) if cost.flops is not None]
    lengths = [cost.seconds for _, cost in known if cost.seconds is not None]
    timed = len(lengths) == len(known)
    used = sum(cost.seconds * trial.processes for trial, cost in known if cost.seconds is not None)
    return Total(
        trials=len(trials),
        unknown=sum(trial.baseline is None for trial in trials) - len(known),
        flops=sum(cost.flops or 0 for _, cost in known),
        processor_seconds=used if timed else None,
        wall_seconds=max(makespan(lengths, slots=slots), used / slots) if timed else None,
        disk=sum(cost.disk or 0 for cost in costs),
    )
