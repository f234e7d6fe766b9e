"""Outputs recorded from the papers' code: a manifest (JSON) and the safetensors beside it, read and checked.

The format is described in docs/verify.md. Such files may come from a stranger: their size is bounded, only files beside
the manifest are opened, nothing in them is run, and what is wrong with them becomes one UserError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.errors import UserError
from harness.models.head import HeadKind, Pool

BUNDLED = Path(__file__).parent / "fixtures"
MAX_MANIFEST = 16 * 2**20
MAX_TENSORS = 2 * 2**30
"""Larger files are refused."""
MAX_SIZE = 8192
"""What a setting of a model, or the members of a list of them, can add up to; the papers' largest is 2048."""
MAX_COORDINATES = 2**20
"""Of all points of a record."""

Share = Annotated[float, Field(ge=0, lt=1)]


def _plain(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable():
        raise ValueError("must be the plain name of a file beside the manifest, without any folder")
    return name


FileName = Annotated[str, AfterValidator(_plain)]


def bundled() -> list[Path]:
    """The manifests that ship with the harness."""
    return sorted(BUNDLED.glob("*.json"))


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Part(_Section):
    """A plug-in by name; every other key is one of its settings."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """What the plug-in itself has to understand."""
        return dict(self.model_extra or {})


class EncoderPart(Part):
    """The encoder."""

    drop_path: Share = 0.0


class HeadPart(_Section):
    """The classification head and its loss. What drops out is switched off, so its rates do not matter."""

    model_config = ConfigDict(extra="forbid")

    inputs: Annotated[tuple[Pool, ...], Field(min_length=1)]
    classes: Annotated[int, Field(ge=2, le=MAX_SIZE)]
    label_smoothing: Share = 0.0
    kind: HeadKind | None = None
    layers: Literal[2, 3] | HeadKind | None = None
    """The same in other words."""
    width: Literal[256] = 256
    dropout: Share | None = None

    @property
    def stated_kind(self) -> HeadKind | None:
        """The kind, where one is stated."""
        match self.kind or self.layers:
            case 2:
                return "two_layer"
            case 3:
                return "three_layer"
            case kind:
                return kind


class ModelSection(_Section):
    """What was run, in this project's terms."""

    model_config = ConfigDict(extra="forbid")

    encoder: EncoderPart
    method: Part
    head: HeadPart


class OptimizerGroups(_Section):
    """Official names of the trainable parameters, by whether they get weight decay."""

    decay: tuple[str, ...]
    no_decay: tuple[str, ...]


class AdamWLosses(_Section):
    """The training loss before each of five steps."""

    losses_before_each_step: Annotated[tuple[FiniteFloat, ...], Field(min_length=5, max_length=5)]


class Precision(_Section):
    """What the recorder measured of rounding; more keys than these are not needed here."""

    analytically_zero_gradients_with_their_fp32_noise: dict[str, FiniteFloat] = {}


class Manifest(_Section):
    """What a manifest must hold. Other keys inform people."""

    format: Literal[1] = 1
    model: ModelSection
    state_files: Annotated[tuple[FileName, ...], Field(min_length=1, max_length=16)]
    params_total: NonNegativeInt
    trainable_total: NonNegativeInt | None = None
    trainable: tuple[tuple[str, tuple[NonNegativeInt, ...]], ...] | None = None
    trainable_without_gradient: tuple[str, ...] = ()
    optimizer_groups: OptimizerGroups
    adamw5_losses: AdamWLosses
    fp32_vs_fp64: Precision = Precision()


@dataclass(frozen=True)
class Record:
    """A manifest and its tensors, by the names that these have after their prefix. All tensors are finite."""

    file: Path
    manifest: Manifest
    state: dict[str, Tensor]
    """`state.*`: parameters and buffers before any pass, by official name."""
    inputs: dict[str, Tensor]
    """`in.*`: points (B, N, 3), labels (B,) int64, and what else the model was given."""
    outputs: dict[str, Tensor]
    """`out.*`: logits_eval and logits_train (B, K), loss (one number), and more."""
    gradients: dict[str, Tensor]
    """`grad.*`, by official name."""
    buffers: dict[str, Tensor]
    """`bn_after_train.*`: batch norms' statistics after one training pass, by official name."""

    @property
    def name(self) -> str:
        """The manifest's name without its suffix."""
        return self.file.stem

    @property
    def head_kind(self) -> HeadKind:
        """As the manifest says, or else as the layers in the state are counted."""
        if (stated := self.manifest.model.head.stated_kind) is not None:
            return stated
        if "cls_head_finetune.8.weight" in self.state:
            return "three_layer"
        if "cls_head_finetune.3.weight" in self.state:
            return "two_layer"
        raise UserError("which head it has is neither in model.head.kind nor in the state (cls_head_finetune.*)")


def read_record(file: Path) -> Record:
    """A manifest and its tensors. Raises UserError: all that is wrong in the manifest, else the first of the rest."""
    manifest = _read_manifest(file)
    names = dict.fromkeys(manifest.state_files)
    if _is_file(file.with_suffix(".safetensors")):
        names[file.with_suffix(".safetensors").name] = None
    tensors: dict[str, Tensor] = {}
    for name in names:
        for key, tensor in _read_tensors(file.parent / name):
            if key in tensors and not torch.equal(tensors[key], tensor):
                raise UserError(f"'{key}' is in several of its files, with different values")
            tensors[key] = tensor

    def under(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

    record = Record(
        file, manifest, under("state."), under("in."), under("out."), under("grad."), under("bn_after_train.")
    )
    _check_shapes(record)
    return record


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _read_manifest(file: Path) -> Manifest:
    if file.suffix != ".json":
        raise UserError("is no manifest; name the .json file")
    try:
        if not file.is_file():
            raise UserError("no such file")
        with file.open("rb") as stream:
            content = stream.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise UserError(f"cannot be opened ({error.strerror})") from None
    if len(content) > MAX_MANIFEST:
        raise UserError(f"is larger than {MAX_MANIFEST // 2**20} MiB; this is no manifest")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise UserError("\n".join(_explain(item) for item in error.errors()[:20])) from None
    for part in (manifest.model.encoder, manifest.model.method):
        for key, value in part.settings.items():
            if sum(_numbers(value)) > MAX_SIZE:
                raise UserError(f"model: '{key}' of {part.name} is larger than {MAX_SIZE}: no model of this field is")
    return manifest


def _explain(item: Any) -> str:
    """One of pydantic's errors, with its field."""
    field = ".".join(map(str, item["loc"]))
    told = str(item["msg"]).removeprefix("Value error, ")
    return f"{field}: {told}" if field else told


def _numbers(value: Any) -> Iterator[float]:
    """All numbers of a JSON value."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _numbers(member)


def _read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every tensor that is compared or needed. Raises UserError."""
    prefixes = ("state.", "in.", "out.", "grad.", "bn_after_train.")
    if not _is_file(path):
        raise UserError(f"{path.name}, which it names, is not beside it")
    try:
        if path.stat().st_size > MAX_TENSORS:
            raise UserError(f"{path.name} is larger than {MAX_TENSORS // 2**30} GiB")
        with safe_open(path, framework="pt") as file:
            found = [(key, file.get_tensor(key)) for key in file.keys() if key.startswith(prefixes)]  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path.name}: cannot be read as safetensors: {error}") from None
    for key, tensor in found:
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64):
            raise UserError(f"{path.name}: '{key}' is of type {tensor.dtype}; floats and int64 are read")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path.name}: '{key}' holds NaN or infinite values")
        yield key, tensor


