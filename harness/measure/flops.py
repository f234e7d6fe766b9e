"""FLOPs of a training step, counted by torch while the step runs: two per multiply-add of matrix products.

A trial counts its own first step, which costs no computation beside it; `step_flops` counts one on tensors without
values. Both give the same number, on every device: attention is counted as the products that it is made of, whichever
kernel does it. Not counted, as nowhere in torch's counter: farthest points, neighbours, norms, activations,
the optimiser. Nor what an implementation does over and above the model (harness.models.uncounted).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from harness.build import build_outline
from harness.models.uncounted import counts
from harness.tasks import task_of
from harness.trial import Trial

Shape = Sequence[int]


@dataclass(frozen=True)
class Flops:
    """Of one training step."""

    forward: int
    """Per sample: the forward pass of a training batch, divided by its clouds."""
    train: int
    """Per step: the whole batch forward and backward, as much of it as the method needs."""


def _attention(query: Shape, key: Shape, value: Shape, *_: Shape) -> int:
    """Scores and their mixture: query (..., T, D), key (..., S, D), value (..., S, V)."""
    return 2 * prod(query) * key[-2] + 2 * prod(query[:-1]) * key[-2] * value[-1]


def _attention_backward(_: Shape, query: Shape, key: Shape, value: Shape) -> int:
    """Two products for each of the forward pass. That fused kernels make the scores once more is their own affair."""
    return 2 * _attention(query, key, value)


_FUSED = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
ATTENTION = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{suffix}"): formula
    for kernel in _FUSED
    for suffix, formula in (("", _attention), ("_backward", _attention_backward))
}
"""Torch has no formula for the kernel of CPUs, and counts the repeated scores of those of GPUs."""


class Counter(TorchDispatchMode):
    """A context that adds up the FLOPs of what runs in it, by torch's formulas and ours of attention.

    It is torch's FlopCounterMode without the parts that import `torch._dynamo` (2 s) and hook every module.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.beside = 0
        """What is no part of the model (harness.models.uncounted)."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch guards the method below from its compiler, which imports it; nothing is compiled here."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        packet, given = func._overloadpacket, kwargs or {}
        if packet not in ATTENTION and packet not in flop_registry:
            with self:  # what is made of other operations counts as those
                result = func.decompose(*args, **given)
            return func(*args, **given) if result is NotImplemented else result
        result = func(*args, **given)
        if packet in ATTENTION:
            number = ATTENTION[packet](*(part.shape for part in args[:4] if isinstance(part, Tensor)))
        else:
            number = flop_registry[packet](*args, **given, out_val=result)
        if counts():
            self.total += number
        else:
            self.beside += number
        return result


class StepFlops:
    """Counts the first step that runs within `counting`; later ones run as if it were not there.

    `earlier` is what a process counted that this one goes on from.
    """

    def __init__(self, *, earlier: Flops | None = None) -> None:
        self.counted = earlier
        self.beside = 0
        """Of the counted step, what is no part of the model."""
        self._counter: Counter | None = None
        self._forward = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Around a forward and backward pass; `after_forward` in between."""
        if self.counted is not None:
            yield
            return
        with Counter() as self._counter:
            yield
        self.counted, self.beside = Flops(self._forward, self._counter.total), self._counter.beside
        self._counter = None

    def after_forward(self, samples: int) -> None:
        """The loss of so many clouds is there."""
        if self._counter is not None:
            self._forward = round(self._counter.total / samples)


def step_flops(trial: Trial, *, train_items: int | None = None) -> Flops:
    """What a step of a trial costs, without doing it: neither data nor weights are read, nothing is allocated.

    `train_items` are the training clouds, which some methods remember; as many as the dataset declares when not given.
    The first call in a process imports much of torch (seconds).
    """
    counted = _step(trial, train_items).counted
    assert counted is not None
    return counted


def repeated_flops(trial: Trial) -> int:
    """What activation checkpointing makes a second time in a step, beside the model's FLOPs; 0 without it."""
    if not trial.resources.activation_checkpointing:
        return 0
    resources = trial.resources.model_copy(update={"activation_checkpointing": False})
    return _step(trial).beside - _step(replace(trial, resources=resources)).beside


def _step(trial: Trial, train_items: int | None = None) -> StepFlops:
    """A step without values, counted."""
    task, settings, flops = task_of(trial.dataset), trial.train, StepFlops()
    model = build_outline(trial, train_items=train_items).model
    with torch.random.fork_rng(devices=[]), torch.device("meta"), flops.counting():
        batch = task.random_batch(trial, settings.batch_size)
        loss = task.loss(model(*batch.inputs), batch.targets, settings)
        flops.after_forward(settings.batch_size)
        loss.backward()
    return flops
