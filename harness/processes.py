"""The processes of a trial: who they are, what each of them does, and what they put together.

A trial of several processes trains one model by data parallelism. All of them draw the same random numbers for data
order, points and augmentation and then take their rows of the batch, so that what a step sees does not depend on how
many there are; only dropout differs. The first process alone writes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from harness.checkpoint import States
from harness.evaluation import Item, precision_on
from harness.method import Attached
from harness.models.batchnorm import make_global
from harness.models.head import Headed
from harness.trial import Trial

ZERO_STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
"""DeepSpeed's stages by `resources.strategy`."""
JOIN_TIMEOUT = timedelta(minutes=10)
"""How long processes wait for each other at the start, and in any step."""


def accelerator_for(trial: Trial) -> Accelerator:
    """Accelerate as a trial wants it, in each of its processes."""
    resources = trial.resources
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = precision_on(device, resources.precision).replace("fp32", "no")
    if (stage := ZERO_STAGES.get(resources.strategy)) is not None:
        return _deepspeed(trial, stage=stage, precision=precision)
    # Buffers: every process keeps its own between epochs (`take_buffers_of_first`), instead of a broadcast per step.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    return Accelerator(mixed_precision=precision, kwargs_handlers=[ddp])


def _deepspeed(trial: Trial, *, stage: int, precision: str) -> Accelerator:
    """Accelerate with DeepSpeed's ZeRO, in the group that is there, with our optimiser, rates and clipping."""
    import deepspeed

    on_gpu = torch.cuda.is_available()
    if not on_gpu:  # a helper for sums in shared memory, which takes minutes to compile; gloo does without
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
    config = {
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 50_000_000},
        "train_micro_batch_size_per_gpu": trial.train.batch_size // trial.resources.processes,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": trial.train.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    handlers = [] if on_gpu else [InitProcessGroupKwargs(backend="gloo")]
    plugin = DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)
    return Accelerator(mixed_precision=precision, deepspeed_plugin=plugin, kwargs_handlers=handlers)


class Ranks:  # satisfies harness.evaluation.Processes
    """The processes of a trial, seen from one of them; a single process is a group of one."""

    def __init__(self, accelerator: Accelerator, strategy: str = "ddp") -> None:
        self.accelerator, self.strategy = accelerator, strategy
        self.index, self.count = accelerator.process_index, accelerator.num_processes
        self.zero: Any = None
        """DeepSpeed's optimiser around ours, where there is one."""

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
        if self.count == 1:
            model, optimizer = self.accelerator.prepare(attached.model, optimizer)
            return model, optimizer
        if batchnorm == "global":
            make_global(attached.model)
        if self.strategy == "zero3":
            from deepspeed.utils import set_z3_leaf_module

            whole = _Whole(attached.model)
            set_z3_leaf_module(whole, True)
            engine, wrapped = self.accelerator.prepare(whole, optimizer)
            self.zero = wrapped.optimizer
            return _Divided(engine, attached.model), wrapped
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.find_unused_parameters = bool(attached.dead)
        with warnings.catch_warnings():  # torch's new name for `broadcast_buffers` is not Accelerate's yet
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            model, wrapped = self.accelerator.prepare(attached.model, optimizer)
        self.zero = wrapped.optimizer if self.strategy in ZERO_STAGES else None
        return model, wrapped

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

    def of_first(self, flag: bool) -> bool:
        """What the first process says, for what all must do alike or not at all."""
        if self.count == 1:
            return flag
        told = torch.tensor([flag], dtype=torch.uint8, device=self.accelerator.device)
        distributed.broadcast(told, 0)
        return bool(told)

    @contextmanager
    def whole(self, model: nn.Module, *, changing: bool = False) -> Iterator[None]:
        """Within, every process sees whole parameters, divided ones too (ZeRO-3); `changing` if it sets them."""
        if self.strategy == "zero3":
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0 if changing else None):
                yield
        else:
            yield
        if self.zero is not None and changing:
            self.zero.refresh_fp32_params()  # DeepSpeed updates copies

    def optimizer_state(self, optimizer: Optimizer) -> States:
        """All of an optimiser's state, the same in every process; every process must ask."""
        if self.zero is None:
            found: States = optimizer.state_dict()["state"]
            return found
        states = (optimizer.state[part] for part in self._own_parts())
        return {
            number: {name: self._gathered(value[None]).cpu() for name, value in state.items()}  # (count, ...)
            for number, state in enumerate(states)
        }

    def restore_optimizer(self, optimizer: Optimizer, states: States) -> None:
        """Put `optimizer_state` back."""
        if self.zero is None:
            optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
            return
        for number, part in enumerate(self._own_parts()):
            own = {name: values[self.index] for name, values in states[number].items()}
            optimizer.state[part] = {name: value.to(part.device).clone() for name, value in own.items()}

    def _own_parts(self) -> Sequence[Tensor]:
        """What DeepSpeed's optimiser updates in this process: flat pieces of all parameters, as long in every one."""
        zero = self.zero
        parts = zero.fp32_partitioned_groups_flat if self.strategy == "zero3" else zero.single_partition_of_fp32_groups
        found: Sequence[Tensor] = parts
        return found

    def take_buffers_of_first(self, model: nn.Module) -> None:
        """Give every process the first one's buffers: statistics of batch norms are taken from own rows."""
        if self.count > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)

    @staticmethod
    def _gathered(tensor: Tensor) -> Tensor:
        """Tensors (b, ...) of one shape from all processes, one after the other.

        They go as bytes: NCCL and gloo have no int16, which parts of point clouds come in.
        """
        raw = tensor.contiguous().flatten().view(torch.uint8)
        parts = [torch.empty_like(raw) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, raw)
        return torch.cat(parts).view(tensor.dtype).view(-1, *tensor.shape[1:])


class _Whole(nn.Module):
    """A model whose parameters ZeRO-3 fetches together, for a whole pass.

    Its hooks see the tensors that modules are given and give: not the Tokens that blocks hand on, and not weights that
    are used without calling their layer. So the whole model counts as one module here: parameters are divided between
    the passes, gradients and optimiser states always. ZeRO-3 lets go of them once the gradient of an input is there,
    which points have none of: `last` is that input, and as the oldest node of the graph it comes last.
    """

    def __init__(self, model: Headed) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        """The model's inputs, and a zero with a gradient."""
        *own, last = inputs
        scores: Tensor = self.model(*own)
        return scores + 0 * last


class _Divided(Headed):
    """The engine of a `_Whole`, called like the model."""

    def __init__(self, engine: nn.Module, model: Headed) -> None:
        super().__init__()
        self.engine, self.encoder, self.head = engine, model.encoder, model.head

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the model."""
        last = torch.zeros((), device=inputs[0].device, requires_grad=torch.is_grad_enabled())
        scores: Tensor = self.engine(*inputs, last)
        return scores


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
