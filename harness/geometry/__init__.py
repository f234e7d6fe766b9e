"""Sampling and neighbourhoods of point clouds, in plain torch, whole batches at a time."""

from harness.geometry.neighbours import Groups, gather_points, group, nearest
from harness.geometry.sampling import all_points, farthest_points

__all__ = ["Groups", "all_points", "farthest_points", "gather_points", "group", "nearest"]
