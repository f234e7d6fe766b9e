"""A pre-training as a file: `pretrain:` in place of what a suite compares. `harness pretrain FILE` runs it.

The keys are documented in docs/suite.md. Reading opens no clouds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError

from harness import registry
from harness.errors import Problem, SuiteError
from harness.models.point_mae import PointMAE
from harness.settings import Fraction, NonNegative, Positive, Section
from harness.suite import find_suite, words
from harness.suite_file import Name
from harness.yaml_source import YamlPath, read_yaml


class Pretrain(Section):
    """Which clouds, which encoder, and the recipe (harness.pretrain.Recipe)."""

    data: str
    """File of clouds: .npy or .safetensors, in the data folder unless the path is absolute."""
    backbone: str = "point_mae"
    """Of Point-MAE's shape."""
    settings: dict[str, Any] = Field(default={})
    """The backbone's."""
    epochs: PositiveInt = 300
    batch_size: int = Field(default=128, ge=2)
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.05
    warmup: Fraction = 0.04
    """Fraction of all steps."""
    mask: float = Field(default=0.6, gt=0, lt=1)
    """Fraction of patches hidden."""
    decoder_depth: PositiveInt = 4
    drop_path: Fraction = 0.0
    rotate: bool = True
    """Turn clouds about the vertical, beside scaling and shifting them."""
    clip_norm: Positive = 5.0
    seed: int = Field(default=0, ge=0)


class Pretraining(Section):
    """The shape of the file."""

    format: Literal[1]
    name: Name
    """Of the weights."""
    description: str = ""
    pretrain: Pretrain


def is_pretraining(name_or_path: str) -> bool:
    """Whether a file says what to pre-train instead of what to compare. Raises SuiteError when it cannot be read."""
    return "pretrain" in read_yaml(find_suite(name_or_path)).data


def load_pretraining(name_or_path: str | Path) -> Pretraining:
    """Read and check a file. Raises SuiteError with all problems."""
    source = read_yaml(find_suite(str(name_or_path)))
    problems: list[Problem] = []

    def note(error: ValidationError, path: YamlPath, known: Any) -> None:
        for item in error.errors():
            place = (*path, *item["loc"])
            problems.append(Problem(source.file, source.line(place), ".".join(map(str, place)), words(item, known)))

    try:
        file = Pretraining.model_validate(source.data)
    except ValidationError as error:
        note(error, (), [*Pretraining.model_fields, *Pretrain.model_fields])
        raise SuiteError(problems) from None
    name = file.pretrain.backbone
    place = ("pretrain", "backbone")
    if name not in registry.names("backbones"):
        message = registry.explain_unknown("backbones", name)
        raise SuiteError([Problem(source.file, source.line(place), ".".join(place), message)])
    if not issubclass(kind := registry.get("backbones", name), PointMAE):
        message = f"masked autoencoding is built for Point-MAE's shape, and {name} is of another"
        raise SuiteError([Problem(source.file, source.line(place), ".".join(place), message)])
    try:
        kind.model_validate(file.pretrain.settings)
    except ValidationError as error:
        note(error, ("pretrain", "settings"), kind.model_fields)
        raise SuiteError(problems) from None
    return file
