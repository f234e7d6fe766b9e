"""`--check`: one dry training step of every distinct combination, before hours are spent on the others."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from harness.method import Task, attach
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
    count = trial.data.points
    assert count is not None
    torch.manual_seed(0)
    try:
        encoder = trial.backbone.build(drop_path=trial.train.drop_path)
        attached = attach(trial.method, encoder, Task(len(trial.dataset.classes), CLOUDS), head=trial.backbone.head)
        clouds, labels = (
            torch.rand(CLOUDS, count, 3) - 0.5,
            torch.randint(len(trial.dataset.classes), (BATCH,)),
        )
        if attached.before_training is not None:
            attached.before_training(iter([clouds]))
        attached.model.train()
        for _ in range(2):
            began = time.perf_counter()
            F.cross_entropy(attached.model(clouds[:BATCH]), labels).backward()
            seconds = time.perf_counter() - began
    except Exception as error:
        return DryStep(0.0, f"{type(error).__name__}: {error}")
    starved = attached.starved()
    return DryStep(seconds, f"no gradient reaches {', '.join(starved)}" if starved else None)


def combination(trial: Trial) -> tuple[str, ...]:
    """What makes one dry step differ from another: method, backbone, points, number of classes."""
    settings = (trial.method.model_dump_json(), trial.backbone.model_dump_json(exclude={"weights"}))
    return (
        trial.method_name,
        trial.backbone_name,
        *settings,
        str(trial.data.points),
        str(len(trial.dataset.classes)),
    )
