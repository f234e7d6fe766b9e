"""What trials will cost, told before they run: memory, FLOPs and parameters, from shapes alone.

Trials that differ in seed, length, weights or data of one shape cost the same: one prediction serves all of them. It
takes seconds, and is kept in the user's cache for the next time:

    ~/.cache/pointpeft-harness/predictions/KEY.json

KEY follows from all that decides it, torch's version and the source of the harness and of the plug-ins included.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.atomic import write_atomically
from harness.children import in_children
from harness.measure.environment import code_digest, libraries
from harness.trial import Trial, canonical

FORMAT = 1

Progress = Callable[[int, int], None]
"""Called with how many are ready, and of how many."""


class Prediction(BaseModel):
    """Of one trial, in one of its processes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    memory: dict[str, int]
    """Bytes at the peak of training, by what they are for (harness.measure.estimate.Estimate)."""
    flops_forward: int
    """Per sample (docs/protocol.md)."""
    flops_train: int
    """Per training step, over all processes."""
    flops_repeated: int = 0
    """Per training step, by activation checkpointing."""
    trainable: int
    """Parameters."""
    total: int

    @property
    def peak(self) -> int:
        """Bytes: result.json's `memory.estimated`."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Unpredictable:
    """A trial that cannot be predicted, and why."""

    problem: str


def key_of(trial: Trial, *, precision: str) -> str:
    """Names all trials that cost the same. `precision` is fp32, bf16 or fp16."""
    spec, train, dataset = trial.spec(), trial.train, trial.dataset
    backbone = spec["backbone"]["settings"].copy()
    backbone.pop("weights", None)
    decides = {
        "format": FORMAT,
        "method": spec["method"],
        "backbone": spec["backbone"] | {"settings": backbone},
        "points": trial.data.points,
        "task": [dataset.task, len(dataset.classes), len(getattr(dataset, "parts", ())), dataset.train_items],
        "train": [train.batch_size, train.drop_path, train.head_dropout, train.label_smoothing],
        "frozen_batchnorm": trial.protocol.frozen_batchnorm,
        "processes": [trial.resources.processes, trial.resources.strategy],
        "activation_checkpointing": trial.resources.activation_checkpointing,
        "precision": precision,
        "versions": [libraries(), code_digest(type(trial.method), type(trial.backbone))],
    }
    return hashlib.sha256(canonical(decides).encode()).hexdigest()[:32]


def folder() -> Path | None:
    """Where predictions are kept; None for a user without a home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return base / "pointpeft-harness" / "predictions"


def known(key: str) -> Prediction | None:
    """The prediction of that key, when it is in the cache; what cannot be read is not there."""
    place = folder()
    if place is None:
        return None
    try:
        return Prediction.model_validate_json((place / f"{key}.json").read_bytes())
    except (OSError, ValidationError):
        return None


def predict(trial: Trial, *, precision: str) -> Prediction | Unpredictable:
    """Work a prediction out in this process, in seconds, and keep it where that can be done."""
    from harness.build import build_outline
    from harness.measure.estimate import estimate_memory
    from harness.measure.flops import repeated_flops, step_flops

    try:
        counts = build_outline(trial).counts
        flops = step_flops(trial)
        prediction = Prediction(
            memory=vars(estimate_memory(trial, precision=precision)),
            flops_forward=flops.forward,
            flops_train=flops.train,
            flops_repeated=repeated_flops(trial),
            trainable=counts.trainable,
            total=counts.total,
        )
    except Exception as error:  # a third party's method may do what tensors without values cannot
        return Unpredictable(f"{type(error).__name__}: {error}".splitlines()[0])
    if (place := folder()) is not None:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            write_atomically(place / f"{key_of(trial, precision=precision)}.json", prediction.model_dump_json())
    return prediction


def _predict(job: tuple[Trial, str]) -> Prediction | Unpredictable:
    trial, precision = job
    return predict(trial, precision=precision)


def precision_of(trial: Trial, *, gpu: bool) -> str:
    """What `auto` is taken for where the device is not at hand: bf16 on a GPU."""
    asked = trial.resources.precision
    return asked if asked != "auto" else "bf16" if gpu else "fp32"


class Predictions:
    """Of a suite's trials, for processors or for GPUs."""

    def __init__(self, trials: Iterable[Trial], *, gpu: bool) -> None:
        self._gpu = gpu
        self.trials: list[Trial] = []
        """Those that train."""
        self._keys: dict[str, str] = {}
        self._first: dict[str, Trial] = {}
        self._found: dict[str, Prediction | Unpredictable] = {}
        for trial in trials:
            if trial.baseline is None:
                self.trials.append(trial)
                key = self._keys[trial.identity] = key_of(trial, precision=self.precision(trial))
                self._first.setdefault(key, trial)
        for key in self._first:
            if (prediction := known(key)) is not None:
                self._found[key] = prediction

    def precision(self, trial: Trial) -> str:
        """Of a trial, as it is predicted."""
        return precision_of(trial, gpu=self._gpu)

    def key(self, trial: Trial) -> str:
        """Names all trials that cost the same."""
        return self._keys[trial.identity]

    def of(self, trial: Trial) -> Prediction | Unpredictable | None:
        """A trial's prediction; None when nobody has worked it out, or when it trains nothing."""
        return self._found.get(self._keys.get(trial.identity, ""))

    @property
    def missing(self) -> Sequence[Trial]:
        """One trial for each prediction that is still to be worked out."""
        return [trial for key, trial in self._first.items() if key not in self._found]

    def complete(self, progress: Progress = lambda ready, of: None) -> None:
        """Work out what is missing, in one process per core."""
        trials = self.missing
        jobs = [(trial, self.precision(trial)) for trial in trials]
        outcomes = in_children(_predict, jobs, preload="harness.measure.estimate", workers=os.cpu_count() or 1)
        for ready, (index, outcome) in enumerate(outcomes, start=1):
            died = Unpredictable("the process that worked it out died (out of memory?)")
            self._found[self._keys[trials[index].identity]] = outcome if outcome is not None else died
            progress(ready, len(jobs))
