"""Instance-aware Dynamic Prompt Tuning (IDPT): one prompt, made of each cloud's own patch tokens by a graph network.

Zha et al., ICCV 2023, arXiv 2304.07221; official `models/Point_MAE.py`, classes PointTransformer and
TransformerPromptEncoderLayerI, and `models/dgcnn.py`, class DGCNNView. Before one block, three edge convolutions and
a maximum over the patches turn the patch tokens into a prompt, which stands behind the class token from there on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from harness.geometry import gather_points
from harness.method import Adapted, Method, Task
from harness.models.backbone import Backbone
from harness.models.batchnorm import PointwiseNorm
from harness.models.encoder import Encoder
from harness.models.head import Pool
from harness.models.transformer import Tokens


@torch.no_grad()
def nearest_features(x: Tensor, count: int) -> Tensor:
    """Indices (B, G, k) int64 of the k tokens nearest to each of x (B, G, C), itself included."""
    # The official code expands |a - b|^2 into products, which reorders near neighbours by rounding.
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # (B, G, G)
    return distance.topk(count, dim=-1, largest=False).indices


class EdgeConv(nn.Module):
    """max over neighbours j of leaky_relu(norm(W [x_j - x_i; x_i])) (Wang et al., TOG 2019, arXiv 1801.07829)."""

    def __init__(self, *, dim: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.linear = nn.Linear(2 * dim, dim, bias=False)
        self.norm = PointwiseNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, G, C) -> (B, G, C); the graph is taken anew from x."""
        members = nearest_features(x, min(self.neighbours, x.shape[1]))
        # W [x_j - x_i; x_i] is U x_j + (V - U) x_i: the layer sees every token once instead of once per edge.
        for_edge, for_self = self.linear.weight.chunk(2, dim=1)
        edges = gather_points(F.linear(x, for_edge), members) + F.linear(x, for_self - for_edge)[:, :, None]
        return F.leaky_relu(self.norm(edges), 0.2).amax(2)  # (B, G, k, C) -> (B, G, C)


class PromptModule(nn.Module):
    """Patch tokens -> one prompt: three edge convolutions, a layer on all their outputs, a maximum over patches."""

    def __init__(self, *, dim: int, neighbours: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(EdgeConv(dim=dim, neighbours=neighbours) for _ in range(3))
        self.linear = nn.Linear(3 * dim, dim, bias=False)
        self.norm = PointwiseNorm(dim)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, G, C) -> (B, 1, C)."""
        features = []
        for conv in self.convs:
            patches = conv(patches)
            features.append(patches)
        mixed = self.norm(self.linear(torch.cat(features, dim=-1)))
        return F.leaky_relu(mixed, 0.2).amax(1, keepdim=True)


class PromptingBlock(nn.Module):
    """A block before which the prompt is made and put into the sequence."""

    def __init__(self, block: nn.Module, prompt: PromptModule, *, dim: int) -> None:
        super().__init__()
        self.block, self.prompt = block, prompt
        # The published code draws the prompt's position and leaves it out of the optimiser: it stays as drawn.
        self.position: Tensor
        self.register_buffer("position", nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))

    def forward(self, tokens: Tokens) -> Tokens:
        """[class, patches] -> [class, prompt, patches] through the block."""
        prompt = self.prompt(tokens.patches)
        return self.block(tokens.with_prompts(prompt, self.position.expand_as(prompt)))


class IDPT(Method):
    """A prompt from a graph network over the patch tokens, before one block; class token and position train too."""

    official_names = (
        *((rf"^blocks\.\d+\.prompt\.convs\.{i}\.linear\.", f"blocks.cls.conv{i + 1}.0.") for i in range(3)),
        *((rf"^blocks\.\d+\.prompt\.convs\.{i}\.norm\.", f"blocks.cls.bn{i + 1}.") for i in range(3)),
        (r"^blocks\.\d+\.prompt\.linear\.", "blocks.cls.conv5.0."),
        (r"^blocks\.\d+\.prompt\.norm\.", "blocks.cls.bn5."),
        (r"^blocks\.\d+\.position$", "prompt_pos"),
        (r"\.block\.", "."),
    )
    official_aliases = ((r"^blocks\.cls\.conv(\d)\.1\.", r"blocks.cls.bn\1."),)
    official_settings: ClassVar[dict[str, str | None]] = {
        "prompt_layer": "prompt_block",
        "prompt_module": None,
        "cls_type": None,
    }

    pool: Annotated[tuple[Pool, ...], Field(min_length=1)] = ("class", "prompt_max", "patch_max")
    """There is one prompt. Official `cls_type`: this is `all`; `promptonly`, of OBJ_BG, is the prompt alone."""
    prompt_block: NonNegativeInt | None = None
    """Index of the block that gets the prompt, from 0; the last one when not given. Officially 11, 6 for OBJ_ONLY."""
    neighbours: PositiveInt = 20
    """Of every patch in the graph, itself included; never more than there are patches."""

    def untold(self, backbone: Backbone) -> tuple[str, ...]:
        """Which block has the prompt; and what the head sees, where it sees two things."""
        return ("pool", "prompt_block")

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        """What the head sees, by its number of inputs; two parts are `promptcls` or `pointcls`, taken for the first."""
        if "prompt_pos" not in shapes or "blocks.cls.conv5.0.weight" not in shapes:
            return None
        parts: dict[int, tuple[Pool, ...]] = {1: ("prompt_max",), 2: ("class", "prompt_max")}
        seen = shapes["cls_head_finetune.0.weight"][1] // shapes["prompt_pos"][-1]
        return {"pool": parts[seen]} if seen in parts else {}

    def problems(self, backbone: Backbone) -> list[str]:
        """Hierarchical encoders, whose tokens of one level are not those of the next; a block that is not there."""
        if backbone.hierarchical:
            return ["its prompt stays in the sequence, and this backbone makes its tokens anew at each level"]
        depth = getattr(backbone, "depth", None)
        if self.prompt_block is not None and depth is not None and self.prompt_block >= depth:
            return [f"prompt_block {self.prompt_block} is not there: blocks are 0 to {depth - 1}"]
        return []

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """Put the prompt module before its block."""
        blocks: list[nn.Module] = list(encoder.plain_blocks)
        place = len(blocks) - 1 if self.prompt_block is None else self.prompt_block
        prompt = PromptModule(dim=encoder.dim, neighbours=self.neighbours)
        blocks[place] = PromptingBlock(blocks[place], prompt, dim=encoder.dim)
        return Adapted(encoder.with_parts(blocks=blocks), added=[prompt], unfrozen=encoder.class_parameters)
