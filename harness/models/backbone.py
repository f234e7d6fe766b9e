"""The contract of a backbone: its settings as data, and the encoder they build."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.models.encoder import Encoder, Renames
from harness.models.head import HeadKind, Pool


class Backbone(BaseModel, ABC):
    """Settings of an encoder. Presets are resolved when the settings are read, so identities see every number."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: ClassVar[int] = 1
    """Raised by hand when the same settings would give other numbers; part of a trial's identity."""
    pool: ClassVar[tuple[Pool, ...]] = ("class", "patch_max")
    """What the head sees when the method does not say."""
    untold: ClassVar[tuple[str, ...]] = ()
    """Settings that weights depend on, and that `sizes` cannot know."""
    spellings: ClassVar[Renames] = ()
    """Renames from what other published code calls the encoder's tensors to what its own fine-tuning code does."""
    official_settings: ClassVar[dict[str, str | None]] = {}
    """What published configurations call the settings: ours, or None for what the encoder does not depend on."""
    hierarchical: ClassVar[bool] = False
    """Whether tokens are grouped into fewer, wider ones on the way; such encoders have no class token."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    """Settings by the value of a field `preset`, `base` when not given; empty where there is no such field."""

    weights: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "random"
    """Name of the pre-trained weights (harness.models.weights), or `random`."""
    head: HeadKind = "three_layer"
    """The classification head: Point-MAE's and the PEFT papers' three layers, Point-BERT's own two, or one."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return cls.presets.get(str(given.get("preset", "base")), {}) | given

    @property
    @abstractmethod
    def default_points(self) -> int:
        """Points per cloud when the suite names none."""

    @abstractmethod
    def build(self, *, drop_path: float) -> Encoder:
        """The encoder with random weights."""

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
        """Settings that tensors tell by their shapes, under the names of the official fine-tuning code.

        Raises KeyError with the name of a tensor that it looks for in vain. What is not told keeps its default.
        """
        return {}

    def problems(self, points: int) -> list[str]:
        """What makes these settings impossible for clouds of so many points; empty when they fit."""
        return []
