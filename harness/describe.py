"""What `harness show` tells of methods, datasets and weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from harness import registry
from harness.errors import UserError
from harness.method import Task, attach, misfits
from harness.models.manifest import read_manifest
from harness.models.weights import data_root, find_weights, recipe
from harness.yaml_source import parse_settings


def describe_method(name: str, *, backbone: str, preset: str, classes: int, settings: Sequence[str]) -> dict[str, Any]:
    """A method's parameter counts on a backbone, its settings and where it comes from."""
    method = registry.configured("methods", name, parse_settings(settings, example="rank=64"))
    declared = registry.configured("backbones", backbone, {"preset": preset})
    method = method.on(declared)
    problems = [*declared.problems(declared.default_points), *misfits(method, declared)]
    if problems:
        raise UserError("\n".join(f"{name} on {backbone} {preset}: {problem}" for problem in problems))
    with torch.device("meta"):  # shapes only: nothing is allocated or drawn
        attached = attach(method, declared.build(drop_path=0.0), Task(classes, train_items=1), head=declared.head)
    module = inspect.getmodule(type(method))
    about = (module.__doc__ if module else None) or type(method).__doc__ or ""
    return {
        "parameters": asdict(attached.counts),
        "settings": method.model_dump(mode="json"),
        "about": inspect.cleandoc(about),
    }


def describe_dataset(name: str) -> dict[str, Any]:
    """A dataset's declaration, what is missing of it here (None when all is there), and its size on disk."""
    declared = registry.get("datasets", name)
    keys = ("name", "task", "version", "train_items", "test_items", "points", "up", "normalised", "licence", "source")
    found = {key: getattr(declared, key) for key in keys}
    root = data_root()
    missing = declared.missing(root)
    size = None if missing else sum(path.stat().st_size for path in declared.sources(root))
    return found | {"classes": list(declared.classes), "missing": missing, "bytes": size}


def describe_weights(name: str) -> dict[str, Any]:
    """A set of weights: declaration, place, and the recipe of shipped ones."""
    if name == "random":
        return {"name": name, "source": "no weights: the encoder as it is initialised, by the trial's seed"}
    declared = find_weights(name)
    found: dict[str, Any] = {
        "name": name,
        "backbone": declared.backbone,
        "requires": declared.requires,
        "source": declared.source,
    }
    found |= {"path": str(declared.path()), "missing": declared.missing()}
    if declared.shipped:
        return found | {"recipe": recipe(name)}
    manifest = read_manifest(name)
    return found | ({"manifest": manifest.model_dump(mode="json")} if manifest is not None else {})
