"""One class per cloud."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.data.augment import Augmentation
from harness.data.dataset import Dataset, Declaration, PointClouds, combined_digest
from harness.data.dataset import Split as SplitName
from harness.data.sampling import train_points
from harness.data.splits import Split, at_test, load_split, load_splits, test_batches
from harness.errors import UserError
from harness.evaluation import Evaluation, Processes, evaluate, vote
from harness.method import Attached, Task, attach
from harness.models.encoder import Encoder
from harness.models.head import Headed, classification_loss
from harness.models.weights import data_root
from harness.settings import Train
from harness.tasks.definition import Batch, Splits, TaskDefinition, random_clouds
from harness.trial import Trial


class Classification(TaskDefinition[Split]):
    """Scores (B, K) of clouds (B, N, 3), from pooled tokens; judged by accuracy."""

    name: ClassVar[str] = "classification"
    baselines: ClassVar[bool] = True

    def problems(self, trial: Trial) -> list[tuple[str, str]]:
        """A rule of sampling for clouds that differ in size."""
        if trial.data.sampling == "resample":
            return [("data.sampling", "resample is for part segmentation: use random or fps")]
        return []

    def remembered(self, common: Mapping[str, Any], details: Mapping[str, Any]) -> Declaration:
        """Its clouds need not be on this machine."""
        return _Remembered(**common, own_fold=details.get("fold"))

    def details(self, dataset: Declaration) -> dict[str, Any]:
        """Which fold, where the dataset has some."""
        return {} if dataset.fold is None else {"fold": dataset.fold}

    def load(self, trial: Trial, device: torch.device) -> Splits[Split]:
        """As `load_splits` does."""
        return Splits(*load_splits(trial, device))

    def digest(self, dataset: Declaration) -> str:
        """Of both splits."""
        assert isinstance(dataset, Dataset)
        root = data_root()
        return combined_digest(dataset.load("train", root), dataset.load("test", root))

    def load_test(self, dataset: Declaration, device: torch.device) -> Split:
        """As `load_split` does."""
        assert isinstance(dataset, Dataset)
        return load_split(dataset, "test", device)

    def at_test(self, split: Split, trial: Trial) -> Split:
        """By `data.sampling`."""
        return at_test(split, trial)

    def clouds(self, split: Split, trial: Trial) -> Iterator[tuple[Tensor, Tensor]]:
        """By `data.sampling`."""
        return test_batches(split, trial)

    def batch(self, train: Split, rows: Tensor, trial: Trial, augment: Augmentation, noise: torch.Generator) -> Batch:
        """Clouds (B, N, 3) and their labels (B,)."""
        count, rule = trial.data.points, trial.data.sampling
        assert count is not None
        clouds = augment(train_points(train.points[rows], count, rule, noise), noise)
        return Batch((clouds,), train.labels[rows])

    def random_batch(self, trial: Trial, items: int) -> Batch:
        """Clouds without a shape, labels at random."""
        assert trial.data.points is not None
        clouds = random_clouds(items, trial.data.points)
        return Batch((clouds,), torch.randint(len(trial.dataset.classes), (items,)))

    def attach(self, trial: Trial, encoder: Encoder, *, train_items: int, head_dropout: float) -> Attached:
        """With the backbone's head on what the method pools."""
        task = Task(classes=len(trial.dataset.classes), train_items=train_items)
        return attach(trial.method, encoder, task, head=trial.backbone.head, head_dropout=head_dropout)

    def loss(self, scores: Tensor, targets: Tensor, settings: Train) -> Tensor:
        """Cross entropy of scores (B, K) and labels (B,)."""
        return classification_loss(scores, targets, label_smoothing=settings.label_smoothing)

    def evaluate(self, model: Headed, split: Split, trial: Trial, processes: Processes) -> Evaluation:
        """Accuracy."""
        return evaluate(model, split, trial, processes)

    def vote(self, model: Headed, split: Split, trial: Trial, processes: Processes) -> Evaluation:
        """From the scores' mean over the passes."""
        return vote(model, split, trial, processes)


@dataclass(frozen=True)
class _Remembered(Dataset):
    """A declaration read from a card; the clouds need not be on this machine."""

    own_fold: int | None = None

    @property
    def fold(self) -> int | None:
        """Which fold the adapter is of."""
        return self.own_fold

    def missing(self, root: Path) -> str | None:
        return f"dataset '{self.name}' is known from an adapter only; its clouds are not here"

    def load(self, split: SplitName, root: Path) -> PointClouds:
        raise UserError(str(self.missing(root)))
