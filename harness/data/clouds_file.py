"""The file of a dataset that the harness wrote: safetensors of `points` (n, N, 3), `labels` (n,) and `test` (n,)."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from harness.data.dataset import Declaration, PointClouds, Split, check_clouds
from harness.errors import UserError


def read_split(path: Path, split: Split, *, declared: Declaration, digest: str, again: str) -> PointClouds:
    """One split of the file. Raises UserError when it is not of this digest, or not as declared; `again` mends it."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {again}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise UserError(f"{path}: digest {found[:12]} is not the {digest[:12]} of its card; {again}")
    try:
        tensors = load(content)
        points, labels, test = (tensors[key] for key in ("points", "labels", "test"))
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path}: holds no clouds ({error}); {again}") from None
    check_clouds(points, labels, classes=len(declared.classes), where=str(path))
    sizes = (int((test == 0).sum()), int((test == 1).sum()), points.shape[1])
    if test.shape != labels.shape or sizes != (declared.train_items, declared.test_items, declared.points):
        raise UserError(f"{path}: is not of the sizes that its card declares; {again}")
    rows = test == (1 if split == "test" else 0)
    return PointClouds(points[rows].astype(np.float32), labels[rows].astype(np.int64), found)
