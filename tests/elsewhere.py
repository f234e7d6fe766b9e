"""What a GPU would trip over, seen without one: tensors that lie elsewhere than the model and its batch.

    with Elsewhere() as elsewhere:
        ...  # a step on the meta device
    assert not elsewhere.seen

Torch itself lets many operations of meta tensors take tensors of a CPU (products do), which those of a GPU refuse.
Single numbers go anywhere.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Elsewhere(TorchDispatchMode):
    """Counts operations that take or make a tensor on a CPU, or take its random numbers, by name, in both passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        outcome = operation(*given, **(named or {}))
        if any(map(on_cpu, tree_leaves((given, named, outcome)))):
            self.seen[operation._schema.name.removeprefix("aten::")] += 1
        return outcome


def on_cpu(each: Any) -> bool:
    """Whether it is a tensor or a generator of a CPU."""
    return (isinstance(each, Generator) or (isinstance(each, Tensor) and each.dim() > 0)) and each.device.type == "cpu"
