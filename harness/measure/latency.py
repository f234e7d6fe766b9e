"""How long a trained model takes to answer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

BATCHES = (1, 32)
"""Clouds per batch: `time.latency` and `time.latency_32`."""
WARM_UP = 1
TIMES = {"cpu": 3, "cuda": 20}


@torch.inference_mode()
def latency(model: Callable[..., Any], inputs: Sequence[Tensor]) -> float:
    """Median seconds of a forward pass on a batch that lies on its device, until the scores are there."""
    device = inputs[0].device
    taken = []
    for _ in range(WARM_UP + TIMES.get(device.type, 3)):
        _wait(device)
        began = time.perf_counter()
        model(*inputs)
        _wait(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[WARM_UP:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