def _check_shapes(record: Record) -> None:
    """Inputs and outputs fit one another. Raises UserError."""
    points = _tensor(record.inputs, "in.points", None)
    if points.ndim != 3 or points.shape[2] != 3 or points.shape[0] < 2 or not points.numel():
        raise UserError(f"'in.points' has shape {list(points.shape)}; (B, N, 3) with two clouds or more is needed")
    if points.numel() > MAX_COORDINATES:
        raise UserError(f"'in.points' has shape {list(points.shape)}; up to {MAX_COORDINATES} numbers are taken")
    batch, classes = len(points), record.manifest.model.head.classes
    labels = _tensor(record.inputs, "in.labels", (batch,), whole=True)
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(f"'in.labels' must be 0 to {classes - 1}, as there are {classes} classes")
    optional = ("out.logits_eval_each_alone", "out.logits_eval_batch_reversed")
    for key in ("out.logits_eval", "out.logits_train", *(key for key in optional if key[4:] in record.outputs)):
        _tensor(record.outputs, key, (batch, classes))
    if _tensor(record.outputs, "out.loss", None).numel() != 1:
        raise UserError("'out.loss' must be one number")
    if not record.buffers:
        raise UserError("holds no 'bn_after_train.*': batch norms' statistics after a training pass")


def _tensor(found: dict[str, Tensor], key: str, shape: tuple[int, ...] | None, *, whole: bool = False) -> Tensor:
    tensor = found.get(key.partition(".")[2])
    if tensor is None:
        raise UserError(f"none of its files holds '{key}'")
    if tensor.is_floating_point() is whole:
        raise UserError(f"'{key}' is of type {tensor.dtype}")
    if shape is not None and tensor.shape != shape:
        raise UserError(f"'{key}' has shape {list(tensor.shape)}, must be {list(shape)}")
    return tensor
