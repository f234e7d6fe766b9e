"""Activation checkpointing: of a block only what goes into it is kept, and the backward pass runs the block once more.

The same numbers from less memory, for one more forward pass of the blocks (docs/measurements.md). The method is Chen et
al. 2016, arXiv 1604.06174; the mechanics are torch.utils.checkpoint's, which imports torch's compiler when it is first
called (1.4 s, 150 MB).
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from harness.models.transformer import Tokens
from harness.models.uncounted import uncounted


def checkpointed(block: nn.Module, tokens: Tokens) -> Tokens:
    """block(tokens), of which autograd keeps the tokens alone. Random numbers are the same the second time."""

    def run(features: Tensor) -> Tokens:
        return block(replace(tokens, features=features))

    # Features are an argument because torch looks for the devices whose random numbers it must repeat among those.
    return checkpoint(run, tokens.features, use_reentrant=False, context_fn=lambda: (nullcontext(), _Again(block)))


class _Again(ExitStack):
    """Around every further run of a block: no arithmetic of the model's, and no second time for running statistics."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def __enter__(self) -> Self:
        self.enter_context(uncounted())
        for norm in self.block.modules():
            if isinstance(norm, _BatchNorm) and norm.training:
                for buffer in norm.buffers():
                    self.callback(buffer.copy_, buffer.clone())
        return super().__enter__()
