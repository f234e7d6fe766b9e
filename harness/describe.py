"""What `harness show` tells of methods, datasets and weights."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from harness import registry
from harness.errors import UserError, did_you_mean
from harness.method import Task, attach, misfits
from harness.models.weights import WEIGHTS, data_root, recipe


def _settings(kind: registry.Kind, name: str, values: dict[str, Any]) -> Any:
    model = registry.get(kind, name)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            field = ".".join(map(str, item["loc"]))
            if item["type"] == "extra_forbidden":
                lines.append(f"{name}: unknown setting '{field}'; {did_you_mean(field, model.model_fields)}")
            else:
                lines.append(f"{name}: {field}: {item['msg']}, got {item.get('input')!r}")
        raise UserError("\n".join(lines)) from None


def describe_method(name: str, *, backbone: str, preset: str, classes: int, settings: Sequence[str]) -> dict[str, Any]:
    """A method's parameter counts on a backbone, its settings and where it comes from."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected KEY=VALUE, for example rank=64")
        values[key] = yaml.safe_load(text)
    method = _settings("methods", name, values)
    declared = _settings("backbones", backbone, {"preset": preset})
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
    if name not in WEIGHTS:
        raise UserError(f"unknown weights '{name}'; {did_you_mean(name, ['random', *WEIGHTS])}")
    declared = WEIGHTS[name]
    found: dict[str, Any] = {
        "name": name,
        "backbone": declared.backbone,
        "requires": declared.requires,
        "source": declared.source,
    }
    found |= {"path": str(declared.path()), "missing": declared.missing()}
    return found | ({"recipe": recipe(name)} if declared.shipped else {})
