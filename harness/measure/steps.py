"""Time per training step, without stopping the device: CUDA events on a GPU, a clock on a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

SKIP = 2
"""First steps of a process that are not counted: they build caches and optimiser state."""
WINDOW = 1000
"""Steps that are counted; the rest of a long training is not timed."""


@dataclass(frozen=True)
class StepTimes:
    """Medians in seconds."""

    step: float
    data: float


class StepTimer:
    """`start`, `data_ready` and `stop` once per step; `median` when training is over.

    `earlier` are the times of a process that this one goes on from (`times`).
    """

    def __init__(self, device: torch.device, *, earlier: Sequence[tuple[float, float]] = ()) -> None:
        self.cuda = device.type == "cuda"
        self.earlier = [(step, data) for step, data in earlier]
        self.wanted = SKIP + WINDOW - len(self.earlier)
        self.marks: list[list[float | torch.cuda.Event]] = []
        self.counting = True

    def _now(self) -> float | torch.cuda.Event:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        """Before the batch is made."""
        if self.counting:
            self.marks.append([self._now()])

    def data_ready(self) -> None:
        """The batch is made."""
        if self.counting:
            self.marks[-1].append(self._now())

    def stop(self) -> None:
        """The optimiser has stepped."""
        if self.counting:
            self.marks[-1].append(self._now())
            self.counting = len(self.marks) < self.wanted

    def times(self) -> list[tuple[float, float]]:
        """Seconds of every counted step and of its data part, those of earlier processes first."""
        if self.cuda:
            torch.cuda.synchronize()
        counted = self.marks[SKIP:]
        return self.earlier + [(_seconds(mark[0], mark[2]), _seconds(mark[0], mark[1])) for mark in counted]

    def median(self) -> StepTimes | None:
        """Median whole step and its data part; None when too few steps ran."""
        counted = self.times()
        if not counted:
            return None
        return StepTimes(
            step=statistics.median(step for step, _ in counted), data=statistics.median(data for _, data in counted)
        )


def _seconds(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    return begin.elapsed_time(end) / 1000
