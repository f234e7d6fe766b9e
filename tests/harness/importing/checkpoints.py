"""Checkpoints as the papers' authors write them, made of small encoders of ours: their names, random values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import registry
from harness.models.backbone import Backbone
from harness.models.encoder import Encoder
from harness.models.official import renamed

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
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the import."""

    def settings(self) -> Backbone:
        found: Backbone = registry.get("backbones", self.backbone)(
            **(LEVELS if self.backbone == "point_m2ae" else PLAIN)
        )
        return found

    def state(self, encoder: Encoder) -> dict[str, Tensor]:
        own = official(encoder, lacks=self.lacks) | dict(self.inside)
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


def randomised(encoder: Encoder) -> Encoder:
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
