"""One part per point, the cloud's category given (ShapeNetPart; Yi et al., SIGGRAPH Asia 2016).

docs/part_segmentation.md says what is official and what is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.data.augment import Augmentation
from harness.data.dataset import Declaration, PartClouds, PartDataset, combined_digest
from harness.data.parts import PartSplit, at_test, on_device, positions, test_batches
from harness.data.splits import carve_validation
from harness.errors import UserError
from harness.evaluation import Processes, in_order
from harness.method import Attached, Task, attach_with
from harness.mistakes import shape_miou
from harness.models.encoder import Encoder
from harness.models.head import Headed, classification_loss
from harness.models.segmentation import PartHead, Segmenter, thirds
from harness.models.weights import data_root
from harness.result import Metrics
from harness.settings import Train
from harness.tasks.definition import Batch, Splits, TaskDefinition, random_clouds
from harness.trial import Trial, validation_seed

Parts = npt.NDArray[np.uint8 | np.int16]


@dataclass(frozen=True)
class PartEvaluation:
    """Parts told for every seen point of every cloud of a split, in index order."""

    prediction: Parts
    """(n, N): of the parts of the cloud's own category alone"""
    label: Parts
    """(n, N)"""
    category: npt.NDArray[np.int64]
    """(n,)"""
    allowed: npt.NDArray[np.bool_]
    """(categories, parts): which parts a category has"""
    names: tuple[str, ...]
    """Of the categories."""
    loss: float

    @cached_property
    def shape_miou(self) -> npt.NDArray[np.float64]:
        """(n,): the mean, over the parts of a cloud's category, of intersection over union.

        A part that is neither told nor true in the cloud counts 1.
        """
        return shape_miou(self.prediction, self.label, self.allowed[self.category])

    @property
    def category_miou(self) -> dict[str, float]:
        """The mean over a category's shapes, of categories that have any."""
        present = np.unique(self.category)
        return {self.names[c]: float(self.shape_miou[self.category == c].mean()) for c in present}

    def metrics(self) -> Metrics:
        """As results keep them."""
        by_category = self.category_miou
        return Metrics(
            instance_miou=float(self.shape_miou.mean()),
            class_miou=float(np.mean(list(by_category.values()))),
            point_accuracy=float((self.prediction == self.label).mean()),
            category_miou=by_category,
            total=len(self.label),
            loss=self.loss if np.isfinite(self.loss) else None,
        )

    def columns(self) -> dict[str, npt.NDArray[np.number]]:
        """As predictions.npz keeps them: all that the numbers are computed from."""
        return {"prediction": self.prediction, "label": self.label, "category": self.category.astype(np.int16)}


