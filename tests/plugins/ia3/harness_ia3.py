"""(IA)^3: learned scales of keys, values and the hidden layer of the feed-forward part, in every block.

Liu et al., NeurIPS 2022, arXiv 2205.05638, section 3.3. All scales are one at the start.
"""

import torch
from torch import Tensor, nn

from harness.method import Adapted, Method, Task
from harness.models.encoder import Encoder


class ScaledKeysAndValues(nn.Module):
    """The joint projection to queries, keys and values, the latter two scaled channel by channel."""

    def __init__(self, qkv: nn.Module, *, dim: int) -> None:
        super().__init__()
        self.qkv = qkv
        self.keys, self.values = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, 3 C)."""
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        return torch.cat([query, key * self.keys, value * self.values], dim=-1)


class ScaledInput(nn.Module):
    """A layer whose input, here the hidden layer after its GELU, is scaled channel by channel."""

    def __init__(self, layer: nn.Module, *, width: int) -> None:
        super().__init__()
        self.layer, self.hidden = layer, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, C)."""
        return self.layer(x * self.hidden)


class IA3(Method):
    """Scales of keys, values and, unless told otherwise, hidden units; class token and position train too."""

    hidden: bool = True
    """Whether the hidden layer of the feed-forward part is scaled."""

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Put the scales into every block."""
        added: list[nn.Parameter] = []
        for block in encoder.plain_blocks:
            block.attn.qkv = qkv = ScaledKeysAndValues(block.attn.qkv, dim=block.dim)
            added += [qkv.keys, qkv.values]
            if self.hidden:
                block.mlp.fc2 = fc2 = ScaledInput(block.mlp.fc2, width=block.mlp.width)
                added.append(fc2.hidden)
        return Adapted(encoder, added=added, unfrozen=encoder.class_parameters)
