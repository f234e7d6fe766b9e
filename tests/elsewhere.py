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

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Elsewhere(TorchDispatchMode):
    """Counts operations that take or make a tensor on a CPU, by name, in forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        outcome = operation(*given, **(named or {}))
        tensors = [each for each in tree_leaves((given, named, outcome)) if isinstance(each, Tensor)]
        if any(each.dim() and each.device.type == "cpu" for each in tensors):
            self.seen[operation._schema.name.removeprefix("aten::")] += 1
        return outcome
