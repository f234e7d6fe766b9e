"""The state of a training at the end of an epoch, so exact that going on from it changes no bit (on a CPU).

One safetensors file: what training changes (trainable tensors and buffers), the same of the best epoch so far, the
optimiser's state, and every random stream. Numbers that are no tensors travel as JSON in its header. A checkpoint is
only gone on from by the very same code, libraries, data and kind of device; otherwise the training starts anew.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from harness.method import Attached

States = dict[int, dict[str, Tensor]]
"""An optimiser's state: tensors by number and name. Where DeepSpeed divides it, all processes' parts, stacked."""
SHARE = 0.02
"""At most this part of a training's time goes into checkpoints."""


@dataclass
class Progress:
    """What a training has come to, apart from tensors; all of it JSON."""

    epoch: int = 0
    """Epochs done."""
    best: float | None = None
    """Validation accuracy of the best epoch so far, where one is chosen by it."""
    best_on_test: float | None = None
    """The best accuracy on the test split so far, where the papers' number is asked for."""
    seconds: float = 0.0
    """Spent so far, in this and earlier processes."""
    startup: float | None = None
    """Seconds until the first step of the first process."""
    times: list[tuple[float, float]] = field(default_factory=list)
    """Of counted steps (harness.measure.steps)."""
    peaks: dict[str, int | None] = field(default_factory=dict)
    """Of memory (harness.measure.memory)."""
    flops: tuple[int, int] | None = None
    """Of a step (harness.measure.flops)."""
    row: dict[str, Any] = field(default_factory=dict)
    """The last epoch's line of metrics.jsonl."""


class Streams:
    """The random streams of a training: torch's, Python's and NumPy's global ones, data order and augmentation."""

    def __init__(self, *, order: torch.Generator, noise: torch.Generator, device: torch.device) -> None:
        self.order, self.noise, self.device = order, noise, device

    def seed(self, seed: int) -> None:
        """Seed the global streams, from which dropout and a method's own noise come."""
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON."""
        tensors = {
            "torch": torch.get_rng_state(),
            "order": self.order.get_state(),
            "noise": self.noise.get_state(),
        }
        if self.device.type == "cuda":
            tensors["cuda"] = torch.cuda.get_rng_state(self.device)
        numpy = np.random.get_state(legacy=False)
        assert isinstance(numpy, dict)
        key = numpy["state"]["key"]
        numpy = {**numpy, "state": {**numpy["state"], "key": key.tolist()}}
        return tensors, {"python": random.getstate(), "numpy": numpy}

    def restore(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Put `state` back."""
        torch.set_rng_state(tensors["torch"])
        self.order.set_state(tensors["order"])
        self.noise.set_state(tensors["noise"])
        if "cuda" in tensors:
            torch.cuda.set_rng_state(tensors["cuda"], self.device)
        version, words, gauss = rest["python"]
        random.setstate((version, tuple(words), gauss))
        state = rest["numpy"]["state"]
        np.random.set_state(
            {**rest["numpy"], "state": {**state, "key": np.array(state["key"], dtype=np.uint32)}},
        )


def pack(
    *,
    fingerprint: dict[str, Any],
    progress: Progress,
    attached: Attached,
    best: dict[str, Tensor] | None,
    optimizer: States,
    streams: Streams,
    scaler: Any = None,
) -> bytes:
    """A checkpoint as the bytes of a safetensors file."""
    random_tensors, random_rest = streams.state()
    tensors = {f"model/{name}": tensor for name, tensor in attached.changing().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    tensors |= {f"random/{name}": tensor for name, tensor in random_tensors.items()}
    for index, state in optimizer.items():
        tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in state.items()}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {
        "fingerprint": json.dumps(fingerprint, sort_keys=True),
        "progress": json.dumps(vars(progress)),
        "random": json.dumps(random_rest),
        "scaler": json.dumps(scaler.state_dict() if scaler is not None else {}),
    }
    return save(tensors, metadata=header | {"digest": _digest(tensors, header)})


def _digest(tensors: dict[str, Tensor], header: dict[str, str]) -> str:
    """SHA-256 of all that a checkpoint holds: safetensors would take a changed byte of a tensor as it is."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def resume(
    path: Path,
    *,
    fingerprint: dict[str, Any],
    attached: Attached,
    restore_optimizer: Callable[[States], None],
    streams: Streams,
    scaler: Any = None,
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Go on from a checkpoint: puts the state back and returns the progress and the best epoch's tensors.

    Raises NotResumable, before anything is changed, for a file that is not there, damaged, or not of this training.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.pop("digest", None) != _digest(tensors, header):
            raise NotResumable("the checkpoint is damaged (its digest is another)")
        progress = Progress(**json.loads(header["progress"]))
        rest, scale = json.loads(header["random"]), json.loads(header["scaler"])
        found = json.loads(header["fingerprint"])
    except FileNotFoundError:
        raise NotResumable("") from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise NotResumable(f"the checkpoint is damaged ({error})") from None
    # by way of JSON, as the stored one went
    differing = [key for key, value in json.loads(json.dumps(fingerprint)).items() if found.get(key) != value]
    if differing:
        raise NotResumable(f"the checkpoint is of other {', '.join(differing)}")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "random": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest_of_name = name.partition("/")
        parts[part][rest_of_name] = tensor
    if {k: v.shape for k, v in parts["model"].items()} != {k: v.shape for k, v in attached.changing().items()}:
        raise NotResumable("the checkpoint holds other tensors than this training")
    attached.restore(parts["model"])
    states: States = {}
    for name, tensor in parts["optimizer"].items():
        index, _, key = name.partition("/")
        states.setdefault(int(index), {})[key] = tensor
    restore_optimizer(states)
    if scaler is not None:
        scaler.load_state_dict(scale)
    streams.restore(parts["random"], rest)
    progress.times = [(step, data) for step, data in progress.times]
    own = attached.changing()
    return progress, {name: tensor.to(own[name].device) for name, tensor in parts["best"].items()} or None


class NotResumable(Exception):
    """Why a training starts anew; an empty text when there simply is no checkpoint."""


class Pace:
    """Decides at which epoch ends a checkpoint is worth its time: SHARE of the training's time at most."""

    def __init__(self) -> None:
        self.last, self.cost = time.perf_counter(), 0.0

    def due(self) -> bool:
        """Whether to write one now."""
        return time.perf_counter() - self.last >= self.cost / SHARE

    def wrote(self, seconds: float) -> None:
        """One was written and took so long."""
        self.last, self.cost = time.perf_counter(), seconds
