"""The processes of a trial: who they are, what each of them does, and what they put together.

A trial of several processes trains one model by data parallelism. All of them draw the same random numbers for data
order, points and augmentation and then take their rows of the batch, so that what a step sees does not depend on how
many there are; only dropout differs. The first process alone writes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from harness.method import Attached
from harness.models.batchnorm import make_global
from harness.models.head import Headed
from harness.trial import Trial

Item = TypeVar("Item")
"""What is shared out: batches, mostly."""

JOIN_TIMEOUT = timedelta(minutes=10)
"""How long processes wait for each other at the start, and in any step."""


def accelerator_for(trial: Trial) -> Accelerator:
    """Accelerate as a trial wants it, in each of its processes."""
    precision = trial.resources.precision
    # Buffers: every process keeps its own between epochs (`take_buffers_of_first`), instead of a broadcast per step.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[ddp])


class Ranks:  # satisfies harness.evaluation.Processes
    """The processes of a trial, seen from one of them; a single process is a group of one."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.index, self.count = accelerator.process_index, accelerator.num_processes

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def prepare(self, attached: Attached, optimizer: Optimizer, *, batchnorm: str) -> tuple[Headed, Optimizer]:
        """Model and optimiser as this process trains them."""
        if self.count > 1:
            if batchnorm == "global":
                make_global(attached.model)
            self.accelerator.ddp_handler.find_unused_parameters = bool(attached.dead)
        with warnings.catch_warnings():  # torch's new name for `broadcast_buffers` is not Accelerate's yet
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            model, optimizer = self.accelerator.prepare(attached.model, optimizer)
        return model, optimizer

    def part(self, rows: Tensor) -> Tensor:
        """This process's rows of a global batch (B, ...) -> (B / count, ...)."""
        size = len(rows) // self.count
        return rows[self.index * size : (self.index + 1) * size]

    def share(self, items: Iterable[Item]) -> Iterator[Item]:
        """Every count-th item; where the last ones do not suffice for all, the very last comes again."""
        iterator = iter(items)
        while found := tuple(islice(iterator, self.count)):
            yield found[min(self.index, len(found) - 1)]

    def gather(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tensors (b, ...) of all processes, one after the other."""
        if self.count == 1:
            return tensors
        sizes = self._gathered(torch.tensor([len(tensors[0])], device=tensors[0].device)).tolist()
        longest = max(sizes)
        found = []
        for tensor in tensors:
            padded = tensor.new_zeros(longest, *tensor.shape[1:])
            padded[: len(tensor)] = tensor
            parts = self._gathered(padded).split(longest)
            found.append(torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]))
        return tuple(found)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.count == 1:
            return value
        total = value.detach().clone()
        distributed.all_reduce(total)
        return total / self.count

    def numbers(self, values: dict[str, int | None]) -> dict[str, list[int] | None]:
        """What each process has of some numbers; None where one of them has none."""
        device = self.accelerator.device
        own = torch.tensor([-1 if value is None else value for value in values.values()], device=device)
        table = (self._gathered(own[None]) if self.count > 1 else own[None]).T.tolist()
        return {name: None if min(row) < 0 else row for name, row in zip(values, table, strict=True)}

    def take_buffers_of_first(self, model: nn.Module) -> None:
        """Give every process the first one's buffers: statistics of batch norms are taken from own rows."""
        if self.count > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    @staticmethod
    def _gathered(tensor: Tensor) -> Tensor:
        """Tensors (b, ...) of one shape from all processes, one after the other."""
        world = distributed.get_world_size()
        parts = [torch.empty_like(tensor) for _ in range(world)]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)


def join(rendezvous: Path, *, index: int, count: int) -> None:
    """Find the other processes of this trial through a file, on this machine alone: no port that others could take.

    Accelerate and DeepSpeed take the group that is there.
    """
    store = distributed.FileStore(str(rendezvous), count)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=index, world_size=count, timeout=JOIN_TIMEOUT)


def leave() -> None:
    """End the group, where there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
