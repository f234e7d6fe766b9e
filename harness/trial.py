"""A trial: one method x backbone x dataset x seed, resolved to the last number, and its identity."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from pydantic import ValidationError

from harness import registry
from harness.data.dataset import Declaration
from harness.errors import UserError
from harness.method import Method
from harness.models.backbone import Backbone
from harness.models.weights import find_weights, weights_version
from harness.result import trial_name
from harness.settings import Data, Protocol, Resources, Train

SPEC_FORMAT = 1
Keep = Literal["adapter", "none", "all"]


def canonical(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def identity_of(spec: dict[str, Any]) -> str:
    """16 hexadecimal digits: the hash of a trial's specification."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Trial:
    """Everything that decides the outcome of a trial, and the labels that a suite gives it."""

    method_label: str
    backbone_label: str
    method_name: str
    method: Method
    backbone_name: str
    backbone: Backbone
    dataset: Declaration
    train: Train
    protocol: Protocol
    data: Data
    resources: Resources
    seed: int = 0
    baseline: str | None = None
    """Name of a baseline that trains nothing (harness.baselines); method and backbone then only lend the points."""
    reference: bool = False
    """A row of the report that is no method of the comparison."""
    keep: Keep = "adapter"
    """What stays of a finished trial beside its result: the adapter, nothing, or the last checkpoint too."""

    def __post_init__(self) -> None:
        """Fill in what the method leaves to the backbone, so that the specification names it."""
        object.__setattr__(self, "method", self.method.on(self.backbone))

    @classmethod
    def from_spec(cls, spec: dict[str, Any], *, dataset: Declaration | None = None) -> Self:
        """The trial of a resolved specification: equal identity, plug-ins' names as labels.

        `dataset` stands in for one that is not on this machine. Raises UserError for a baseline, which has no model,
        and for all that would make another trial here: plug-ins that are missing or of another version, too.
        """
        if "baseline" in spec:
            raise UserError(f"the baseline '{spec['baseline']}' trains nothing; choose the trial of a method")
        names = {kind: spec[kind]["name"] for kind in ("method", "backbone", "dataset")}
        try:
            trial = cls(
                method_label=names["method"],
                backbone_label=names["backbone"],
                method_name=names["method"],
                method=_plugin("methods", spec["method"]).model_validate(spec["method"]["settings"]),
                backbone_name=names["backbone"],
                backbone=_plugin("backbones", spec["backbone"]).model_validate(spec["backbone"]["settings"]),
                dataset=dataset if dataset is not None else _dataset(spec["dataset"]),
                train=Train.model_validate(spec["train"]),
                protocol=Protocol.model_validate(spec["protocol"]),
                data=Data.model_validate(spec["data"]),
                resources=Resources.model_validate(spec["resources"]),
                seed=spec["seed"],
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, (error.title, *first["loc"])))
            raise UserError(f"settings of another version of the harness: {where}: {first['msg']}") from None
        if trial.backbone.weights != "random":
            find_weights(trial.backbone.weights)
        here = trial.spec()
        if differing := [key for key in sorted({*spec, *here}) if spec.get(key) != here.get(key)]:
            raise UserError(f"made by another version of the harness: {', '.join(differing)} would be different here")
        return trial

    def with_seed(self, seed: int) -> Self:
        """The same trial with another seed."""
        return replace(self, seed=seed)

    def at_fold(self, fold: int | None) -> Self:
        """The same trial on another fold of its dataset; itself for None."""
        return self if fold is None else replace(self, dataset=self.dataset.with_fold(fold))

    def label(self, facet: str) -> str | int | None:
        """What the suite calls this trial's method, backbone, dataset, seed or fold."""
        labels: dict[str, str | int] = {
            "method": self.method_label,
            "backbone": self.backbone_label,
            "dataset": self.dataset.name,
            "seed": self.seed,
        }
        if self.fold is not None:
            labels["fold"] = self.fold
        return labels.get(facet)

    @property
    def fold(self) -> int | None:
        """Which fold of its dataset; None where that has none."""
        return self.dataset.fold

    @property
    def processes(self) -> int:
        """How many train it together; a baseline runs in one."""
        return 1 if self.baseline is not None else self.resources.processes

    @property
    def name(self) -> str:
        """For people: `lora point_mae sweethome12 seed 0`."""
        return trial_name(self.method_label, self.backbone_label, self.dataset.name, seed=self.seed, fold=self.fold)

    @property
    def split_name(self) -> str:
        """Dataset and fold, which the random streams are drawn from with the seed index."""
        return self.dataset.name + (f" fold {self.fold}" if self.fold is not None else "")

    @property
    def seeds(self) -> Seeds:
        """The random streams."""
        return Seeds.of(self.split_name, self.seed)

    def row(self) -> dict[str, Any]:
        """Identity and the suite's labels, as suite.json and `harness plan` list a trial."""
        return {
            "id": self.identity,
            "method": self.method_label,
            "backbone": self.backbone_label,
            "dataset": self.dataset.name,
            "seed": self.seed,
            "fold": self.fold,
            "reference": self.reference,
        }

    def spec(self) -> dict[str, Any]:
        """The resolved specification, as result.json holds it. Reading it back gives the same trial."""
        fold = {"fold": self.fold} if self.fold is not None else {}
        common: dict[str, Any] = {
            "format": SPEC_FORMAT,
            "dataset": {"name": self.dataset.name, "version": self.dataset.version} | fold,
            "data": self.data.model_dump(mode="json"),
        }
        if self.baseline is not None:
            return common | {"baseline": self.baseline}
        method = {"name": self.method_name, "version": self.method.version}
        backbone = {"name": self.backbone_name, "version": self.backbone.version}
        return common | {
            "method": method | {"settings": self.method.model_dump(mode="json")},
            "backbone": backbone | {"settings": self.backbone.model_dump(mode="json")},
            "weights_version": weights_version(self.backbone.weights),
            "train": self.train.model_dump(mode="json"),
            "protocol": self.protocol.model_dump(mode="json"),
            "seed": self.seed,
            "resources": self.resources.spec(),
        }

    @cached_property
    def identity(self) -> str:
        """16 hexadecimal digits: the hash of the specification. Names the trial's folder."""
        return identity_of(self.spec())


