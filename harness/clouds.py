"""The clouds that a trial was tested on, by item, for people to look at: small, centred, standing upright.

The dataset must be on this machine, and be the one that the trial saw: its labels are held against the stored ones.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness import registry
from harness.atomic import read_json
from harness.data.dataset import Dataset, Declaration, PartDataset
from harness.errors import UserError
from harness.mistakes import PartPredictions, Predictions
from harness.models.manifest import data_root
from harness.result import Result
from harness.trial_folder import ADAPTER_CARD, TrialFolder

CHEAP = 64_000_000
"""Bytes of a dataset's files that a report reads without being asked to."""


@dataclass(frozen=True, eq=False)
class Clouds:
    """Test clouds of a dataset."""

    dataset: Declaration
    points: npt.NDArray[np.floating]
    """(n, N, 3); for part segmentation the points that the encoder saw, in the order of the stored parts."""
    labels: npt.NDArray[np.int64]
    """(n,) classes, or (n, N) parts."""

    def fits(self, predictions: Predictions | PartPredictions) -> bool:
        """Whether these are the items that were predicted."""
        return np.array_equal(self.labels, predictions.label)

    def pictures(self, items: Sequence[int], points: int) -> list[str]:
        """Some of the clouds as base64 of int8 (P, 3), P at most `points`: right, up and towards the viewer, -127..127.

        Every cloud is centred and fills its box.
        """
        clouds = np.asarray(self.points[list(items)], np.float32)
        clouds = clouds[:, evenly(clouds.shape[1], points)]
        if self.dataset.up == "z":
            clouds = np.stack([clouds[..., 0], clouds[..., 2], -clouds[..., 1]], axis=-1)
        low, high = clouds.min(1, keepdims=True), clouds.max(1, keepdims=True)
        size = np.maximum((high - low).max(2, keepdims=True), 1e-9)
        scaled = np.rint(254 * (clouds - (low + high) / 2) / size).astype(np.int8)
        return [base64.b64encode(cloud.tobytes()).decode() for cloud in scaled]


def evenly(length: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many places of so many, evenly spaced."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(np.int64))


def declared(result: Result) -> Declaration:
    """The dataset of a result, at its fold. Raises UserError when it is not installed, or of another version."""
    wanted: Any = result.spec.get("dataset")
    if not isinstance(wanted, dict) or not isinstance(wanted.get("name"), str):
        raise UserError(f"trial {result.id}: its specification names no dataset")
    found: Declaration = registry.get("datasets", wanted["name"])
    if found.version != wanted.get("version"):
        raise UserError(
            f"dataset '{found.name}' is of version {found.version} here, and the trial saw version "
            f"{wanted.get('version')}: install the one that ran"
        )
    return found.with_fold(wanted["fold"]) if isinstance(wanted.get("fold"), int) else found


def is_cheap(dataset: Declaration) -> bool:
    """Whether its clouds are here and small, so that they may be read in passing."""
    root = data_root()
    return dataset.missing(root) is None and sum(path.stat().st_size for path in dataset.sources(root)) <= CHEAP


def clouds_of(result: Result, predictions: Predictions | PartPredictions) -> Clouds:
    """The test clouds of a trial.

    Raises UserError when the data are not here, are not those of the trial, or its task has no clouds to show.
    """
    try:
        dataset = declared(result)
    except UserError as error:
        raise UserError(f"the clouds cannot be shown: {error}") from None
    if (missing := dataset.missing(data_root())) is not None:
        raise UserError(f"the clouds cannot be shown: {missing}")
    found = load(dataset, result)
    if not found.fits(predictions):
        raise UserError(
            f"dataset '{dataset.name}' in {data_root()} is not the one that trial {result.id} was tested on: the "
            "stored labels differ; put the same files there, or run the trial again into another --output"
        )
    return found


def load(dataset: Declaration, result: Result) -> Clouds:
    """The test split, as the predictions of that result count it. Raises UserError for files that are wrong."""
    if isinstance(dataset, PartDataset):
        return _parts(dataset, result)
    if not isinstance(dataset, Dataset):
        raise UserError(f"dataset '{dataset.name}' is for {dataset.task}: there are no clouds of its own to show")
    split = dataset.load("test", data_root())
    return Clouds(dataset, split.points, split.labels)


def _parts(dataset: PartDataset, result: Result) -> Clouds:
    """The points that the encoder saw, and their parts: the draw at test is fixed (harness.data.parts)."""
    import torch

    from harness.data.parts import at_test, on_device

    seen: Any = result.spec.get("data")
    if not isinstance(seen, dict) or not isinstance(seen.get("points"), int):
        raise UserError(f"trial {result.id}: its specification does not say how many points it saw")
    split = at_test(
        on_device(dataset.load_test(data_root()), torch.device("cpu")), seen["points"], seen.get("sampling", "")
    )
    shape = (len(split), seen["points"])
    return Clouds(dataset, split.points.view(*shape, 3).numpy(), split.parts.view(shape).long().numpy())


def class_names(folder: TrialFolder | None, result: Result) -> tuple[str, ...]:
    """Names of a trial's classes (categories, for part segmentation); empty where nobody here knows them.

    As the card of its adapter has them, else as its dataset is declared here.
    """
    card = read_json(folder.path / ADAPTER_CARD) if folder is not None else None
    told = card.get("harness") if isinstance(card, dict) else None
    names = told.get("classes") if isinstance(told, dict) else None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    try:
        dataset = declared(result)
    except UserError:
        return ()
    return dataset.classes if dataset.fold is None else ()
