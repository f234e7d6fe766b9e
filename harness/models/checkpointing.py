"""Activation checkpointing: of a block only what goes into it is kept, and the backward pass runs the block once more.

The same numbers from a third of the memory or less, for one more forward pass of the blocks (docs/measurements.md). The
method is Chen et al. 2016, arXiv 1604.06174; the mechanics are torch.utils.checkpoint's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from harness.models.transformer import Tokens
from harness.models.uncounted import uncounted


def checkpointed(block: nn.Module, tokens: Tokens) -> Tokens:
    """block(tokens), of which the backward pass keeps the tokens alone. Random numbers are the same the second time."""

    def run(features: Tensor) -> Tokens:
        return block(replace(tokens, features=features))

    # Features are an argument because torch looks for the devices whose random numbers it must repeat among those.
    return checkpoint(run, tokens.features, use_reentrant=False, context_fn=lambda: (nullcontext(), _again(block)))


@contextmanager
def _again(block: nn.Module) -> Iterator[None]:
    """Around a block's second run: no arithmetic of the model's, and no second time for running statistics."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    try:
        with uncounted():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in statistics:
                buffer.copy_(before)
