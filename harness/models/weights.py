"""Pre-trained weights by name: shipped, known by where their authors publish them, or imported by the user.

Declared as data, opened only where a trial needs them, always safetensors. A known set of weights is here once its file
was imported under its name (`harness weights import`, harness.importing); an imported one is found by its manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from harness.errors import UserError, did_you_mean
from harness.models.encoder import Encoder
from harness.models.manifest import Manifest, data_root, imported_names, read_manifest, weights_path

__all__ = [
    "WEIGHTS",
    "OfficialFile",
    "Weights",
    "all_weights",
    "data_root",
    "find_weights",
    "load_weights",
    "recipe",
    "weights_version",
]

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class OfficialFile:
    """A file that its authors publish."""

    page: str
    """Where a reader finds it."""
    file: str | None = None
    """What it is called there, where that is known."""
    url: str | None = None
    """The direct link that the authors print; None where there is only a page to click through."""
    sha256: str | None = None
    """None as long as nobody has told it to us."""

    def command(self, name: str) -> str:
        """What imports it under a name."""
        return f"harness weights import {self.file or 'FILE.pth'} --as {name}"

    def how_to_get(self, name: str) -> str:
        """What to do to have it here under a name."""
        what = self.file or "the checkpoint"
        fetch = f" (or: harness weights fetch {name})" if self.url and self.sha256 else ""
        return f"The authors publish {what} at {self.page}; get it, then: {self.command(name)}{fetch}"


@dataclass(frozen=True)
class Weights:
    """Declaration of one set of weights."""

    name: str
    version: int
    backbone: str
    requires: dict[str, Any] = field(default_factory=dict)
    """Backbone settings that the weights need."""
    source: str = ""
    """What they were trained on, or where they come from."""
    shipped: bool = False
    official: OfficialFile | None = None

    def misfit(self, backbone: Any) -> str | None:
        """Why these weights do not fit a backbone's settings, or None."""
        wrong = [
            f"{key} is {getattr(backbone, key, None)}, they have {value}"
            for key, value in self.requires.items()
            if getattr(backbone, key, None) != value
        ]
        return "; ".join(wrong) or None

    def path(self) -> Path:
        """Where the file is, or should be."""
        return ASSETS / f"{self.name}.safetensors" if self.shipped else weights_path(self.name)

    def missing(self) -> str | None:
        """None when the file is there, else what to do."""
        if self.path().is_file():
            return None
        how = self.official.how_to_get(self.name) if self.official else _again(self.name)
        return f"weights '{self.name}' are not at {self.path()}. {how}"


_TINY = {"dim": 96, "depth": 4, "heads": 6, "tokenizer_width": 32}
_BASE = {"dim": 384, "depth": 12, "heads": 6, "tokenizer_width": 256}
_LEVELS = {"dims": (96, 192, 384), "depths": (5, 5, 5), "heads": 6, "tokenizer_width": 256}
_SHAPENET = "Pre-trained on ShapeNet-55 by the authors."

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
            source=_SHAPENET,
            official=OfficialFile(
                file="pretrain.pth",
                page="https://github.com/Pang-Yatian/Point-MAE (section 'Point-MAE Models')",
                url="https://github.com/Pang-Yatian/Point-MAE/releases/download/main/pretrain.pth",
            ),
        ),
        Weights(
            name="point_bert_shapenet",
            version=1,
            backbone="point_bert",
            requires=_BASE | {"tokenizer_dim": 256},
            source=_SHAPENET,
            official=OfficialFile(
                file="Point-BERT.pth",
                page="https://github.com/lulutang0608/Point-BERT (section 'Pretrained Models')",
                url="https://cloud.tsinghua.edu.cn/f/202b29805eea45d7be92/?dl=1",
            ),
        ),
        Weights(
            name="act_shapenet",
            version=1,
            backbone="act",
            requires=_BASE,
            source=_SHAPENET,
            official=OfficialFile(page="https://github.com/RunpeiDong/ACT (model_zoo/MODEL_ZOO.md, 'Pre-training')"),
        ),
        Weights(
            name="recon_shapenet",
            version=1,
            backbone="recon",
            requires=_BASE,
            source=_SHAPENET,
            official=OfficialFile(page="https://github.com/qizekun/ReCon ('Models')"),
        ),
        Weights(
            name="point_m2ae_shapenet",
            version=1,
            backbone="point_m2ae",
            requires=_LEVELS,
            source=_SHAPENET,
            official=OfficialFile(
                file="pre-train.pth", page="https://github.com/ZrrSkywalker/Point-M2AE (section 'Point-M2AE Models')"
            ),
        ),
    )
}


