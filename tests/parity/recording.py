"""Records made of our own model, in the format of the bundled ones, for any size and family.

They test the machinery that reads, rebuilds and compares; whether our numbers are the official ones, only records of
the official code can tell. The model is put together here once more, not by harness.rebuilt.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from harness import registry
from harness.method import Attached, Task, attach
from harness.models.head import HeadKind, classification_loss
from harness.models.official import official_name
from harness.models.transformer import without_chance


@dataclass(frozen=True)
class Recipe:
    """What to record."""

    name: str
    encoder: dict[str, Any]
    method: dict[str, Any]
    head: dict[str, Any]
    kind: HeadKind
    unstated: tuple[str, ...] = ()
    """Settings of the encoder that the manifest leaves out."""
    clouds: int = 3
    points: int = 96
    seed: int = 3
    bank: int = 0
    """Columns of the memory bank, where the method has one."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More keys of the manifest."""


class _Query(nn.Module):
    """Stands for a frozen query encoder: features (B, C) that were drawn, of which one row can be asked for."""

    def __init__(self, feature: Tensor) -> None:
        super().__init__()
        self.feature, self.rows = feature, slice(None)

    def forward(self, patches: object) -> Tensor:
        return self.feature[self.rows]


@dataclass(frozen=True)
class _Memory:
    """A drawn memory bank (C, M) and query features (B, C), put into an encoder."""

    encoder: nn.Module
    query: _Query
    bank: Tensor

    @property
    def feature(self) -> Tensor:
        return self.query.feature

    def each_alone(self, model: nn.Module, points: Tensor) -> Tensor:
        scores = []
        for row in range(len(points)):
            self.query.rows = slice(row, row + 1)
            scores.append(model(points[row : row + 1]))
        self.query.rows = slice(None)
        return torch.cat(scores)

    def without(self, model: nn.Module, points: Tensor) -> Tensor:
        self.encoder.register_buffer("bank", self.bank[:, :0])
        scores: Tensor = model(points)
        self.encoder.register_buffer("bank", self.bank)
        return scores


def _remember(encoder: nn.Module, recipe: Recipe) -> _Memory:
    width = encoder.get_buffer("bank").shape[0]
    bank = nn.functional.normalize(torch.randn(width, recipe.bank), dim=0)
    query = _Query(torch.randn(recipe.clouds, width))
    encoder.register_module("query", query)
    encoder.register_buffer("bank", bank)
    return _Memory(encoder, query, bank)


def _settings(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in ("name", "drop_path")}


def _train(attached: Attached, points: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    scores = attached.model.train()(points)
    loss = classification_loss(scores, labels, label_smoothing=smoothing)
    attached.model.zero_grad()
    loss.backward()
    return scores.detach(), loss.detach().view(1)


def write_record(folder: Path, recipe: Recipe) -> Path:
    """Record our model with random weights; returns the manifest's path."""
    torch.manual_seed(recipe.seed)
    backbone = registry.get("backbones", recipe.encoder["name"])(**_settings(recipe.encoder))
    pool = {"pool": recipe.head["inputs"]}
    method = registry.get("methods", recipe.method["name"])(**_settings(recipe.method), **pool).on(backbone)
    encoder = backbone.build(drop_path=0.1)
    attached = attach(method, encoder, Task(recipe.head["classes"], train_items=recipe.bank or 1), head=recipe.kind)
    model = attached.model
    memory = _remember(model.encoder, recipe) if recipe.bank else None
    without_chance(model)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():  # away from zeros and ones, and exact in float16 as the official records
                value.copy_((value + 0.02 * torch.rand_like(value)).half())
    begin = {key: value.clone() for key, value in model.state_dict().items() if key != "encoder.bank"}
    points = torch.rand(recipe.clouds, recipe.points, 3) - 0.5
    labels = torch.arange(recipe.clouds) % recipe.head["classes"]

    def official(name: str) -> str:
        return official_name(name, method, encoder)

    def as_official(name: str, value: Tensor) -> Tensor:
        """The official tokenizer is written with 1x1 convolutions."""
        return value[..., None].clone() if "_conv." in name and value.ndim == 2 else value.clone()

    found: dict[str, Tensor] = {"in.points": points, "in.labels": labels}
    for key, value in begin.items():
        stored = value.half() if value.is_floating_point() else value
        found[f"state.{official(key)}"] = as_official(official(key), stored)
    with torch.no_grad():
        found["out.logits_eval"] = model.eval()(points)
        if memory is not None:
            found |= {"in.bank": memory.bank, "in.cp_feat": memory.feature}
            found["out.logits_eval_each_alone"] = memory.each_alone(model, points)
            found["out.logits_eval_no_cache"] = memory.without(model, points)
    smoothing = recipe.head.get("label_smoothing", 0.0)
    found["out.logits_train"], found["out.loss"] = _train(attached, points, labels, smoothing)
    names = {official(name): parameter for name, parameter in attached.trainable.items()}
    without = [name for name, parameter in names.items() if parameter.grad is None]
    for name, parameter in names.items():
        if parameter.grad is not None:
            found[f"grad.{name}"] = as_official(name, parameter.grad)
    for key, value in model.state_dict().items():
        if key.endswith(("running_mean", "running_var")):
            found[f"bn_after_train.{official(key)}"] = value.clone()

    model.load_state_dict(begin, strict=False)
    groups = attached.optimizer_groups(0.05)
    optimizer, losses = torch.optim.AdamW(groups, lr=5e-4), []
    for _ in range(5):
        losses.append(_train(attached, points, labels, smoothing)[1].item())
        nn.utils.clip_grad_norm_(attached.trainable.values(), 10)
        optimizer.step()
    undecayed = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}  # type: ignore[attr-defined]
    stated = {key: value for key, value in recipe.encoder.items() if key not in recipe.unstated}
    manifest = {
        "name": recipe.name,
        "format": 1,
        "model": {"encoder": stated, "method": recipe.method, "head": recipe.head},
        "state_files": [f"{recipe.name}.safetensors"],
        "params_total": attached.counts.total,
        "trainable_total": attached.counts.trainable,
        "trainable": [[name, list(parameter.shape)] for name, parameter in names.items()],
        "trainable_without_gradient": without,
        "optimizer_groups": {
            "no_decay": [name for name, parameter in names.items() if id(parameter) in undecayed],
            "decay": [name for name, parameter in names.items() if id(parameter) not in undecayed],
        },
        "adamw5_losses": {"losses_before_each_step": losses},
    }
    save_file(found, folder / f"{recipe.name}.safetensors")
    path = folder / f"{recipe.name}.json"
    path.write_text(json.dumps(manifest | recipe.extra))
    return path
