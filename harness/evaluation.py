"""Every item of a split predicted exactly once, and what that is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.data.augment import augmentation
from harness.data.sampling import candidates, random_subset
from harness.data.splits import Split, batches, test_batches
from harness.result import Metrics
from harness.trial import Trial


@dataclass(frozen=True)
class Evaluation:
    """Predictions for every item of a split, in index order."""

    prediction: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    loss: float
    confidence: npt.NDArray[np.float32] | None = None
    """Probability that the model gave to what it predicted; None where it gives none."""

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

    def metrics(self) -> Metrics:
        """As results keep them."""
        return Metrics(
            accuracy=self.accuracy,
            class_accuracy=self.class_accuracy,
            correct=self.correct,
            total=len(self.label),
            loss=self.loss if math.isfinite(self.loss) else None,
        )

    def columns(self) -> dict[str, npt.NDArray[np.number]]:
        """As predictions.npz keeps them."""
        found: dict[str, npt.NDArray[np.number]] = {"prediction": self.prediction.astype(np.int16)}
        found["label"] = self.label.astype(np.int16)
        return found if self.confidence is None else found | {"confidence": self.confidence.astype(np.float16)}


Item = TypeVar("Item")
"""What processes share out: batches."""


def precision_on(device: torch.device, asked: str) -> str:
    """fp32, bf16 or fp16: what `resources.precision` means on a device."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


class Processes(Protocol):
    """The processes that evaluate together: harness.processes.Ranks in a training, OneProcess elsewhere."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass."""

    def share(self, items: Iterable[Item]) -> Iterator[Item]:
        """This process's part; every process gets as many, so that some items may come more than once."""

    def gather(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors (b, ...) of all processes, one after the other; b may differ between processes."""


@dataclass(frozen=True)
class OneProcess:
    """This one alone, without Accelerate's global state."""

    precision: Callable[[], AbstractContextManager[Any]]

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass."""
        return self.precision()

    def share(self, items: Iterable[Item]) -> Iterator[Item]:
        """All of them."""
        return iter(items)

    def gather(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The same tensors."""
        return tensors


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, trial: Trial, processes: Processes) -> Evaluation:
    """Predict every item of a split exactly once, gathered by index. Raises RuntimeError if any was missed."""
    return _judged(_scores(model, test_batches(split, trial), len(split), processes), split.labels)


@torch.no_grad()
def vote(model: nn.Module, split: Split, trial: Trial, processes: Processes) -> Evaluation:
    """Predict every item of a split, as stored, from its scores' mean over `protocol.vote` passes (`test_vote`).

    A pass sees another random subset of the points and another augmentation, that of training. The official code makes
    299 such votes and keeps the best on the test split; this makes one. What is drawn depends on dataset and seed
    index, not on the method or the batch size: it is drawn for the whole split at once.
    """
    assert trial.data.points is not None and not split.sampled
    count, rule = trial.data.points, trial.data.sampling
    generator = torch.Generator(device=split.points.device)
    generator.manual_seed(trial.seeds.vote)
    augment = augmentation(trial.train.augment, up=trial.dataset.up)
    kept = torch.cat([candidates(clouds, count, rule) for _, clouds in batches(split.points)])
    scores = torch.zeros((), device=split.labels.device)
    for _ in range(trial.protocol.vote):
        clouds = augment(random_subset(kept, count, generator), generator)
        scores = scores + _scores(model, batches(clouds), len(split), processes)
    return _judged(scores / trial.protocol.vote, split.labels)


def _scores(
    model: nn.Module, clouds_by_index: Iterable[tuple[Tensor, Tensor]], items: int, processes: Processes
) -> Tensor:
    """(items, K) float32, from (indices, clouds) that hold every item at least once."""
    model.eval()
    found: list[tuple[Tensor, ...]] = []
    for indices, clouds in processes.share(clouds_by_index):
        with processes.autocast():
            scores = model(clouds).float()
        found.append(processes.gather((indices, scores)))
    (ordered,) = in_order(found, items)
    return ordered


def in_order(found: Sequence[tuple[Tensor, ...]], items: int) -> list[Tensor]:
    """(indices, values...) of many batches -> each of the values (items, ...) by index; what came twice counts once.

    Raises RuntimeError if any index was missed.
    """
    places, *values = (torch.cat(part) for part in zip(*found, strict=True))
    seen = torch.zeros(items, dtype=torch.bool, device=places.device)
    seen[places] = True
    if not bool(seen.all()):
        raise RuntimeError(f"evaluation missed {int((~seen).sum())} of {items} items")
    ordered = [torch.empty(items, *rows.shape[1:], dtype=rows.dtype, device=rows.device) for rows in values]
    for into, rows in zip(ordered, values, strict=True):
        into[places] = rows
    return ordered


def _judged(scores: Tensor, labels: Tensor) -> Evaluation:
    loss = F.cross_entropy(scores, labels)
    confidence = scores.softmax(1).amax(1).cpu().numpy()
    return Evaluation(scores.argmax(1).cpu().numpy(), labels.cpu().numpy(), loss.item(), confidence)