def find_weights(name: str) -> Weights:
    """The weights of that name: shipped and known ones first. Raises UserError when there are none."""
    if name in WEIGHTS:
        return WEIGHTS[name]
    manifest = read_manifest(name)
    if manifest is None:
        raise UserError(f"unknown weights '{name}'; {did_you_mean(name, ['random', *all_weights()])}")
    return _declared(manifest)


def all_weights() -> dict[str, Weights]:
    """All weights by name, imported ones last; read anew each time, for imports come and go while Python runs."""
    return WEIGHTS | {name: find_weights(name) for name in imported_names() if name not in WEIGHTS}


def weights_version(name: str) -> int:
    """The version of weights in a trial's identity; 0 for random ones."""
    if name in WEIGHTS:
        return WEIGHTS[name].version
    manifest = read_manifest(name)
    return manifest.version if manifest is not None else 0


def _declared(manifest: Manifest) -> Weights:
    return Weights(
        name=manifest.name,
        version=manifest.version,
        backbone=manifest.backbone,
        requires=manifest.requires,
        source=f"Imported from {manifest.source.file} ({manifest.source.layout}).",
    )


def load_weights(encoder: Encoder, name: str) -> str:
    """Copy weights into an encoder; returns the file's SHA-256.

    What is new at fine-tuning may be absent and stays as it is. Raises UserError for a file that is missing, damaged,
    not the one that was imported, or of another shape.
    """
    declared = find_weights(name)
    problem = declared.missing()
    if problem:
        raise UserError(problem)
    path = declared.path()
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        state = {key: value.float() for key, value in load(content).items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from None
    manifest = None if declared.shipped else read_manifest(name)
    if manifest is not None and manifest.digest != digest:
        raise UserError(
            f"{path}: SHA-256 {digest[:12]}… is not the {manifest.digest[:12]}… of its manifest; {_again(name)}"
        )
    for key, value in state.items():
        if not torch.isfinite(value).all():
            raise UserError(f"{path}: '{key}' holds NaN or infinite values; get the file again")
    if misfit := _misfit(encoder, state):
        raise UserError(f"{path}: {misfit}; is this the right encoder?")
    encoder.load_state_dict(state, strict=False)
    return digest


def _misfit(encoder: Encoder, state: Mapping[str, torch.Tensor]) -> str | None:
    """Why tensors are not those of an encoder, or None."""
    own = encoder.state_dict()
    shapes = [
        f"'{k}' is {tuple(v.shape)}, the encoder has {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    ]
    optional = encoder.new_at_fine_tuning
    absent = [k for k in own if k not in state and k not in optional and not k.endswith("num_batches_tracked")]
    foreign = [k for k in state if k not in own]
    for what, found in (("of another shape", shapes), ("missing", absent), ("unknown", foreign)):
        if found:
            return f"{len(found)} tensors {what}, first {found[0]}"
    return None


def _again(name: str) -> str:
    return f"import them again: harness weights import FILE --as {name} --force"


def recipe(name: str) -> dict[str, Any]:
    """How shipped weights were made: settings, data, loss curve, digest."""
    loaded: dict[str, Any] = json.loads((ASSETS / f"{name}.json").read_text())
    return loaded
