"""LoRA: low-rank updates of chosen linear layers.

Hu et al., ICLR 2022, arXiv 2106.09685, equation 3: h = W x + (alpha / r) B A x, with A random and B zero at start.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from harness.method import Adapted, Method, Task
from harness.models.encoder import Encoder, Renames

Target = Literal["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


class LowRankLinear(nn.Module):
    """A frozen linear layer plus its low-rank update."""

    def __init__(self, linear: nn.Linear, *, rank: int, scale: float) -> None:
        super().__init__()
        self.linear, self.scale = linear, scale
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))  # A of equation 3
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))  # B of equation 3
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def merged(self) -> nn.Linear:
        """The linear layer with the update in its weight."""
        self.linear.weight.data += self.scale * self.up.data @ self.down.data
        return self.linear

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.down), self.up)


class LoRA(Method):
    """Low-rank updates of chosen linear layers of every block; class token and position train too."""

    peft_names: ClassVar[Renames] = ((r"\.down$", ".lora_A.weight"), (r"\.up$", ".lora_B.weight"))

    rank: PositiveInt = 32
    alpha: PositiveFloat | None = None
    """Scale of the update is alpha / rank; alpha defaults to the rank."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = ("attn.qkv",)

    def peft_config(self) -> dict[str, Any]:
        """HF peft's LoRA is the same."""
        alpha = self.rank if self.alpha is None else self.alpha
        targets = list(dict.fromkeys(self.targets))
        return {"peft_type": "LORA", "r": self.rank, "lora_alpha": alpha, "target_modules": targets, "bias": "none"}

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Put an update beside each target layer."""
        scale = 1.0 if self.alpha is None else self.alpha / self.rank
        added: list[nn.Parameter] = []
        for block in encoder.plain_blocks:
            for target in dict.fromkeys(self.targets):
                part, _, leaf = target.partition(".")
                owner = block.get_submodule(part)
                linear = owner.get_submodule(leaf)
                assert isinstance(linear, nn.Linear)
                layer = LowRankLinear(linear, rank=self.rank, scale=scale)
                owner.register_module(leaf, layer)
                added += [layer.down, layer.up]
        return Adapted(encoder, added=added, unfrozen=encoder.class_parameters)

    def merged(self, encoder: nn.Module) -> Encoder:
        """The encoder with the updates in its weights."""
        assert isinstance(encoder, Encoder)
        for owner in list(encoder.modules()):
            for name, layer in list(owner.named_children()):
                if isinstance(layer, LowRankLinear):
                    owner.register_module(name, layer.merged())
        return encoder
