"""The shape of a suite file; what depends on plug-ins is checked when trials are resolved (harness.suite)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.settings import Data, Protocol, Resources, Train
from harness.trial import Keep

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
SECTIONS: dict[str, type[BaseModel]] = {
    "train": Train,
    "protocol": Protocol,
    "resources": Resources,
    "data": Data,
}
NotEmpty = Field(min_length=1, json_schema_extra={"uniqueItems": True})
Indices = Annotated[int, Field(ge=1, le=1000)] | Annotated[list[Annotated[int, Field(ge=0)]], NotEmpty]
FACETS = ("method", "dataset", "backbone")

When = dict[Literal["method", "dataset", "backbone"], str | list[str]]
"""Labels by facet, one or a list: the combinations that have them all."""


class Override(BaseModel):
    """`when` names methods, datasets or backbones by label; `set` changes keys for those trials."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    when: When = {}
    """Labels, one or a list; every trial when not given."""
    set: Annotated[dict[str, Any], Field(min_length=1)]
    """Keys as in `train.epochs`, `method.rank`."""


class Reference(BaseModel):
    """A row of the report that is no method: a baseline, or a method of the suite on other weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    baseline: str | None = None
    """What trains nothing."""
    method: str | None = None
    """Label of a method of this suite."""
    weights: Name = "random"
    """The weights that the method gets here."""


class SuiteFile(BaseModel):
    """The shape of a suite file; what depends on plug-ins is checked when trials are resolved."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal[1]
    """Of this file; 1 is the only one yet."""
    name: Name
    """Names the results folder and the MLflow experiment."""
    description: str = ""
    """What this compares."""
    seeds: Indices
    """How many (3 is 0, 1, 2), or which."""
    datasets: Annotated[list[str], NotEmpty]
    """Names, as `harness list datasets` shows them."""
    folds: Indices | None = None
    """Of datasets that come in folds: how many (3 is 0, 1, 2), or which; all when not given."""
    backbones: Annotated[dict[Name, dict[str, Any] | None], Field(min_length=1)]
    """Label: settings; `backbone` among them when the label is not a backbone's name."""
    methods: Annotated[dict[Name, dict[str, Any] | None], Field(min_length=1)]
    """Label: settings; `method` among them when the label is not a method's name."""
    train: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    resources: dict[str, Any] = {}
    data: dict[str, Any] = {}
    keep: Keep = "adapter"
    """What stays of a finished trial beside its result: the adapter, nothing, or the last checkpoint too."""
    references: dict[Name, Reference] = {}
    """Rows that are no methods, to put the numbers in proportion."""
    exclude: list[Annotated[When, Field(min_length=1)]] = []
    """Combinations that are left out: labels of methods, datasets, backbones, one or a list."""
    overrides: list[Override] = []
    """Settings for some trials only, in order; later ones win."""


def indices(asked: int | list[int]) -> list[int]:
    """A number as the indices below it; a list as it is."""
    return list(range(asked)) if isinstance(asked, int) else asked


def matches(when: When, labels: Mapping[str, str]) -> bool:
    """Whether a combination has the labels that are asked for."""
    return all(labels[facet] in ([names] if isinstance(names, str) else names) for facet, names in when.items())
