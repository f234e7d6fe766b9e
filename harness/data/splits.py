"""A trial's clouds on its device: train, test, and what is held out of train for validation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.data.dataset import Dataset, PointClouds, combined_digest
from harness.data.dataset import Split as SplitName
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
    sampled: bool = False
    """The points are those that the encoder sees at test (`at_test`)."""

    def __len__(self) -> int:
        return len(self.labels)


def load_splits(trial: Trial, device: torch.device) -> tuple[Split, Split, Split | None, str]:
    """Train, test and, if asked for, validation split on the device, and the data's digest."""
    root = data_root()
    assert isinstance(trial.dataset, Dataset)
    train, test = trial.dataset.load("train", root), trial.dataset.load("test", root)
    seed = validation_seed(trial.split_name, trial.protocol.validation_seed)
    held = carve_validation(train.labels, trial.protocol.validation_fraction, seed=seed)
    digest = combined_digest(train, test)

    validation = _on_device(train, held, device) if held.any() else None
    kept = ~held if held.any() else slice(None)  # all of it stays as it is mapped: no copy per process
    return _on_device(train, kept, device), _on_device(test, slice(None), device), validation, digest


def load_split(dataset: Dataset, split: SplitName, device: torch.device) -> Split:
    """One split of a dataset as it is stored, on the device."""
    return _on_device(dataset.load(split, data_root()), slice(None), device)


def _on_device(clouds: PointClouds, rows: npt.NDArray[np.bool_] | slice, device: torch.device) -> Split:
    points, labels = torch.from_numpy(clouds.points[rows]), torch.from_numpy(clouds.labels[rows])
    return Split(points.float().to(device), labels.to(device))


def carve_validation(labels: npt.NDArray[np.int64], fraction: float, *, seed: int) -> npt.NDArray[np.bool_]:
    """Which training items are held out: the same fraction of every class, at least one, by a fixed seed."""
    held = np.zeros(len(labels), dtype=bool)
    if fraction:
        generator = np.random.default_rng(seed)
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            held[members[: max(1, round(fraction * len(members)))]] = True
    return held


def at_test(split: Split, trial: Trial) -> Split:
    """The split with the points that the encoder sees at test, chosen once however often it is evaluated."""
    return Split(torch.cat([clouds for _, clouds in test_batches(split, trial)]), split.labels, sampled=True)


def test_batches(split: Split, trial: Trial) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, clouds as the encoder sees them at test), in index order."""
    count = trial.data.points
    assert count is not None
    for indices, clouds in batches(split.points):
        yield indices, clouds if split.sampled else test_points(clouds, count, trial.data.sampling)


def batches(clouds: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, clouds) in index order, as many at a time as are evaluated together."""
    for begin in range(0, len(clouds), EVALUATION_BATCH):
        indices = torch.arange(begin, min(begin + EVALUATION_BATCH, len(clouds)), device=clouds.device)
        yield indices, clouds[begin : begin + EVALUATION_BATCH]
