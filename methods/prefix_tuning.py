"""Prefix tuning: learned keys and values before those of the tokens, in every attention.

Li and Liang, ACL 2021, arXiv 2101.00190, in the form of He et al., ICLR 2022, arXiv 2110.04366, equation 3:
head = Attn(x W_q, [P_k; x W_k], [P_v; x W_v]). The prefixes are parameters themselves, as in He et al.'s official
`petl/petl_factory.py`, class PrefixDirectInit; Li and Liang trained a network that makes them, and threw it away.
"""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from harness.method import Adapted, Method, Task
from harness.models.encoder import Encoder
from harness.models.transformer import Attention, by_heads


class PrefixAttention(nn.Module):
    """Attention whose tokens also attend to P learned pairs of key and value; all tokens see all of them."""

    def __init__(self, attention: Attention, *, dim: int, pairs: int) -> None:
        super().__init__()
        self.attention = attention
        self.keys = nn.Parameter(torch.empty(pairs, dim).normal_(std=0.02))
        self.values = nn.Parameter(torch.empty(pairs, dim).normal_(std=0.02))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C); `mask` (B, 1, T, T) bool says which tokens (last axis) each one attends to."""
        batch, _, dim = x.shape
        heads, pairs = self.attention.heads, len(self.keys)
        query, key, value = by_heads(self.attention.qkv(x), heads)
        prefixes = torch.stack([self.keys, self.values]).view(2, 1, pairs, heads, dim // heads)
        before_key, before_value = prefixes.expand(-1, batch, -1, -1, -1).transpose(2, 3)  # each (B, H, P, C/H)
        mixed = F.scaled_dot_product_attention(
            query,
            torch.cat([before_key, key], dim=2),
            torch.cat([before_value, value], dim=2),
            attn_mask=None if mask is None else F.pad(mask, (pairs, 0), value=True),  # (B, 1, T, P + T)
        )
        return self.attention.proj(mixed.transpose(1, 2).flatten(2))


class PrefixTuning(Method):
    """Learned key-value pairs in every attention; class token and position train too."""

    pairs: PositiveInt = 48
    """Per block; 48 is what the field's printed 0.7 M parameters come to."""

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Give prefixes to the attention of every block."""
        added: list[nn.Parameter] = []
        for block in encoder.plain_blocks:
            attention = PrefixAttention(block.attn, dim=block.dim, pairs=self.pairs)
            block.register_module("attn", attention)
            added += [attention.keys, attention.values]
        return Adapted(encoder, added=added, unfrozen=encoder.class_parameters)
