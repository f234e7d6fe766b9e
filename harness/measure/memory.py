"""Peak memory: the CUDA allocator's where there is a GPU, and the process's own high-water mark on the host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

NO_GPU = "no GPU: the CUDA allocator was not used"
NO_ESTIMATE = "not predicted before the trial ran: `harness plan SUITE --estimate` predicts"
NOT_YET = "not measured yet (planned with the cost suite)"
STATUS = Path("/proc/self/status")
WARM_UP_STEPS = 2
"""Optimiser steps before the training window opens: AdamW allocates its state in the first."""


def host_peak() -> int | None:
    """High-water mark of this process's resident memory in bytes (VmHWM); None where /proc is missing.

    Not `ru_maxrss`, which a child inherits from its parent.
    """
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


class MemoryWindow:
    """Peaks of the CUDA allocator over training (after warm-up) and evaluation, in bytes; all None on a CPU.

    `earlier` are the peaks of a process that this one goes on from (`peaks`): the higher of both counts.
    """

    def __init__(self, device: torch.device, *, earlier: Mapping[str, int | None] | None = None) -> None:
        self.cuda = device.type == "cuda"
        self.device = device
        self.steps = 0
        self.training = True
        known = earlier or {}
        self.train_peak = known.get("train_peak")
        self.train_reserved = known.get("train_reserved")
        self.total_peak = known.get("total_peak")
        self.earlier_host_peak = known.get("host_peak")
        self.earlier_retries = self.retries = known.get("retries")
        self.eval_peak: int | None = None

    def _close(self) -> int:
        """Peak since the last reset, folded into the total."""
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        self.total_peak = max(self.total_peak or 0, peak)
        return peak

    def after_step(self) -> None:
        """Call after each optimiser step; the one after warm-up opens the window."""
        self.steps += 1
        if self.cuda and self.steps == WARM_UP_STEPS:
            self._close()
            torch.cuda.reset_peak_memory_stats(self.device)

    def _see_training(self) -> None:
        if self.cuda and self.training and self.steps > WARM_UP_STEPS:
            self.train_peak = max(self.train_peak or 0, self._close())
            self.retries = (self.earlier_retries or 0) + int(
                torch.cuda.memory_stats(self.device).get("num_alloc_retries", 0)
            )
            self.train_reserved = max(self.train_reserved or 0, torch.cuda.max_memory_reserved(self.device))

    def end_training(self) -> None:
        """Close the training window (first call counts) before something else uses the device."""
        self._see_training()
        self.training = False

    def begin_evaluation(self) -> None:
        """Open the evaluation window."""
        if self.cuda:
            self._close()
            torch.cuda.reset_peak_memory_stats(self.device)

    def end_evaluation(self) -> None:
        """Close the evaluation window."""
        if self.cuda:
            self.eval_peak = self._close()

    @property
    def host_peak(self) -> int | None:
        """High-water mark of resident memory over all processes of the trial."""
        peaks = [peak for peak in (host_peak(), self.earlier_host_peak) if peak is not None]
        return max(peaks, default=None)

    def peaks(self) -> dict[str, int | None]:
        """What a later process must know to go on."""
        self._see_training()
        return {
            "train_peak": self.train_peak,
            "train_reserved": self.train_reserved,
            "total_peak": self.total_peak,
            "host_peak": self.host_peak,
            "retries": self.retries,
        }
