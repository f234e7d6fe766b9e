"""Time per training step, without stopping the device: CUDA events on a GPU, a clock on a CPU."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

SKIP = 2
"""First steps that are not counted: they build caches and optimiser state."""
WINDOW = 1000
"""Steps that are counted; the rest of a long training is not timed."""


@dataclass(frozen=True)
class StepTimes:
    """Medians in seconds."""

    step: float
    data: float


class StepTimer:
    """`start`, `data_ready` and `stop` once per step; `median` when training is over."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.counting = device.type == "cuda", True
        self.marks: list[list[float | torch.cuda.Event]] = []

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
            self.counting = len(self.marks) < SKIP + WINDOW

    def median(self) -> StepTimes | None:
        """Median whole step and its data part; None when too few steps ran."""
        if self.cuda:
            torch.cuda.synchronize()
        counted = self.marks[SKIP:]
        if not counted:
            return None
        return StepTimes(
            step=statistics.median(_seconds(mark[0], mark[2]) for mark in counted),
            data=statistics.median(_seconds(mark[0], mark[1]) for mark in counted),
        )


def _seconds(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    return begin.elapsed_time(end) / 1000
