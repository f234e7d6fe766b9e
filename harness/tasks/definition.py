"""The contract of a task: which labels are learnt, how a model tells them, and how its answers are judged.

A trial goes through it from its clouds to its numbers; the training loop, the building of models and the evaluation of
trained ones know no task by name. Tasks are found by their dataset (`harness.tasks.task_of`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.data.augment import Augmentation
from harness.data.dataset import Declaration
from harness.evaluation import Processes
from harness.headline import Headline, headline_of
from harness.method import Attached
from harness.models.encoder import Encoder
from harness.models.head import Headed
from harness.result import Metrics
from harness.settings import Train
from harness.trial import Trial

SplitT = TypeVar("SplitT", bound=Sized)


class Batch(NamedTuple):
    """What one step sees."""

    inputs: tuple[Tensor, ...]
    """What the model is called with; clouds (B, N, 3) float32 come first."""
    targets: Tensor
    """int64: what it should answer."""

    def part(self, rows: Callable[[Tensor], Tensor]) -> Batch:
        """Some of its rows."""
        return Batch(tuple(rows(tensor) for tensor in self.inputs), rows(self.targets))


class Splits(NamedTuple, Generic[SplitT]):
    """A trial's clouds on its device, and the SHA-256 of its data."""

    train: SplitT
    test: SplitT
    validation: SplitT | None
    digest: str


class Outcome(Protocol):
    """Every item of a split answered once."""

    def metrics(self) -> Metrics:
        """As results keep them."""

    def columns(self) -> Mapping[str, npt.NDArray[np.number]]:
        """As predictions.npz keeps them, in index order."""


class TaskDefinition(ABC, Generic[SplitT]):
    """A task. Has no state: what it works on is handed in."""

    name: ClassVar[str]
    """As declarations of datasets have it (`Declaration.task`)."""
    baselines: ClassVar[bool] = False
    """Whether harness.baselines can do it."""
    needs_gpu: ClassVar[bool] = False
    """Whether a trial is only predicted where there is no GPU."""

    @property
    def headline(self) -> Headline:
        """The number that a model is chosen and ranked by, and those beside it."""
        return headline_of(self.name)

    # What it can do, from declarations alone

    def problems(self, trial: Trial) -> list[tuple[str, str]]:
        """What makes a trial of this task impossible: the field that says so, or `backbone`, and why."""
        return []

    @abstractmethod
    def remembered(self, common: Mapping[str, Any], details: Mapping[str, Any]) -> Declaration:
        """The dataset that a saved adapter tells of: a declaration without clouds, whose `load` raises UserError."""

    def details(self, dataset: Declaration) -> dict[str, Any]:
        """What an adapter must tell of its dataset beside what all declarations have; JSON."""
        return {}

    # Clouds

    @abstractmethod
    def load(self, trial: Trial, device: torch.device) -> Splits[SplitT]:
        """Train, test and, if asked for, validation split. Raises UserError for files that are missing or wrong."""

    @abstractmethod
    def digest(self, dataset: Declaration) -> str:
        """The SHA-256 of the data that lies here, as `load` gives it. Raises UserError as `load` does."""

    @abstractmethod
    def load_test(self, dataset: Declaration, device: torch.device) -> SplitT:
        """The test split as it is stored."""

    @abstractmethod
    def at_test(self, split: SplitT, trial: Trial) -> SplitT:
        """The split with the points that the encoder sees at test, chosen once however often it is evaluated."""

    @abstractmethod
    def clouds(self, split: SplitT, trial: Trial) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices, clouds (B, N, 3) as the encoder sees them at test), in index order."""

    @abstractmethod
    def batch(self, train: SplitT, rows: Tensor, trial: Trial, augment: Augmentation, noise: torch.Generator) -> Batch:
        """Training clouds by index, with points chosen at random and augmented, and their targets.

        All randomness comes from `noise`, in an order that depends on neither method nor model.
        """

    @abstractmethod
    def random_batch(self, trial: Trial, items: int) -> Batch:
        """Noise in the shape of `batch`, for dry steps."""

    # The model

    @abstractmethod
    def attach(self, trial: Trial, encoder: Encoder, *, train_items: int, head_dropout: float) -> Attached:
        """The trial's method on an encoder, with this task's head."""

    @abstractmethod
    def loss(self, scores: Tensor, targets: Tensor, settings: Train) -> Tensor:
        """Of what the model says of a batch."""

    # Its worth

    @abstractmethod
    def evaluate(self, model: Headed, split: SplitT, trial: Trial, processes: Processes) -> Outcome:
        """Answer every item of a split exactly once, by index. Raises RuntimeError if any was missed."""

    @abstractmethod
    def vote(self, model: Headed, split: SplitT, trial: Trial, processes: Processes) -> Outcome:
        """Answer every item of a split, as stored, from `protocol.vote` passes."""

    def score(self, outcome: Outcome) -> float:
        """The headline number of an outcome, 0 to 1."""
        value: float = getattr(outcome.metrics(), self.headline.key)
        return value


def random_clouds(items: int, points: int) -> Tensor:
    """(items, points, 3) uniform in a cube around the origin."""
    return torch.rand(items, points, 3) - 0.5


def listed(names: Sequence[str]) -> str:
    """`16 (Airplane, Bag, Cap, …)`."""
    return f"{len(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
