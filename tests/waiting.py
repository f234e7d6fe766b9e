"""What a GPU would have to be waited for, seen on a CPU: operations whose outcome the host must know to go on.

    with Waiting() as waiting:
        ...  # a step
    assert not waiting.seen

They are reading a number (`.item()`, `if tensor`, `float(tensor)`), and shapes that depend on values (indexing by a
mask, `nonzero`, `unique`). Copies of new constants to the device (`torch.tensor(...)`) wait too.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"_local_scalar_dense", "is_nonzero", "equal"}
SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave", "bincount"}
CONSTANTS = {"lift_fresh", "lift_fresh_copy"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Waiting(TorchDispatchMode):
    """Counts them by name, in forward and backward passes of this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        name = operation._schema.name.removeprefix("aten::")
        masks = name in INDEXING and any(part is not None and part.dtype == torch.bool for part in given[1])
        if masks or name in READS | SHAPES | CONSTANTS:
            self.seen[name] += 1
        return operation(*given, **(named or {}))
