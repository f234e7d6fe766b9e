"""AdamW without torch's compiler."""

from __future__ import annotations

from inspect import unwrap

import torch
from torch.optim import Optimizer


class AdamW(torch.optim.AdamW):
    """torch's AdamW, whose first use does not import `torch._dynamo`: 2 s and 30 MB in every process.

    Torch marks these methods as not to be compiled, and the mark itself imports the compiler. They are taken without
    it; the arithmetic is the same.
    """

    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))