class PartSegmentation(TaskDefinition[PartSplit]):
    """Scores (B, N, parts) of clouds (B, N, 3) and their categories (B,); judged by instance mIoU."""

    name: ClassVar[str] = "part segmentation"

    def problems(self, trial: Trial) -> list[tuple[str, str]]:
        """Encoders without patch tokens of one width in thirds; rules of sampling and voting that are for classes."""
        found = []
        if trial.backbone.hierarchical:
            reason = (
                "its tokens become fewer and wider on the way, and the head reads tokens of one kind at three depths"
            )
            found.append(("backbone", f"{trial.backbone_name} cannot do part segmentation here: {reason}"))
        elif (depth := getattr(trial.backbone, "depth", 3)) < 3:
            found.append(("backbone", f"part segmentation reads tokens at three depths, and depth is {depth}"))
        if trial.data.sampling == "fps":
            found.append(("data.sampling", "fps is for clouds of one size: use random or resample"))
        if trial.protocol.vote:
            found.append(("protocol.vote", "voting is for classification, whose passes answer for one cloud: set 0"))
        return found

    def details(self, dataset: Declaration) -> dict[str, Any]:
        """The parts of each category."""
        return {"parts": [list(own) for own in _parts(dataset)]}

    def remembered(self, common: Mapping[str, Any], details: Mapping[str, Any]) -> Declaration:
        """Its clouds need not be on this machine."""
        return _Remembered(**common, parts=tuple(tuple(own) for own in details["parts"]))

    def load(self, trial: Trial, device: torch.device) -> Splits[PartSplit]:
        """Validation is carved by category."""
        dataset, root = trial.dataset, data_root()
        assert isinstance(dataset, PartDataset)
        train, test = dataset.load_train(root), dataset.load_test(root)
        seed = validation_seed(trial.split_name, trial.protocol.validation_seed)
        held = torch.from_numpy(carve_validation(train.categories, trial.protocol.validation_fraction, seed=seed))
        digest, whole = combined_digest(train, test), on_device(train, device)
        validation = whole.rows(held) if held.any() else None
        return Splits(whole.rows(~held), on_device(test, device), validation, digest)

    def digest(self, dataset: Declaration) -> str:
        """Of both splits."""
        assert isinstance(dataset, PartDataset)
        root = data_root()
        return combined_digest(dataset.load_train(root), dataset.load_test(root))

    def load_test(self, dataset: Declaration, device: torch.device) -> PartSplit:
        """All points of the test clouds."""
        assert isinstance(dataset, PartDataset)
        return on_device(dataset.load_test(data_root()), device)

    def at_test(self, split: PartSplit, trial: Trial) -> PartSplit:
        """By `data.sampling`."""
        return at_test(split, *_seen(trial))

    def clouds(self, split: PartSplit, trial: Trial) -> Iterator[tuple[Tensor, Tensor]]:
        """By `data.sampling`."""
        return ((rows, points) for rows, points, _ in test_batches(split, *_seen(trial)))

    def batch(
        self, train: PartSplit, rows: Tensor, trial: Trial, augment: Augmentation, noise: torch.Generator
    ) -> Batch:
        """Clouds (B, N, 3), categories (B,), and the points' parts (B, N)."""
        chosen = positions(train.lengths[rows], *_seen(trial), noise, longest=train.longest)
        points, parts = train.take(rows, chosen)
        return Batch((augment(points, noise), train.categories[rows]), parts)

    def random_batch(self, trial: Trial, items: int) -> Batch:
        """Clouds without a shape, categories and parts at random."""
        count, _ = _seen(trial)
        categories = torch.randint(len(trial.dataset.classes), (items,))
        parts = torch.randint(_number_of_parts(trial.dataset), (items, count))
        return Batch((random_clouds(items, count), categories), parts)

    def attach(self, trial: Trial, encoder: Encoder, *, train_items: int, head_dropout: float) -> Attached:
        """With the segmentation head on patch tokens of three depths."""
        parts, dataset = _number_of_parts(trial.dataset), trial.dataset
        dim, blocks = encoder.dim, thirds(len(encoder.blocks))

        def segmenter(adapted: nn.Module) -> Segmenter:
            head = PartHead(dim=dim, categories=len(dataset.classes), parts=parts, dropout=head_dropout)
            return Segmenter(encoder=adapted, blocks=blocks, head=head)

        return attach_with(trial.method, encoder, Task(parts, train_items, pooled=False), segmenter)

    def loss(self, scores: Tensor, targets: Tensor, settings: Train) -> Tensor:
        """Cross entropy over all points, and all parts whatever the category (official: nll_loss of log_softmax)."""
        return classification_loss(scores.flatten(0, 1), targets.flatten(), label_smoothing=settings.label_smoothing)

    @torch.no_grad()
    def evaluate(self, model: Headed, split: PartSplit, trial: Trial, processes: Processes) -> PartEvaluation:
        """Instance and class mIoU; each point gets the likeliest of the parts of its cloud's category."""
        model.eval()
        allowed = _allowed(trial.dataset).to(split.categories.device)
        split, found = self.at_test(split, trial), []
        for rows, points, parts in processes.share(test_batches(split, *_seen(trial))):
            categories = split.categories[rows]
            with processes.autocast():
                scores = model(points, categories).float()  # (B, N, parts)
            loss = F.cross_entropy(scores.transpose(1, 2), parts, reduction="none").mean(1)
            told = scores.masked_fill(~allowed[categories][:, None], -torch.inf).argmax(-1)
            found.append(processes.gather((rows, told.to(split.parts.dtype), loss)))
        prediction, losses = in_order(found, len(split))
        return PartEvaluation(
            prediction=prediction.cpu().numpy(),
            label=split.parts.view(len(split), -1).cpu().numpy(),
            category=split.categories.cpu().numpy(),
            allowed=allowed.cpu().numpy(),
            names=trial.dataset.classes,
            loss=losses.mean().item(),
        )

    def vote(self, model: Headed, split: PartSplit, trial: Trial, processes: Processes) -> PartEvaluation:
        """Is refused before anything runs (`problems`)."""
        raise NotImplementedError


def _seen(trial: Trial) -> tuple[int, str]:
    """How many points of a cloud the encoder sees, and which."""
    assert trial.data.points is not None
    return trial.data.points, trial.data.sampling


def _parts(dataset: Declaration) -> tuple[tuple[int, ...], ...]:
    assert isinstance(dataset, PartDataset)
    return dataset.parts


def _number_of_parts(dataset: Declaration) -> int:
    return 1 + max(part for own in _parts(dataset) for part in own)


def _allowed(dataset: Declaration) -> Tensor:
    """(categories, parts) bool: which parts a category has."""
    table = torch.zeros(len(dataset.classes), _number_of_parts(dataset), dtype=torch.bool)
    for category, own in enumerate(_parts(dataset)):
        table[category, list(own)] = True
    return table


@dataclass(frozen=True)
class _Remembered(PartDataset):
    """A declaration read from a card; the clouds need not be on this machine."""

    def missing(self, root: Path) -> str | None:
        return f"dataset '{self.name}' is known from an adapter only; its clouds are not here"

    def load_train(self, root: Path) -> PartClouds:
        raise UserError(str(self.missing(root)))

    def load_test(self, root: Path) -> PartClouds:
        raise UserError(str(self.missing(root)))
