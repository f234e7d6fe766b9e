"""Triangle meshes to point clouds: read OBJ, sample the surface, normalise, compare.

Every file that reaches this module may be damaged or hostile: reading is bounded, and a mesh that cannot be
used is a `MeshError` with the reason, which the callers count and report instead of stopping.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Floats = NDArray[np.float64]

MAX_TRIANGLES = 2_000_000
MAX_VERTICES = 2_000_000
NEAR_DUPLICATE = 0.03
"""Chamfer-L1 distance below which two normalised clouds of 2,048 points show one shape: what two independent
samplings of the same surface typically measure is 0.02-0.03."""


class MeshError(ValueError):
    """The mesh cannot be sampled; the message says why."""


def seeded(*identity: str) -> np.random.Generator:
    """A random generator that depends on the given strings alone: the purpose first, then the item."""
    digest = hashlib.sha256("\0".join(identity).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def read_obj(*, text: str) -> Floats:
    """Triangles (T, 3, 3) of a Wavefront OBJ text, in file units and axes; polygons are cut into fans.

    Raises MeshError for text that is no OBJ, for faces that name vertices which do not exist, and beyond
    `MAX_VERTICES` or `MAX_TRIANGLES`.
    """
    vertices: list[list[str]] = []
    faces: list[tuple[int, int, int]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        kind, _, rest = line.replace("\t", " ").strip().partition(" ")
        if kind == "v":
            vertices.append(rest.split()[:3])
        elif kind == "f":
            faces += _fan(rest.split(), known=len(vertices), line=number)
        if len(vertices) > MAX_VERTICES or len(faces) > MAX_TRIANGLES:
            raise MeshError(f"line {number}: more than {MAX_VERTICES} vertices or {MAX_TRIANGLES} triangles")
    if not faces:
        raise MeshError("no faces")
    try:
        corners = np.array(vertices, dtype=np.float64).reshape(-1, 3)
    except ValueError as error:
        raise MeshError(f"a vertex is not three numbers ({error})") from None
    indices = np.array(faces)
    if indices.min() < 0 or indices.max() >= len(corners):
        raise MeshError("a face names a vertex that does not exist")
    return corners[indices]


def _fan(corners: list[str], *, known: int, line: int) -> list[tuple[int, int, int]]:
    """Triangles, as zero-based vertex indices, of one face; negative OBJ indices count back from `known`."""
    try:
        numbers = [int(corner.split("/", 1)[0]) for corner in corners]
    except ValueError:
        raise MeshError(f"line {line}: a face corner is not a number") from None
    index = [number - 1 if number > 0 else known + number for number in numbers]
    return [(index[0], index[k], index[k + 1]) for k in range(1, len(index) - 1)]


def triangle_areas(triangles: Floats) -> Floats:
    """Areas (T,) of triangles (T, 3, 3)."""
    first, second, third = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    return 0.5 * np.linalg.norm(np.cross(second - first, third - first), axis=1)


def check_area(*, triangles: Floats) -> None:
    """Raises MeshError, as `sample_surface` does, for triangles (T, 3, 3) without area or not finite."""
    total = float(triangle_areas(triangles).sum())
    if not np.isfinite(total) or total <= 0:
        raise MeshError("the surface has no area or is not finite")


def sample_surface(*, triangles: Floats, count: int, rng: np.random.Generator) -> Floats:
    """`count` points spread evenly over the surface: (T, 3, 3) -> (count, 3), same units.

    Raises MeshError when the mesh has no area or a coordinate that is not finite.
    """
    cumulative = np.cumsum(triangle_areas(triangles))
    total = cumulative[-1] if len(cumulative) else 0.0
    if not np.isfinite(total) or total <= 0:
        raise MeshError("the surface has no area or is not finite")
    chosen = np.searchsorted(cumulative, rng.random(count) * total, side="right")
    first, second, third = triangles[np.minimum(chosen, len(triangles) - 1)].transpose(1, 0, 2)
    u, v = rng.random((2, count, 1))
    outside = u + v > 1  # fold the far half of the parallelogram back on the triangle
    u, v = np.where(outside, 1 - u, u), np.where(outside, 1 - v, v)
    return first + u * (second - first) + v * (third - first)


def normalise(*, points: Floats) -> Floats:
    """Points (N, 3) moved to mean zero and scaled so that the farthest has norm 1. Raises MeshError if it can't."""
    centred = points - points.mean(axis=0)
    radius = float(np.linalg.norm(centred, axis=1).max())
    if not np.isfinite(radius) or radius <= 0:
        raise MeshError("all points coincide or are not finite")
    return centred / radius


