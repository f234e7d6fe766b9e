"""Clean clouds made to look like one view of a depth scanner: the hard twin of each furniture set.

What changes: the object is turned about the vertical axis, seen from one side (what lies behind is gone), stands
on a patch of floor, is measured with noise, stretched along the axes and not centred. Each item gets one such
view, fixed by a seed of its identity, so the set is the same for everyone.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull, QhullError

from harness.data.prepare.meshes import Floats, MeshError, normalise, seeded

CAMERA_DISTANCE = 3.0
"""From the centre of an object of radius 1."""
ELEVATION = (0.1, 0.6)
"""Radians of the camera above the horizon."""
FLOOR_SHARE = (0.05, 0.20)
"""Share of the points that lie on the floor."""
FLOOR_HALF_WIDTH = 1.0
NOISE = 0.012
"""Standard deviation of the measured points, per axis."""
STRETCH = (0.75, 1.25)
SHIFT = 0.2
HIDDEN_POINT_RADIUS = 10**2.3
"""Radius of the flipping sphere, as a multiple of the largest distance from the camera."""


def scan_like(*, points: Floats, identity: str) -> Floats:
    """One scan-like view of a normalised cloud (N, 3), z up -> (N, 3), normalised again, in random order.

    The view depends on `identity` alone (and the points). Raises MeshError when nothing is left to normalise.
    """
    rng = seeded("scan-like 1", identity)
    count = len(points)
    turned = _turn(points, rng.uniform(0, 2 * np.pi))
    seen = turned[_visible(turned, _camera(rng))]
    floor_count = int(rng.uniform(*FLOOR_SHARE) * count)
    on_object = seen[rng.integers(0, len(seen), count - floor_count)]
    floor = np.empty((floor_count, 3))
    floor[:, :2] = rng.uniform(-FLOOR_HALF_WIDTH, FLOOR_HALF_WIDTH, (floor_count, 2))
    floor[:, 2] = turned[:, 2].min()
    measured = np.concatenate([on_object, floor]) + rng.normal(0, NOISE, (count, 3))
    distorted = measured * rng.uniform(*STRETCH, 3) + rng.uniform(-SHIFT, SHIFT, 3)
    return normalise(points=rng.permutation(distorted))


def _turn(points: Floats, angle: float) -> Floats:
    """Rotation about z by `angle` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def _camera(rng: np.random.Generator) -> Floats:
    """A camera position (3,) around the object, somewhat above it."""
    elevation, azimuth = rng.uniform(*ELEVATION), rng.uniform(0, 2 * np.pi)
    direction = [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
    return CAMERA_DISTANCE * np.array(direction)


def _visible(points: Floats, camera: Floats) -> np.ndarray:
    """Indices of the points seen from `camera`: hidden-point removal, Katz, Tal and Basri, SIGGRAPH 2007.

    The points are flipped about a large sphere around the camera; those on the convex hull of the flipped points
    and the camera are visible.
    """
    rays = points - camera
    distance = np.linalg.norm(rays, axis=1, keepdims=True)
    radius = HIDDEN_POINT_RADIUS * distance.max()
    flipped = rays + 2 * (radius - distance) * rays / distance
    try:
        corners = np.unique(ConvexHull(np.vstack([flipped, np.zeros(3)])).vertices)
    except QhullError:
        raise MeshError("seen from the camera, the points span no volume") from None
    return corners[corners < len(points)]