def _dataset(wanted: dict[str, Any]) -> Declaration:
    """The dataset that a specification names, at its fold."""
    found: Declaration = _plugin("datasets", wanted)
    return found.with_fold(wanted["fold"]) if "fold" in wanted else found


def _plugin(kind: registry.Kind, wanted: dict[str, Any]) -> Any:
    """The plug-in that a specification names. Raises UserError when it is not here, or of another version."""
    found = registry.get(kind, wanted["name"])
    if found.version != wanted["version"]:
        raise UserError(
            f"{kind.removesuffix('s')} '{wanted['name']}' is of version {found.version} here, and version "
            f"{wanted['version']} is needed: install the one that ran"
        )
    return found


@dataclass(frozen=True)
class Seeds:
    """Seeds of the independent random streams of a trial; none depends on the method, so trials pair up."""

    initialisation: int
    order: int
    augmentation: int
    dropout: int
    vote: int

    @classmethod
    def of(cls, dataset: str, seed: int) -> Self:
        """Streams for a dataset and a seed index."""
        key = int.from_bytes(hashlib.sha256(dataset.encode()).digest()[:4], "big")
        streams = np.random.SeedSequence(entropy=seed, spawn_key=(key,)).generate_state(5)
        return cls(*(int(stream) for stream in streams))


def validation_seed(dataset: str, index: int = 0) -> int:
    """The seed that carves the validation split: one per dataset and `protocol.validation_seed`, for every trial."""
    name = f"validation {dataset}" + (f" {index}" if index else "")
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
