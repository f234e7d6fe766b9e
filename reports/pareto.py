"""Which rows nothing beats: at least as good in every respect, better in one."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each point is dominated by none; in every coordinate smaller is better. Equal points do not dominate."""
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(first: Sequence[float], second: Sequence[float]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
