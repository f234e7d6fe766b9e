"""`harness export`: a trained model as a plain encoder and head, without the method that trained it.

    TRIAL  ->  FILE.safetensors (all weights), FILE.json (what to build for them)

That is possible where what the method added can be computed into the encoder's own weights (`Method.merged`): LoRA's
update is a matrix like the one it is added to. `load_exported` builds the model again; whoever wants to do without this
harness finds every size in the JSON file, and the names of docs/architecture.md in the other.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

import harness
from harness import registry
from harness.atomic import write_atomically
from harness.errors import UserError
from harness.models.backbone import Backbone
from harness.models.head import HEADS, Classifier
from harness.trained import TrainedTrial

TOLERANCE = 1e-3
"""Largest difference of scores, relative to the largest score, that rounding may make; more is a mistake."""
CLOUDS = 8


@dataclass(frozen=True)
class Exported:
    """What was written, and how near it is to the trained model."""

    weights: Path
    description: Path
    difference: float
    """Largest difference of a score on random clouds, relative to the largest score."""


def export(trained: TrainedTrial, path: Path) -> Exported:
    """Write a trained model with its method merged into the weights.

    `path` is the .safetensors file; the description goes beside it. Raises UserError when the method cannot be merged,
    or the files cannot be written.
    """
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: the weights are written as safetensors; name the file {path.name}.safetensors")
    model = trained.classifier
    encoder: nn.Module | None = model.encoder
    if not _is_plain(model.encoder, trained.trial.backbone):
        encoder = trained.trial.method.merged(copy.deepcopy(model.encoder))
    if encoder is None:
        raise UserError(
            f"method '{trained.trial.method_name}' changes what the encoder computes, not only its weights, and cannot "
            "be merged into them; use the adapter itself (docs/use_a_trained_model.md)"
        )
    merged = Classifier(encoder=encoder, pool=model.pool, head=model.head).eval()
    difference = _difference(model, merged, points=trained.points, device=trained.device)
    if not difference < TOLERANCE:
        raise UserError(f"method '{trained.trial.method_name}' merges badly: scores differ by {difference:.1e}")
    state = {name: value.detach().cpu().contiguous() for name, value in merged.state_dict().items()}
    trial = trained.trial
    described = {
        "format": 1,
        "harness": harness.__version__,
        "trial": trained.result.id,
        "backbone": {"name": trial.backbone_name, "settings": trial.backbone.model_dump(mode="json")},
        "pool": list(model.pool),
        "classes": list(trained.classes),
        "points": trained.points,
        "sampling": trial.data.sampling,
        "up": trial.dataset.up,
        "normalised": trial.dataset.normalised,
    }
    description = path.with_suffix(".json")
    try:
        write_atomically(path, save(state))
        write_atomically(description, json.dumps(described, indent=1))
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be written ({error.strerror or error})") from None
    return Exported(path, description, difference)


def _is_plain(encoder: nn.Module, backbone: Backbone) -> bool:
    """Whether an encoder has the parts that its backbone builds and no others: the method changed weights alone."""
    with torch.device("meta"):
        plain = backbone.build(drop_path=0.0)
    kinds, wanted = ({name: type(part) for name, part in whole.named_modules()} for whole in (encoder, plain))
    return kinds == wanted and encoder.state_dict().keys() == plain.state_dict().keys()


@torch.no_grad()
def _difference(model: Classifier, merged: Classifier, *, points: int, device: torch.device) -> float:
    clouds = torch.rand(CLOUDS, points, 3, generator=torch.Generator().manual_seed(0)).to(device) - 0.5
    expected = model.eval()(clouds)
    return float((merged(clouds) - expected).abs().max() / expected.abs().max())


def load_exported(path: str | Path) -> Classifier:
    """The model of an exported file, in evaluation mode on the CPU: points (B, N, 3) -> scores (B, K).

    Raises UserError when a file is missing or damaged, or the backbone is not installed here.
    """
    path = Path(path)
    description = path.with_suffix(".json")
    try:
        described: dict[str, Any] = json.loads(description.read_bytes())
        state: dict[str, Tensor] = load(path.read_bytes())
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); both files are needed") from None
    except (ValueError, RecursionError, SafetensorError) as error:
        raise UserError(f"{path}: damaged ({error}); export it again") from None
    try:
        backbone = registry.get("backbones", described["backbone"]["name"])(**described["backbone"]["settings"])
        encoder, pool = backbone.build(drop_path=0.0), tuple(described["pool"])
        head = HEADS[backbone.head](inputs=encoder.dim * len(pool), classes=len(described["classes"]))
        model = Classifier(encoder=encoder, pool=pool, head=head)
        model.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, ValidationError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise UserError(f"{description}: does not describe {path.name} ({reason}); export it again") from None
    return model.eval()
