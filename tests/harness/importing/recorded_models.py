"""Recorded models as checkpoints, and datasets that they may have been trained on."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from harness.data.imported import Card, ClassCounts, card_path, clouds_path
from harness.importing.cards import ImportedCard
from harness.importing.files import import_file
from harness.recorded import BUNDLED, Record, read_record
from tests.harness.importing.checkpoints import (
    DECODER,
    IN_POINT_PEFT,
    LEVEL_DECODER,
    LEVEL_NORMS,
    spelled,
    write,
)

PATCHES = ["backbone.groups=16", "backbone.group_size=8", "data.points=128"]
LEVELS = [
    "backbone.heads=3", "backbone.num_groups=[32, 16, 8]", "backbone.group_sizes=[8, 6, 4]",
    "backbone.local_radius=[0.5, 0.8, 1.28]", "data.points=128",
]  # fmt: skip
CASES: dict[str, tuple[str, list[str]]] = {
    "pointmae_full": ("full", PATCHES),
    "dapt_use_mean_max": ("dapt", PATCHES),
    "dapt_use_mean_None": ("dapt", [*PATCHES, "method.pool=[class, prompt_mean]"]),
    "m2ae_scan_full": ("full", LEVELS),
}


ADDED = ("cls_", "tfts", "Adapter", "adapter", "prompt_", "attn1", "norm3", "ad_gate", "out_transform")
"""Words in the names of tensors that methods add."""


@cache
def record(name: str) -> Record:
    return read_record(BUNDLED / f"{name}.json")


def state(name: str) -> dict[str, Tensor]:
    """The official state of a recorded model, as torch had it."""
    return record(name).state


def finetuned_file(path: Path, name: str, **changes: Tensor | None) -> Path:
    """A checkpoint as the official fine-tuning writes it."""
    found: dict[str, Any] = {f"module.{key}": value for key, value in {**state(name), **changes}.items()}
    return write(path, {k: v for k, v in found.items() if v is not None}, metrics={"acc": torch.tensor(75.0)})


def pretrained_file(path: Path, name: str, *, prefix: str = "MAE_encoder.", **changes: Tensor) -> Path:
    """A pre-training checkpoint with the frozen tensors of a recorded model."""
    plain = {k: v for k, v in state(name).items() if not any(word in k for word in ADDED)} | changes
    return write(path, {f"module.{prefix}{k}": v for k, v in plain.items()} | DECODER)


def pretrained_levels(path: Path, name: str) -> Path:
    """The same of Point-M2AE, whose pre-training has other norms at the end."""
    plain = {k: v for k, v in state(name).items() if not any(word in k for word in (*ADDED, "prompt"))}
    lacks = ("norm.weight", "norm.bias")
    names = spelled(plain, tuple((theirs, ours) for ours, theirs in IN_POINT_PEFT))
    return write(path, {k: v for k, v in names.items() if k not in lacks} | LEVEL_NORMS | LEVEL_DECODER)


def make_dataset(root: Path, name: str, points: Tensor, labels: Tensor, *, classes: int, each: int = 2) -> None:
    """An imported dataset: the given clouds to test on, and `each` more of each class to train on."""
    drawn = torch.rand(each * classes, *points.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    content = save(
        {
            "points": torch.cat([points, drawn]).numpy(),
            "labels": torch.cat([labels, torch.arange(each * classes) % classes]).numpy().astype(np.int64),
            "test": np.array([1] * len(points) + [0] * each * classes, dtype=np.uint8),
        }
    )
    kinds = tuple(f"kind{index}" for index in range(classes))
    card = Card(
        name=name, classes=kinds, train_items=each * classes, test_items=len(points), points=points.shape[1], up="z",
        counts={kind: ClassCounts(read=each, refused=0, train=each, test=1) for kind in kinds}, normalised=True,
        licence="", folder="x", split="", duplicates=0, shared=0, ignored=0, refused=(),
        digest=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip
    clouds_path(name, root).parent.mkdir(parents=True, exist_ok=True)
    clouds_path(name, root).write_bytes(content)
    card_path(name, root).write_text(card.model_dump_json())


def import_model(path: Path, **options: Any) -> ImportedCard:
    found = import_file(path, **options)
    assert isinstance(found, ImportedCard)
    return found


def given(sizes: Mapping[str, object]) -> list[str]:
    """What no tensor of a small encoder tells."""
    patches = ("groups", "group_size", "num_groups", "group_sizes")
    told = {key: list(v) if isinstance(v, tuple) else v for key, v in sizes.items() if key in patches}
    return [*(f"backbone.{key}={value}" for key, value in told.items()), "data.points=64"]