def signature(*, triangles: Floats) -> tuple[float, ...]:
    """A fingerprint that ignores position, scale, names and colours; equal for copies of one mesh.

    Seven rounded numbers: the extents and the surface area relative to the largest extent, and where the
    centre of the area lies in the bounding box.
    """
    corners = triangles.reshape(-1, 3)
    low, extent = corners.min(axis=0), np.ptp(corners, axis=0)
    scale = float(extent.max()) or 1.0
    areas = triangle_areas(triangles)
    total = float(areas.sum()) or 1.0
    centre = (areas[:, None] * (triangles.mean(axis=1) - low)).sum(axis=0) / total
    values = np.concatenate([extent / scale, [total / scale**2], centre / scale])
    return tuple(float(value) + 0.0 for value in np.round(values, 3))


def chamfer(first: Floats, second: Floats) -> float:
    """Symmetric Chamfer-L1 distance of two clouds (N, 3), (M, 3): mean of both mean nearest distances."""
    there, _ = cKDTree(second).query(first)
    back, _ = cKDTree(first).query(second)
    return float(there.mean() + back.mean()) / 2


def spacing(cloud: Floats) -> float:
    """Mean distance of a point of a cloud (N, 3) to the next: what another sampling of the same surface measures."""
    return float(cKDTree(cloud).query(cloud, k=2)[0][:, 1].mean())


def near_duplicates(*, clouds: Floats, others: Floats, below: float | Floats = NEAR_DUPLICATE) -> list[tuple[int, int]]:
    """Index pairs (i, j) with Chamfer-L1 of clouds[i] and others[j] under `below`, one limit or one a pair (A, B).

    clouds (A, N, 3) and others (B, N, 3), normalised. Passing the same array twice compares each pair once. A
    coarse test (spread along the axes, then a tenth of the points) spares most of the full comparisons.
    """
    spread, spread_others = clouds.std(axis=1), others.std(axis=1)
    low, high = others.min(axis=1), others.max(axis=1)
    same = clouds is others
    trees_others: dict[int, cKDTree] = {}  # made where they are asked: most clouds resemble no other
    pairs = []
    limits = np.broadcast_to(below, (len(clouds), len(others)))
    for i, (cloud, limit) in enumerate(zip(clouds, limits, strict=True)):
        sparse = cloud[::10]
        similar = np.flatnonzero(np.abs(spread_others - spread[i]).max(axis=1) < 2 * limit)
        similar = similar[similar > i] if same else similar
        for j in similar[_distance_to_boxes(sparse, low[similar], high[similar]) <= 2 * limit[similar]]:
            if j not in trees_others:
                trees_others[j] = cKDTree(others[j])
            if trees_others[j].query(sparse)[0].mean() <= 2 * limit[j] and chamfer(cloud, others[j]) < limit[j]:
                pairs.append((i, int(j)))
    return pairs


def _distance_to_boxes(points: Floats, low: Floats, high: Floats) -> Floats:
    """Mean distance (B,) of points (N, 3) to boxes (B, 3), (B, 3): never more than to what the boxes hold."""
    outside = np.maximum(np.maximum(low[:, None] - points, points - high[:, None]), 0)  # (B, N, 3)
    return np.linalg.norm(outside, axis=2).mean(axis=1)
