"""Peak memory: the CUDA allocator's where there is a GPU, and the process's own high-water mark on the host."""

from __future__ import annotations

import re
from pathlib import Path

import torch

NO_GPU = "no GPU: the CUDA allocator was not used"
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
    """Peaks of the CUDA allocator over training (after warm-up) and evaluation; all None on CPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.device = device
        self.train_peak: int | None = None
        self.train_reserved: int | None = None
        self.eval_peak: int | None = None
        self.total_peak: int | None = None

    def _close(self) -> int | None:
        """Peak since the last reset, folded into the total."""
        if not self.cuda:
            return None
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        self.total_peak = max(self.total_peak or 0, peak)
        return peak

    def after_step(self, step: int) -> None:
        """Call after each optimiser step; the one after warm-up opens the window."""
        if self.cuda and step + 1 == WARM_UP_STEPS:
            self._close()
            torch.cuda.reset_peak_memory_stats(self.device)

    def end_training(self) -> None:
        """Close the training window (first call counts) before something else uses the device."""
        peak = self._close()
        if self.cuda and self.train_peak is None:
            self.train_peak = peak
            self.train_reserved = torch.cuda.max_memory_reserved(self.device)

    def begin_evaluation(self) -> None:
        """Open the evaluation window."""
        if self.cuda:
            self._close()
            torch.cuda.reset_peak_memory_stats(self.device)

    def end_evaluation(self) -> None:
        """Close the evaluation window."""
        self.eval_peak = self._close()
