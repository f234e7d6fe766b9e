"""What a trial got wrong: its stored predictions, read back, and which of them to look at first.

Files come from other machines: no more than a bounded part of each is read, and what is damaged or of another shape
reads as absent.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

LARGEST = 8_000_000
"""Bytes of a predictions file of whole clouds, unpacked, that are read: its columns of some hundred thousand items."""
LARGEST_PARTS = 256_000_000
"""The same where every point has a prediction."""

MOST_PARTS = 1_000


@dataclass(frozen=True, eq=False)
class Predictions:
    """Classes predicted and true of every test item (N,), in the order of the test split."""

    prediction: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    confidence: npt.NDArray[np.float32] | None = None
    """(N,) probability that the model gave to its prediction, NaN where it gave none; None where it was not stored."""

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Which items are right."""
        return self.prediction == self.label


@dataclass(frozen=True, eq=False)
class PartPredictions:
    """Parts told and true of every seen point (N, P) of every test item, and the items' categories (N,)."""

    prediction: npt.NDArray[np.int32]
    label: npt.NDArray[np.int32]
    category: npt.NDArray[np.int32]


class Confusion(NamedTuple):
    """How many items of one class were taken for another."""

    true: int
    predicted: int
    items: int


def read_predictions(path: Path) -> Predictions | None:
    """predictions.npz of a classification; None when there is none, or it is of another shape, too large or damaged."""
    columns = _columns(path, ("prediction", "label"), LARGEST)
    if columns is None:
        return None
    prediction, label = columns["prediction"], columns["label"]
    if prediction.ndim != 1 or prediction.shape != label.shape or not prediction.size or label.min() < 0:
        return None
    if not (_whole(prediction) and _whole(label)):
        return None
    confidence = columns.get("confidence")
    if confidence is not None and (confidence.dtype.kind != "f" or confidence.shape != label.shape):
        confidence = None
    known = None if confidence is None else confidence.astype(np.float32)
    return Predictions(prediction.astype(np.int32), label.astype(np.int32), known)


def read_part_predictions(path: Path) -> PartPredictions | None:
    """predictions.npz of a part segmentation; None as `read_predictions`."""
    names = ("prediction", "label", "category")
    columns = _columns(path, names, LARGEST_PARTS)
    if columns is None or not all(_whole(columns[name]) for name in names):
        return None
    prediction, label, category = (columns[name] for name in names)
    if prediction.ndim != 2 or prediction.shape != label.shape or category.shape != prediction.shape[:1]:
        return None
    if not prediction.size or min(prediction.min(), label.min(), category.min()) < 0:
        return None
    if max(prediction.max(), label.max(), category.max()) >= MOST_PARTS:
        return None
    return PartPredictions(*(column.astype(np.int32) for column in (prediction, label, category)))


def _whole(column: npt.NDArray[np.generic]) -> bool:
    return column.dtype.kind in "iu"


def _columns(path: Path, wanted: Sequence[str], most: int) -> dict[str, npt.NDArray[np.generic]] | None:
    """Those columns, and the confidence where there is one; None when one is missing, or the file cannot be used."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > most:
                return None
            there = set(archive.namelist())
            kept = [*wanted, *(["confidence"] if "confidence.npy" in there else [])]
            return {name: _column(archive.read(f"{name}.npy")) for name in kept}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return None


def _column(content: bytes) -> npt.NDArray[np.generic]:
    found: npt.NDArray[np.generic] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    return found


def confused(predictions: Predictions, most: int) -> list[Confusion]:
    """The pairs of classes that are most often confused, the most frequent first."""
    wrong = ~predictions.right
    pairs = np.stack([predictions.label[wrong], predictions.prediction[wrong]], axis=1)
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [Confusion(int(kinds[k, 0]), int(kinds[k, 1]), int(counts[k])) for k in order]


def worst(predictions: Predictions, most: int) -> list[int]:
    """Wrong items: those that the model was surest of first; where that is not stored, those of frequent mistakes."""
    items = np.flatnonzero(~predictions.right)
    if predictions.confidence is not None and np.isfinite(predictions.confidence[items]).all():
        keys: npt.NDArray[Any] = predictions.confidence[items]
    else:
        pairs = np.stack([predictions.label[items], predictions.prediction[items]], axis=1)
        _, kind, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
        keys = counts[kind.reshape(-1)]
    return [int(item) for item in items[np.argsort(-keys, kind="stable")[:most]]]


def shape_miou(
    prediction: npt.NDArray[np.integer], label: npt.NDArray[np.integer], own: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """(n,): of parts told and true (n, N), the mean over a cloud's own parts (n, parts) of intersection over union.

    A part that is neither told nor true in the cloud counts 1 (docs/part_segmentation.md).
    """
    items, parts = own.shape
    cells = np.arange(items)[:, None] * parts

    def counts(values: npt.NDArray[np.integer], where: npt.NDArray[np.bool_] | slice) -> npt.NDArray[np.int64]:
        return np.bincount((cells + values)[where].ravel(), minlength=items * parts).reshape(items, parts)

    both = counts(label, prediction == label)
    either = counts(label, slice(None)) + counts(prediction, slice(None)) - both
    iou = np.where(either == 0, 1.0, both / np.maximum(either, 1))  # (n, parts)
    mean: npt.NDArray[np.float64] = (iou * own).sum(1) / own.sum(1)
    return mean


def own_parts(predictions: PartPredictions) -> npt.NDArray[np.bool_]:
    """(n, parts): the parts that occur, told or true, in clouds of an item's category."""
    parts = 1 + int(max(predictions.prediction.max(), predictions.label.max()))
    table = np.zeros((1 + int(predictions.category.max()), parts), bool)
    for values in (predictions.prediction, predictions.label):
        table[predictions.category[:, None], values] = True
    return table[predictions.category]
