"""The result of a trial that is for its cost alone, where there is no GPU to measure it on."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch

from harness.build import build_outline
from harness.errors import UserError
from harness.measure.environment import environment
from harness.prediction import Unpredictable, key_of, known, precision_of, predict
from harness.result import Compute, Memory, Parameters, Result, Time
from harness.tasks import task_of
from harness.trial import Trial

PREDICTED = "no GPU here: this trial was predicted, not run"


def predicted_result(trial: Trial, *, git: str | None) -> Result:
    """Parameters, FLOPs and memory from shapes alone; everything else is null, and says why. Raises UserError."""
    began = time.perf_counter()
    precision = precision_of(trial, gpu=True)
    found = known(key_of(trial, precision=precision)) or predict(trial, precision=precision)
    if isinstance(found, Unpredictable):
        raise UserError(f"cannot be predicted: {found.problem}")
    result = Result(
        id=trial.identity,
        spec=trial.spec(),
        status="done",
        parameters=Parameters(**asdict(build_outline(trial).counts)),
        memory=Memory(estimated=found.peak),
        compute=Compute(flops_forward=found.flops_forward, flops_train=found.flops_train),
        task=trial.dataset.task,
        digests={"data": task_of(trial.dataset).digest(trial.dataset)},
        time=Time(total=time.perf_counter() - began),
        environment=environment(torch.device("cpu"), precision=precision, threads=torch.get_num_threads(), git=git),
    )
    for section in ("memory", "time", "compute", "storage"):
        empty = [key for key, value in getattr(result, section).model_dump().items() if value is None]
        result.reasons |= {f"{section}.{key}": PREDICTED for key in empty}
    return result
