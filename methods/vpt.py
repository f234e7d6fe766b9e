"""Visual prompt tuning: learned tokens beside the patch tokens.

Jia et al., ECCV 2022, arXiv 2203.12119. Deep: every block gets prompts of its own, and those of the block before
are dropped. Shallow: prompts enter once, before the first block. The learned prompt positions are of the point-cloud
version (official IDPT repository, class PointTransformerPromptDeep, whose order in the sequence differs; attention
does not depend on it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import PositiveInt
from torch import nn

from harness.method import Adapted, Method, Task
from harness.models.encoder import Encoder
from harness.models.transformer import Tokens


class PromptedBlock(nn.Module):
    """A block that first replaces the prompts in the sequence by its own."""

    def __init__(self, block: nn.Module, *, dim: int, prompts: int, positions: bool) -> None:
        super().__init__()
        self.block = block
        self.prompts = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, prompts, dim), std=0.02))
        self.positions = None
        if positions:
            self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, prompts, dim), std=0.02))

    @property
    def added(self) -> list[nn.Parameter]:
        """What trains here."""
        return [self.prompts] if self.positions is None else [self.prompts, self.positions]

    def forward(self, tokens: Tokens) -> Tokens:
        """[class, old prompts, patches] -> [class, own prompts, patches] through the block."""
        prompts = self.prompts.expand(len(tokens.features), -1, -1)
        positions = torch.zeros_like(prompts) if self.positions is None else self.positions.expand_as(prompts)
        return self.block(tokens.without_prompts().with_prompts(prompts, positions))


class VPT(Method):
    """Learned prompt tokens, deep or shallow; class token and position train too."""

    official_names = (
        (r"^blocks\.(\d+)\.prompts$", r"cls_prompt_list.\1"),
        (r"^blocks\.(\d+)\.positions$", r"cls_prompt_pos_list.\1"),
        (r"\.block\.", "."),
    )
    official_settings: ClassVar[dict[str, str | None]] = {"prompt_nums": "prompts"}

    prompts: PositiveInt = 10
    deep: bool = True
    positions: bool = True
    """Whether prompts have learned positions."""

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        """The number of prompts; IDPT's repository has the deep kind, with positions."""
        if "cls_prompt_list.0" not in shapes:
            return None
        positions = "cls_prompt_pos_list.0" in shapes
        return {"prompts": shapes["cls_prompt_list.0"][1], "deep": True, "positions": positions}

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Give prompts to every block (deep) or to the first (shallow)."""
        blocks = encoder.plain_blocks
        count = len(blocks) if self.deep else 1
        prompted = [
            PromptedBlock(block, dim=block.dim, prompts=self.prompts, positions=self.positions)
            for block in blocks[:count]
        ]
        adapted = encoder.with_parts(blocks=[*prompted, *blocks[count:]])
        added = [parameter for block in prompted for parameter in block.added]
        return Adapted(adapted, added=added, unfrozen=encoder.class_parameters)
