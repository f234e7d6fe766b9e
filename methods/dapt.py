"""Dynamic Adapter with Prompt Tuning (DAPT).

Zhou et al., CVPR 2024, arXiv 2403.01439; official `models/DAPT.py`. Beside every frozen operation sits a learned
scale and shift ("TFTS"); beside the feed-forward part an adapter whose output is scaled token by token ("dynamic");
and every block turns its adapter's output into one more prompt token ("internal prompt").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from harness.method import Adapted, Method, Probability, Task
from harness.models.backbone import Backbone
from harness.models.encoder import Encoder
from harness.models.head import Pool
from harness.models.recompute import for_products, recomputed
from harness.models.scale_shift import ScaleShift, ShiftedGELU, shifted
from harness.models.transformer import Block, Tokens


class DynamicAdapter(nn.Module):
    """up(dropout(gelu(down u))) * relu(scale u) with u = LayerNorm(x): a bottleneck with a scale per token."""

    def __init__(self, *, dim: int, rank: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.scale = nn.Linear(dim, 1)
        self.down = nn.Linear(dim, rank)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(rank, dim)
        for layer in (self.scale, self.down):
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C); zero at the start."""
        u = for_products(self.norm, x)
        up = recomputed(self.up, self.dropout(F.gelu(self.down(u))))
        return recomputed(torch.mul, up, F.relu(self.scale(u)))


class DAPTBlock(nn.Module):
    """A frozen block with scale-shifts, a dynamic adapter, and one more prompt in what it hands on."""

    def __init__(self, block: Block, *, dim: int, rank: int, dropout: float, first: bool) -> None:
        super().__init__()
        block.norm1 = shifted(block.norm1, dim)
        block.attn.qkv = shifted(block.attn.qkv, 3 * dim)
        block.attn.proj = shifted(block.attn.proj, dim)
        block.norm2 = shifted(block.norm2, dim)
        block.mlp.activation = ShiftedGELU(block.mlp.width)  # behind fc1
        block.mlp.fc2 = shifted(block.mlp.fc2, dim)
        self.block, self.first = block, first
        self.adapter = DynamicAdapter(dim=dim, rank=rank, dropout=dropout)
        self.prompt_shift = ScaleShift(dim)

    def forward(self, tokens: Tokens) -> Tokens:
        """[class, prompts, patches] -> [class, new prompt, prompts, patches]."""
        block = self.block
        # DAPT adds the positions once, before the first block; Point-MAE adds them before every one.
        x = tokens.features + tokens.positions if self.first else tokens.features
        x = x + block.drop_path(block.attn(for_products(block.norm1, x)))
        z = recomputed(block.norm2, x)
        adapted = self.adapter(z)
        x = x + block.drop_path(block.mlp(z) + adapted)
        prompt = self.prompt_shift(F.gelu(adapted).mean(1, keepdim=True))  # (B, 1, C)
        return replace(tokens, features=x).with_prompts(prompt, torch.zeros_like(prompt))


class DAPT(Method):
    """Dynamic adapters, internal prompts and scale-shifts; class token and position train too."""

    official_names = (
        (r"^tokenizer\.0\.", "tokenizer."),
        (r"^tokenizer\.1\.(gamma|beta)$", r"tfts_\1_1"),
        (r"^norm\.0\.", "norm."),
        (r"^norm\.1\.(gamma|beta)$", r"tfts_\1_2"),
        (r"\.block\.", "."),
        (r"\.(norm[12]|qkv|proj|fc2)\.0\.", r".\1."),
        (r"\.norm([12])\.1\.(gamma|beta)$", r".tfts_\2_\1"),
        (r"\.(?:qkv\.1|activation)\.(gamma|beta)$", r".tfts_\1_1"),
        (r"\.(?:proj|fc2)\.1\.(gamma|beta)$", r".tfts_\1_2"),
        (r"\.prompt_shift\.(gamma|beta)$", r".tfts_\1_3"),
        (r"\.adapter\.norm\.", ".Adapter_MLP.adapter_layer_norm_before."),
        (r"\.adapter\.(down|up)\.", r".Adapter_MLP.\1_proj."),
        (r"\.adapter\.scale\.", ".Adapter_MLP.scale."),
    )
    official_settings = {"drop_adapter_rate": "adapter_dropout"} | dict.fromkeys(
        ("class_token", "prompt_token", "patch_token")  # they say what the head sees: `pool`
    )
    rank: PositiveInt = 64
    adapter_dropout: Probability = 0.0
    pool: Annotated[tuple[Pool, ...], Field(min_length=1)] = ("class", "prompt_mean", "patch_max")

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        """The rank; of what the head sees only how many parts: taken for those that most official settings have."""
        down = "blocks.blocks.0.Adapter_MLP.down_proj.weight"
        if down not in shapes:
            return None
        rank, dim = shapes[down]
        parts: dict[int, tuple[Pool, ...]] = {1: ("class",), 2: ("class", "patch_max")}
        seen = shapes.get("cls_head_finetune.0.weight", (0, 0))[1] // dim
        return {"rank": rank} | ({"pool": parts[seen]} if seen in parts else {})

    def untold(self, backbone: Backbone) -> tuple[str, ...]:
        """What the head sees, where it sees two things."""
        return ("pool",)

    def problems(self, backbone: Backbone) -> list[str]:
        """Hierarchical encoders: internal prompts go from block to block, and there tokens are made anew between."""
        if backbone.hierarchical:
            return ["internal prompts travel through all blocks, and this backbone makes its tokens anew at each level"]
        return []

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Wrap every block, and scale-shift the tokenizer's output and the final norm's."""
        blocks = [
            DAPTBlock(block, dim=encoder.dim, rank=self.rank, dropout=self.adapter_dropout, first=index == 0)
            for index, block in enumerate(encoder.plain_blocks)
        ]
        adapted = encoder.with_parts(
            tokenizers=[shifted(tokenizer, encoder.dim) for tokenizer in encoder.tokenizers],
            blocks=blocks,
            norm=shifted(encoder.norm, encoder.dim),
        )
        added = [m for m in adapted.modules() if isinstance(m, ScaleShift | DynamicAdapter)]
        # The last block's prompt goes to the head alone; where the head reads no prompts, its gradient is zero.
        read = task.pooled and any(name.startswith("prompt_") for name in self.pool)
        return Adapted(
            adapted,
            added=added,
            unfrozen=encoder.class_parameters,
            dead=() if read else blocks[-1].prompt_shift.parameters(),
        )
