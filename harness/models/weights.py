"""Pre-trained weights by name: declared as data, opened only where a trial needs them, always safetensors."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from harness.errors import UserError

ASSETS = Path(__file__).parent / "assets"


def data_root() -> Path:
    """Where a user's data and weights lie: HARNESS_DATA, or `data` in the current folder."""
    return Path(os.environ.get("HARNESS_DATA", "data")).expanduser()


@dataclass(frozen=True)
class Weights:
    """Declaration of one set of weights."""

    name: str
    version: int
    backbone: str
    requires: dict[str, Any] = field(default_factory=dict)
    """Backbone settings that the weights need."""
    source: str = ""
    """What they were trained on, and where a user gets them."""
    shipped: bool = False

    def misfit(self, backbone: Any) -> str | None:
        """Why these weights do not fit a backbone's settings, or None."""
        wrong = [
            f"{key} is {getattr(backbone, key)}, they have {value}"
            for key, value in self.requires.items()
            if getattr(backbone, key) != value
        ]
        return "; ".join(wrong) or None

    def path(self) -> Path:
        """Where the file is, or should be."""
        return (
            ASSETS / f"{self.name}.safetensors"
            if self.shipped
            else data_root() / "weights" / f"{self.name}.safetensors"
        )

    def missing(self) -> str | None:
        """None when the file is there, else what to do."""
        if self.path().is_file():
            return None
        return f"weights '{self.name}' are not at {self.path()}. {self.source}"


_TINY = {"dim": 96, "depth": 4, "heads": 6, "tokenizer_width": 32}
_BASE = {"dim": 384, "depth": 12, "heads": 6, "tokenizer_width": 256}

WEIGHTS: dict[str, Weights] = {
    weights.name: weights
    for weights in (
        Weights(
            name="point_mae_tiny_parts",
            version=1,
            backbone="point_mae",
            requires=_TINY,
            source="Pre-trained by `harness pretrain` on LDraw parts and other furniture; ships with the harness.",
            shipped=True,
        ),
        Weights(
            name="point_mae_shapenet",
            version=1,
            backbone="point_mae",
            requires=_BASE,
            source="The authors publish pretrain.pth at https://github.com/Pang-Yatian/Point-MAE (section "
            "'Models'). Reading their .pth files is not built yet: put the encoder there as safetensors, with "
            "this project's parameter names (docs/protocol.md, 'Weights').",
        ),
    )
}


def load_weights(encoder: nn.Module, name: str) -> str:
    """Copy weights into an encoder; returns the file's SHA-256.

    Class token and position may be absent (no pre-training has them): they stay as they are. Raises UserError for
    a file that is missing, damaged, or of another shape.
    """
    declared = WEIGHTS[name]
    problem = declared.missing()
    if problem:
        raise UserError(problem)
    path = declared.path()
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from None
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: '{key}' holds NaN or infinite values; get the file again")
    own = encoder.state_dict()
    shapes = [
        f"'{k}' is {tuple(v.shape)}, the encoder has {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    ]
    optional = {"class_token", "class_position"}
    absent = [k for k in own if k not in state and k not in optional and not k.endswith("num_batches_tracked")]
    foreign = [k for k in state if k not in own]
    for what, found in (("of another shape", shapes), ("missing", absent), ("unknown", foreign)):
        if found:
            raise UserError(f"{path}: {len(found)} tensors {what}, first {found[0]}; is this the right encoder?")
    encoder.load_state_dict(state, strict=False)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recipe(name: str) -> dict[str, Any]:
    """How shipped weights were made: settings, data, loss curve, digest."""
    loaded: dict[str, Any] = json.loads((ASSETS / f"{name}.json").read_text())
    return loaded
