"""Every item of a split predicted exactly once, and what that is worth."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.data.splits import Split, test_batches
from harness.result import Metrics
from harness.trial import Trial


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

    def metrics(self, *, validation_accuracy: float | None = None) -> Metrics:
        """As results keep them."""
        return Metrics(
            accuracy=self.accuracy,
            class_accuracy=self.class_accuracy,
            correct=self.correct,
            total=len(self.label),
            loss=self.loss if math.isfinite(self.loss) else None,
            validation_accuracy=validation_accuracy,
        )


class Processes(Protocol):
    """The processes that evaluate together: an Accelerator in a training, OneProcess elsewhere."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass."""

    def gather(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors of all processes, one after the other."""


@dataclass(frozen=True)
class OneProcess:
    """This one alone, without Accelerate's global state."""

    precision: Callable[[], AbstractContextManager[Any]]

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass."""
        return self.precision()

    def gather(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The same tensors."""
        return tensors


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, trial: Trial, processes: Processes) -> Evaluation:
    """Predict every item of a split exactly once, gathered by index. Raises RuntimeError if any was missed."""
    model.eval()
    seen = torch.zeros(len(split), dtype=torch.bool, device=split.labels.device)
    prediction = torch.zeros(len(split), dtype=torch.long, device=split.labels.device)
    loss = torch.zeros((), device=split.labels.device)
    for indices, clouds in test_batches(split, trial):
        with processes.autocast():
            scores = model(clouds).float()
        indices, guess, part = processes.gather(
            (indices, scores.argmax(1), F.cross_entropy(scores, split.labels[indices], reduction="sum")[None])
        )
        seen[indices] = True
        prediction[indices] = guess
        loss += part.sum()
    if not bool(seen.all()):
        raise RuntimeError(f"evaluation missed {int((~seen).sum())} of {len(split)} items")
    return Evaluation(prediction.cpu().numpy(), split.labels.cpu().numpy(), loss.item() / len(split))
