"""Checkpoints as the papers' authors write them, made of small encoders of ours: their names, random values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness import registry
from harness.models.backbone import Backbone
from harness.models.encoder import Encoder
from harness.models.head import Classifier
from harness.models.official import renamed

M = TypeVar("M", bound=nn.Module)
PLAIN = {"preset": "tiny", "dim": 24, "depth": 2, "groups": 8, "group_size": 8}
LEVELS = {"preset": "tiny", "depths": (1, 2, 1), "num_groups": (16, 8, 4), "group_sizes": (8, 4, 4)}


def ones(*names: str) -> dict[str, Tensor]:
    """Tensors that no encoder has."""
    return {name: torch.ones(2) for name in names}


DECODER = ones("mask_token", "decoder_pos_embed.0.weight", "MAE_decoder.blocks.0.norm1.weight", "increase_dim.0.bias")
BRANCH = ones("mask_token", "lm_head.weight", "cls_head.0.weight")
RECON = ones("img_token", "text_pos", "blocks.blocks.0.attn_contrast.q.weight", "blocks.blocks.0.norm1_contrast.bias")
LEVEL_NORMS = ones("h_encoder.encoder_norms.0.weight", "h_encoder.encoder_norms.2.bias")
LEVEL_DECODER = ones("mask_token", "h_decoder.0.blocks.0.norm1.weight", "token_prop.0.fuse.net.0.weight",
                     "decoder_norm.bias", "decoder_pos_embeds.0.2.bias", "rec_head.weight")  # fmt: skip


IN_POINT_PEFT = (
    ("h_encoder.token_embed.", "encoders."),
    ("h_encoder.encoder_pos_embeds.", "pos_embeds."),
    ("h_encoder.encoder_blocks.", "blocks."),
)
"""What Point-PEFT's copy of Point-M2AE calls its parts."""


def spelled(state: Mapping[str, Tensor], spelling: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """A state with other beginnings of names."""
    found = {}
    for name, value in state.items():
        for begins, instead in spelling:
            name = instead + name.removeprefix(begins) if name.startswith(begins) else name
        found[name] = value
    return found


@dataclass(frozen=True)
class Pretraining:
    """One official layout of pre-training."""

    backbone: str
    prefix: str = ""
    inside: Mapping[str, Tensor] = field(default_factory=dict)
    """Beside the encoder's tensors, under the same prefix."""
    outside: Mapping[str, Tensor] = field(default_factory=dict)
    lacks: tuple[str, ...] = ("class_token", "class_position")
    module: str = "module."
    spelling: tuple[tuple[str, str], ...] = ()
    """Beginnings of names that are others there."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the import."""

    def settings(self) -> Backbone:
        found: Backbone = registry.get("backbones", self.backbone)(
            **(LEVELS if self.backbone == "point_m2ae" else PLAIN)
        )
        return found

    def state(self, encoder: Encoder) -> dict[str, Tensor]:
        own = spelled(official(encoder, lacks=self.lacks), self.spelling) | dict(self.inside)
        everything = {self.prefix + name: value for name, value in own.items()} | dict(self.outside)
        return {self.module + name: value for name, value in everything.items()}


LAYOUTS = {
    "Point-MAE, pre-training": Pretraining("point_mae", "MAE_encoder.", outside=DECODER),
    "Point-BERT, pre-training": Pretraining(
        "point_bert", "transformer_q.", BRANCH, ones("queue", "queue_ptr", "dvae.encoder.first_conv.0.weight"), lacks=()
    ),
    "Point-BERT, pre-training, momentum branch": Pretraining(
        "point_bert", "transformer_k.", BRANCH, ones("transformer_q.norm.weight"), lacks=(), options={"branch": "k"}
    ),
    "ACT, pre-training": Pretraining(
        "act", "ACT_encoder.", ones("lm_head.weight", "cls_head.2.bias"),
        ones("ACT_decoder.norm.weight", "dvae_tokenizer.x", "mask_token", "proj_head.weight"), lacks=(),
    ),
    "ReCon, pre-training": Pretraining(
        "recon", "MAE_encoder.", RECON, DECODER | ones("img_proj.weight", "text_encoder.x", "cls_proj.0.bias"), lacks=()
    ),
    "an encoder under base_model.": Pretraining("recon", "base_model.", outside=ones("other"), module=""),
    "Point-M2AE, pre-training": Pretraining(
        "point_m2ae", "", LEVEL_NORMS, LEVEL_DECODER, lacks=("norm.weight", "norm.bias"), module=""
    ),
    "Point-M2AE in Point-PEFT's code": Pretraining("point_m2ae", spelling=IN_POINT_PEFT, lacks=()),
    "Point-MAE, fine-tuning": Pretraining("point_mae", module=""),
    "Point-BERT, fine-tuning": Pretraining("point_bert", lacks=()),
}  # fmt: skip


def official(encoder: Encoder, *, lacks: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """An encoder's tensors as the official code has them: other names, and 1x1 convolutions in tokenizers."""
    found = {}
    for name, value in encoder.state_dict().items():
        if name not in lacks:
            called = renamed(name, encoder.official_names)
            convolution = "_conv." in called and value.ndim == 2
            found[called] = (value[..., None] if convolution else value).clone()
    return found


def official_head(model: Classifier) -> dict[str, Tensor]:
    """The head's tensors as the official code has them."""
    return {f"cls_head_finetune.{name}": value.clone() for name, value in model.head.state_dict().items()}


def official_idpt(prompt: nn.Module, position: Tensor) -> dict[str, Tensor]:
    """IDPT's own tensors by the names of its repository, which holds every batch norm twice."""
    state = {name: value.clone() for name, value in prompt.state_dict().items()}
    found = {"prompt_pos": position.clone()}
    for ours, official, axes in (*((f"convs.{i}.", i + 1, 2) for i in range(3)), ("", 5, 1)):
        found[f"blocks.cls.conv{official}.0.weight"] = state[f"{ours}linear.weight"][(..., *[None] * axes)]
        norm = {name.removeprefix(f"{ours}norm."): v for name, v in state.items() if name.startswith(f"{ours}norm.")}
        for name, value in norm.items():
            found |= {f"blocks.cls.{place}.{name}": value.clone() for place in (f"conv{official}.1", f"bn{official}")}
    return found


def official_vpt(blocks: nn.ModuleList) -> dict[str, Tensor]:
    """VPT's own tensors by the names of IDPT's repository."""
    lists = {"cls_prompt_list": "prompts", "cls_prompt_pos_list": "positions"}
    return {
        f"{official}.{index}": block.get_parameter(ours).detach().clone()
        for official, ours in lists.items()
        for index, block in enumerate(blocks)
    }


def randomised(encoder: M) -> M:
    """All values drawn, statistics too, so that a tensor in another's place is seen."""
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
    return encoder.eval()


def write(path: Path, state: Mapping[str, Tensor], **beside: object) -> Path:
    """A checkpoint as their runners save it."""
    torch.save({"base_model": dict(state), "optimizer": {"state": {}}, "epoch": 300, **beside}, path)
    return path
