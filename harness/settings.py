"""The sections of a suite that are the same for every trial: training, protocol, data, resources.

Key names and defaults are documented in docs/suite.md. Numbers written as text (`1e-4` is text for YAML) are read
as numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
)


def _finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("must be a finite number")
    return value


Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0), AfterValidator(_finite)]
Positive = Annotated[float, Field(gt=0), AfterValidator(_finite)]

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DURATION = r"^\s*(\d+(?:\.\d+)?)\s*([smhd])\s*$"


def _seconds(value: Any) -> Any:
    """`90`, `90s`, `15m`, `12h` or `2d` as seconds."""
    if isinstance(value, str) and (match := re.match(DURATION, value)):
        return float(match[1]) * UNITS[match[2]]
    return value


Duration = Annotated[
    Positive,
    BeforeValidator(_seconds, json_schema_input_type=Positive | Annotated[str, Field(pattern=DURATION)]),
]


class Section(BaseModel):
    """A section of a suite: no unknown keys, no changes after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Train(Section):
    """How a model is fine-tuned. Defaults are the papers' (Point-MAE's recipe)."""

    epochs: PositiveInt = 300
    """Passes over the training split."""
    batch_size: Annotated[int, Field(ge=2)] = 32
    """Global batch size; the last partial batch of an epoch is dropped."""
    learning_rate: Positive = 5e-4
    """The highest: after the warm-up, before the cosine takes it down."""
    weight_decay: NonNegative = 0.05
    """AdamW's; vectors and the class token have none."""
    warmup_epochs: NonNegativeInt = 10
    """Epochs of linear warm-up."""
    schedule: Literal["cosine", "paper"] = "cosine"
    """Of the rate. `paper`: set once per epoch and an epoch late, so that two epochs run at the lowest rate; one epoch
    more than `epochs` is run (docs/protocol.md)."""
    clip_norm: Positive = 10.0
    """Gradients are clipped to this global norm."""
    augment: Literal["none", "scale_translate", "rotate", "scale_rotate", "scale_shift"] = "scale_translate"
    """Of training clouds: a scale and a shift per axis, a turn about the vertical axis, or a slight scale per axis and
    one turn for the whole batch (Point-PEFT's for PB_T50_RS). `scale_shift`: one scale per cloud and a slight shift
    (the papers' for part segmentation)."""
    drop_path: Fraction = 0.1
    """Largest probability of leaving out a block's branch; it grows from 0 with depth."""
    head_dropout: Fraction = 0.5
    """Between the layers of the classification head."""
    label_smoothing: Fraction = 0.0
    """Share of a target that the wrong classes get, evenly (Point-BERT 0.2, Point-M2AE on ModelNet40 0.3)."""

    @property
    def passes(self) -> int:
        """Passes over the training split that are run: with `schedule: paper` one more than `epochs`."""
        return self.epochs + (self.schedule == "paper")


class Protocol(Section):
    """How a model is chosen and measured (docs/protocol.md)."""

    selection: Literal["last", "validation", "paper"] = "last"
    """The model that is tested: the last epoch's, or the best one's on a validation split (needs
    `validation_fraction`). `paper`: the last epoch's, and beside it the papers' number, the best on the test split."""
    validation_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Part of the training split held out, by a fixed seed per dataset."""
    validation_seed: Annotated[NonNegativeInt, Field(exclude_if=lambda seed: seed == 0)] = 0
    """Another number holds out other items. Part of the identity where it is not 0."""
    vote: Annotated[int, Field(ge=0, le=1000)] = 0
    """Passes over the test split with random points and the training augmentation, whose scores are averaged for a
    number beside the accuracy (the papers': 10)."""
    frozen_batchnorm: Literal["batch", "running"] = "batch"
    """Batch norms without trainable parameters: batch statistics, as the papers' code does, or running ones."""
    batchnorm: Annotated[Literal["local", "global"], Field(exclude_if=lambda kind: kind == "local")] = "local"
    """Batch statistics of a trial of several processes: each takes those of its own rows, or all those of the whole
    batch. Part of the identity where it is `global`."""


class Data(Section):
    """What of a cloud the encoder sees."""

    points: PositiveInt | None = None
    """Points per cloud; the backbone's own number when not given."""
    sampling: Literal["random", "fps", "resample"] = "random"
    """`random`: a random subset, fixed at test. `fps`: the papers' farthest points, then a random subset.
    `resample`: each point drawn anew, some twice (the papers' for part segmentation, and only there)."""


Strategy = Literal["ddp", "zero1", "zero2", "zero3"]


class Resources(Section):
    """What a trial runs on, and how."""

    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    """That train one model together, on one node; `train.batch_size` stays that of all of them."""
    gpus_per_process: Annotated[int, Field(ge=0, le=1)] | None = None
    """One where the machine has a GPU, none elsewhere, unless given."""
    cpus_per_process: PositiveInt = 1
    """Also the number of threads."""
    strategy: Strategy = "ddp"
    """How several processes share the work: each holds all (DDP), or DeepSpeed divides optimiser states (`zero1`),
    gradients too (`zero2`), parameters too (`zero3`)."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Of the forward pass. `auto`: bf16 on GPUs that have it, fp16 on others, fp32 on processors."""
    activation_checkpointing: Annotated[bool, Field(exclude_if=lambda on: not on)] = False
    """Keep of every block what goes into it, and run it again in the backward pass: the same numbers from less memory,
    in more time. Part of the identity where it is true, as costs are results."""
    gpus: Literal["exclusive", "shared"] = "exclusive"
    """`shared`: small trials of one process take parts of a GPU. Their times and memory are not ranked."""
    timeout: Duration = 43200.0
    """Seconds, or text such as `15m` or `12h`."""

    def spec(self) -> dict[str, Any]:
        """What of it a trial's specification holds, and so its identity."""
        held = {"precision", "processes", "strategy", "activation_checkpointing"}
        return self.model_dump(mode="json", include=held)


def sharing_problems(train: Train, resources: Resources) -> Iterator[tuple[str, str]]:
    """What keeps the processes of a trial from sharing its batches: the field, and why."""
    size, processes = train.batch_size, resources.processes
    if size % processes or size < 2 * processes:
        yield "train.batch_size", f"{size} does not divide among {processes} processes into parts of at least two"
    if resources.strategy != "ddp" and find_spec("deepspeed") is None:
        yield "resources.strategy", "needs DeepSpeed: pip install 'pointpeft-harness[deepspeed]'"
    if resources.strategy != "ddp" and processes == 1:
        yield "resources.strategy", f"{resources.strategy} divides among processes; set resources.processes above 1"
    if resources.strategy != "ddp" and resources.precision != "fp32":
        why = "DeepSpeed turns the whole model into it, and our forward passes are not built for that"
        yield (
            "resources.precision",
            f"{resources.precision} with {resources.strategy}: {why}; set fp32, or strategy ddp",
        )
