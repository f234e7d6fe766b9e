"""The model of a trial: encoder, pre-trained weights, method and head; also for one that was trained before."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.method import Attached
from harness.models.encoder import Encoder
from harness.models.weights import load_weights
from harness.tasks import task_of
from harness.trial import Trial


def build(
    trial: Trial, *, device: torch.device, train_items: int, train: Any = None
) -> tuple[Attached, dict[str, str]]:
    """The attached model of a trial on a device, as it is before training, and the digest of its pre-trained weights.

    Without the training clouds (a split of the trial's task) the frozen statistics of random weights are not set: a
    saved adapter brings them.
    """
    torch.manual_seed(trial.seeds.initialisation)
    encoder = _encoder(trial)
    digests: dict[str, str] = {}
    if trial.backbone.weights != "random":
        digests["weights"] = load_weights(encoder, trial.backbone.weights)
    encoder.to(device)
    if train is not None and trial.backbone.weights == "random" and trial.protocol.frozen_batchnorm == "running":
        _calibrate(encoder, train, trial)
    attached = task_of(trial.dataset).attach(
        trial, encoder, train_items=train_items, head_dropout=trial.train.head_dropout
    )
    attached.model.to(device)
    return attached, digests


def build_outline(trial: Trial, *, train_items: int | None = None) -> Attached:
    """The attached model of a trial on the meta device, in training mode: shapes without values, in no memory.

    Weights are not read. `train_items` are the training clouds, which some methods remember; as many as the dataset
    declares when not given.
    """
    items = trial.dataset.train_items if train_items is None else train_items
    task = task_of(trial.dataset)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # some methods draw numbers all the same
        encoder = _encoder(trial)
        attached = task.attach(trial, encoder, train_items=items, head_dropout=trial.train.head_dropout)
    set_training(attached.model, frozen_batchnorm=trial.protocol.frozen_batchnorm)
    return attached


def _encoder(trial: Trial) -> Encoder:
    """With random weights, as the trial trains it."""
    encoder = trial.backbone.build(drop_path=trial.train.drop_path)
    encoder.activation_checkpointing = trial.resources.activation_checkpointing
    return encoder


@torch.no_grad()
def _calibrate(encoder: Encoder, train: Any, trial: Trial) -> None:
    """Set the running statistics of random weights from the training clouds.

    Frozen batch norms with mean 0 and variance 1 would make random weights look worse than they are.
    """
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    encoder.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average over all batches
    for _, clouds in task_of(trial.dataset).clouds(train, trial):
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
