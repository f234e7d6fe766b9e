"""Finished trials of every method, and what their models say."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.data.splits import EVALUATION_BATCH
from harness.models.point_mae import PointMAE
from harness.models.weights import data_root
from harness.trial import Trial

WEIGHTS_NAME = "point_mae_tiny_parts"


def on(weights: str) -> PointMAE:
    return PointMAE(preset="tiny", groups=8, group_size=8, weights=weights)


@dataclass(frozen=True)
class Finished:
    """A trial that has just been trained here."""

    trial: Trial
    path: Path
    seen: Tensor
    """Test clouds as the encoder sees them (n, points, 3)."""
    scores: Tensor
    """What the trained model, still in memory, says of them (n, K)."""


Finish = Callable[..., Finished]


@torch.no_grad()
def logits(model: torch.nn.Module, seen: Tensor) -> Tensor:
    return torch.cat([model.eval()(clouds) for clouds in seen.split(EVALUATION_BATCH)])


def predictions(path: Path) -> np.ndarray:
    with np.load(path / "predictions.npz") as stored:
        found: np.ndarray = stored["prediction"]
        return found


def stored_clouds(trial: Trial) -> np.ndarray:
    return trial.dataset.load("test", data_root()).points
