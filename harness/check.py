"""`--check`: one dry training step of every distinct combination, before hours are spent on the others."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from harness.tasks import task_of
from harness.trial import Trial

BATCH = 4
CLOUDS = 16


@dataclass(frozen=True)
class DryStep:
    """What a dry step showed."""

    seconds: float
    """Of the second step; the first one warms up."""
    problem: str | None = None


def dry_step(trial: Trial) -> DryStep:
    """Two forward and backward passes on random clouds. Neither data nor weights are read."""
    task = task_of(trial.dataset)
    torch.manual_seed(0)
    try:
        encoder = trial.backbone.build(drop_path=trial.train.drop_path)
        attached = task.attach(trial, encoder, train_items=CLOUDS, head_dropout=trial.train.head_dropout)
        if attached.before_training is not None:
            attached.before_training(iter([task.random_batch(trial, CLOUDS).inputs[0]]))
        batch = task.random_batch(trial, BATCH)
        attached.model.train()
        for _ in range(2):
            began = time.perf_counter()
            task.loss(attached.model(*batch.inputs), batch.targets, trial.train).backward()
            seconds = time.perf_counter() - began
    except Exception as error:
        return DryStep(0.0, f"{type(error).__name__}: {error}")
    starved = attached.starved()
    return DryStep(seconds, f"no gradient reaches {', '.join(starved)}" if starved else None)


def combination(trial: Trial) -> tuple[str, ...]:
    """What makes one dry step differ from another: method, backbone, points, task, number of classes."""
    settings = (trial.method.model_dump_json(), trial.backbone.model_dump_json(exclude={"weights"}))
    return (
        trial.method_name,
        trial.backbone_name,
        *settings,
        str(trial.data.points),
        trial.dataset.task,
        str(len(trial.dataset.classes)),
    )
