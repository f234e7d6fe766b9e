"""Baselines that train nothing: what simple features alone reach. They put a leaderboard's numbers in proportion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]


def shape_features(clouds: Array, *, bins: int = 16) -> Array:
    """Histograms of each coordinate over [-1, 1], and the extents: (n, N, 3) -> (n, 3 * bins + 3)."""
    cell = np.clip(((clouds + 1) / 2 * bins).astype(np.int64), 0, bins - 1)  # (n, N, 3)
    histograms = (cell[..., None] == np.arange(bins)).mean(axis=1)  # (n, 3, bins)
    extents = clouds.max(axis=1) - clouds.min(axis=1)
    return np.concatenate([histograms.reshape(len(clouds), -1), extents], axis=1)


def nearest_neighbour(train: Array, labels: Labels, test: Array) -> Labels:
    """Label of the training cloud with the nearest standardised shape features; (n, N, 3), (n,), (m, N, 3) -> (m,)."""
    known, asked = shape_features(train), shape_features(test)
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    deviation[deviation == 0] = 1
    known, asked = (known - mean) / deviation, (asked - mean) / deviation
    distance = (asked**2).sum(1)[:, None] - 2 * asked @ known.T + (known**2).sum(1)
    return labels[distance.argmin(axis=1)]


BASELINES: dict[str, Callable[[Array, Labels, Array], Labels]] = {"nearest_neighbour": nearest_neighbour}
