"""Peak memory of training, predicted without a GPU and without doing it: from tensors that have a size but no values.

Torch's fake tensors go through forward pass, backward pass and optimiser as real ones do; what is counted is which of
their storages live at the same time. They are fake tensors of the CPU: those of a GPU do not train where there is none.
What kernels need inside (cuBLAS, cuDNN) and what the allocator loses is not in it: to be held against allocated memory,
never against reserved. docs/measurements.md says how near it comes.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.build import build_outline
from harness.method import Attached
from harness.models.batchnorm import sliced_as_on
from harness.optimizer import AdamW
from harness.tasks import task_of
from harness.trial import Trial

STEPS = 2
"""The optimiser's state is made in the first step, and alive beside everything else in the second."""


@dataclass(frozen=True)
class Estimate:
    """Bytes alive at the moment of a training step at which most are."""

    parameters: int = 0
    buffers: int = 0
    gradients: int = 0
    """Of parameters."""
    optimiser: int = 0
    """Its state."""
    activations: int = 0
    """The batch, and what the forward pass made: kept for the backward pass, or alive within it."""
    temporaries: int = 0
    """What the backward pass or the optimiser made and did not leave."""

    @property
    def total(self) -> int:
        """The peak."""
        return sum(asdict(self).values())


class Ledger(TorchDispatchMode):
    """A context that knows how many bytes live, by what they are for; `purpose` is what new ones are for."""

    def __init__(self) -> None:
        super().__init__()
        self.purpose = "activations"
        self.alive: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._entries: dict[int, tuple[str, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operation."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._enter(leaf)
        return result

    def _enter(self, tensor: Tensor) -> None:
        """A storage that is new lives from now until nothing refers to it."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._entries:
            return
        self._entries[key] = self.purpose, storage.nbytes()
        self.alive[self.purpose] += storage.nbytes()
        weakref.finalize(storage, self._leave, key).atexit = False
        if self.alive.total() > self.peak.total():
            self.peak = self.alive.copy()

    def _leave(self, key: int) -> None:
        purpose, size = self._entries.pop(key)
        self.alive[purpose] -= size

    def assign(self, tensors: Iterable[Tensor], purpose: str) -> None:
        """Say what tensors are for, whatever was thought when they were made."""
        for tensor in tensors:
            self._enter(tensor)
            key = tensor.untyped_storage()._cdata
            former, size = self._entries[key]
            self._entries[key] = purpose, size
            self.alive[former] -= size
            self.alive[purpose] += size


def _with_fake_tensors(outline: Attached) -> Attached:
    """A copy of a model on the meta device whose tensors are fake ones of the CPU; within FakeTensorMode."""
    fakes: dict[int, Any] = {}
    for parameter in outline.model.parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype)
        fakes[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in outline.model.buffers():
        fakes[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return copy.deepcopy(outline, fakes)


def estimate_memory(
    trial: Trial, *, precision: str = "fp32", train_items: int | None = None, device: str = "cuda"
) -> Estimate:
    """The predicted peak of a trial's training, at its batch size and points, in one of its processes.

    `precision` is fp32, bf16 or fp16. `device` is the type of device that is meant: what is done by slices takes larger
    ones on a GPU. Reads neither data nor weights, allocates nothing, leaves no state behind; takes one to eight
    seconds, and two more the first time in a process. What ZeRO divides counts whole.
    """
    task, settings = task_of(trial.dataset), trial.train
    items = settings.batch_size // trial.resources.processes
    outline = build_outline(trial, train_items=train_items)
    with torch.random.fork_rng(devices=[]), FakeTensorMode(), sliced_as_on(device), Ledger() as ledger:
        attached = _with_fake_tensors(outline)
        model, trainable = attached.model, attached.trainable.values()
        ledger.assign(model.parameters(), "parameters")
        ledger.assign(model.buffers(), "buffers")
        for parameter in trainable:
            parameter.register_post_accumulate_grad_hook(lambda p: ledger.assign([p.grad], "gradients"))
        optimizer = AdamW(attached.optimizer_groups(settings.weight_decay), lr=settings.learning_rate, fused=True)
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32")
        for _ in range(STEPS):  # in the training loop's order (harness.train): gradients live through the forward pass
            ledger.purpose = "activations"
            batch = task.random_batch(trial, items)
            with autocast:
                loss = task.loss(model(*batch.inputs), batch.targets, settings)
            ledger.purpose = "temporaries"
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trainable, settings.clip_norm)
            optimizer.step()
            for state in optimizer.state.values():
                ledger.assign(state.values(), "optimiser")
    return Estimate(**ledger.peak)
