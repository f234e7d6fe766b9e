"""Products that are no part of a model's arithmetic, and that counters of FLOPs leave out.

A model's FLOPs are a property of the model: what an implementation does beside them, to take the statistics of a norm
or to make something again that it did not keep, is the implementation's own affair, and shows in its time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_depth = ContextVar("depth", default=0)


@contextmanager
def uncounted() -> Iterator[None]:
    """Products within are not counted; also as a decorator."""
    before = _depth.set(_depth.get() + 1)
    try:
        yield
    finally:
        _depth.reset(before)


def counts() -> bool:
    """Whether what runs now is part of the model's arithmetic."""
    return _depth.get() == 0
