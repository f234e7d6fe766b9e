"""A trial's clouds on its device: train, test, and what is held out of train for validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.data.dataset import PointClouds, combined_digest
from harness.data.sampling import test_points
from harness.models.weights import data_root
from harness.trial import Trial, validation_seed

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Split:
    """Clouds on the device."""

    points: Tensor
    """(n, N, 3) float32"""
    labels: Tensor
    """(n,) int64"""

    def __len__(self) -> int:
        return len(self.labels)


def load_splits(trial: Trial, device: torch.device) -> tuple[Split, Split, Split | None, str]:
    """Train, test and, if asked for, validation split on the device, and the data's digest."""
    root = data_root()
    train, test = trial.dataset.load("train", root), trial.dataset.load("test", root)
    held = carve_validation(train.labels, trial.protocol.validation_fraction, seed=validation_seed(trial.dataset.name))
    digest = combined_digest(train, test)

    def on_device(clouds: PointClouds, rows: npt.NDArray[np.bool_] | slice) -> Split:
        points, labels = torch.from_numpy(clouds.points[rows]), torch.from_numpy(clouds.labels[rows])
        return Split(points.float().to(device), labels.to(device))

    validation = on_device(train, held) if held.any() else None
    kept = ~held if held.any() else slice(None)  # all of it stays as it is mapped: no copy per process
    return on_device(train, kept), on_device(test, slice(None)), validation, digest


def carve_validation(labels: npt.NDArray[np.int64], fraction: float, *, seed: int) -> npt.NDArray[np.bool_]:
    """Which training items are held out: the same fraction of every class, at least one, by a fixed seed."""
    held = np.zeros(len(labels), dtype=bool)
    if fraction:
        generator = np.random.default_rng(seed)
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            held[members[: max(1, round(fraction * len(members)))]] = True
    return held


def test_batches(split: Split, trial: Trial) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, clouds as the encoder sees them at test), in index order."""
    count = trial.data.points
    assert count is not None
    for begin in range(0, len(split), EVALUATION_BATCH):
        indices = torch.arange(begin, min(begin + EVALUATION_BATCH, len(split)), device=split.labels.device)
        yield indices, test_points(split.points[indices], count, trial.data.sampling)
