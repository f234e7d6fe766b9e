"""Several small trials on one GPU (`resources: {gpus: shared}`): how much of it each one gets.

A trial gets what its predicted peak asks for and no more: its allocator is held to its share, so that one that needs
more than was predicted ends out of memory by itself, and runs again with a GPU of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness import machine
from harness.prediction import Prediction, Predictions, Progress

if TYPE_CHECKING:
    from harness.cluster import Cluster
    from harness.trial import Trial

MARGIN = 1.25
"""Allocators lose some memory between their blocks, and kernels need some: reserved over allocated."""
CONTEXT = 1_200_000_000
"""Bytes of a process on a GPU before its first tensor: CUDA's context, cuBLAS, cuDNN. Assumed; no GPU was at hand."""
STEPS = 20
"""Shares are multiples of a twentieth."""


def at_once(peak: int, memory: int) -> int:
    """How many trials of a predicted peak fit a GPU's memory, in bytes."""
    return int(memory // (peak * MARGIN + CONTEXT))


def keep_to(part: float) -> None:
    """Hold this process to a part of its GPU, CUDA's context included; beyond it is out of memory. 1.0: all of it."""
    if part == 1:
        return
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(part - CONTEXT / torch.cuda.get_device_properties(0).total_memory)


def share(peak: int, memory: int) -> float:
    """The part of a GPU that such a trial gets, above 0; 1.0 for one that leaves no room for a second."""
    parts = math.ceil(STEPS * (peak * MARGIN + CONTEXT) / memory)
    return parts / STEPS if parts <= STEPS // 2 else 1.0


def gpu_memory(cluster: Cluster | None) -> int | None:
    """Bytes of the smallest GPU that trials may run on, by the driver; None when nobody can tell."""
    facts = [machine.gpus()] if cluster is None else [(node.facts or {}).get("gpus", {}) for node in cluster.nodes]
    return min((device["memory"] for found in facts for device in found.get("devices", ())), default=None)


def may_share(trial: Trial, *, gpus: int) -> bool:
    """Whether a trial would take a part of a GPU."""
    resources = trial.resources
    wants = trial.baseline is None and resources.gpus_per_process != 0
    return bool(gpus) and wants and resources.gpus == "shared" and trial.processes == 1


def shares(trials: Sequence[Trial], *, memory: int, progress: Progress) -> dict[str, float]:
    """By identity, the part that each trial gets; 1.0 where none can be predicted. Works out what is not known yet."""
    predictions = Predictions(trials, gpu=True)
    predictions.complete(progress)
    found = {trial.identity: predictions.of(trial) for trial in trials}
    return {key: share(p.peak, memory) if isinstance(p, Prediction) else 1.0 for key, p in found.items()}
