"""Outputs recorded from the papers' code: a manifest (JSON) and the safetensors beside it, read and checked.

The format is described in docs/verify.md. Such files may come from a stranger: their size is bounded, only files beside
the manifest are opened, nothing in them is run, and what is wrong with them becomes one UserError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.errors import UserError, did_you_mean
from harness.models.head import HeadKind, Pool
from harness.spellings import in_our_words

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


HEAD_SPELLINGS: dict[str, str | None] = {
    "pool": "inputs",
    **dict.fromkeys(("cls_dim", "num_classes", "num_class"), "classes"),
    **dict.fromkeys(("smooth", "smoothing", "label_smooth"), "label_smoothing"),
    **dict.fromkeys(("layers", "num_layers", "type", "name", "head"), "kind"),
    **dict.fromkeys(("hidden", "hidden_dim", "hidden_dims"), "width"),
    **dict.fromkeys(("drop", "drop_rate", "dropout_rate", "head_dropout"), "dropout"),
    **dict.fromkeys(("norm", "batch_norm", "batchnorm", "bn", "activation", "act")),  # the state tells, or it is fixed
}
"""What manifests and published configurations may call the keys of the head."""
HEAD_KINDS: dict[Any, HeadKind] = {
    **dict.fromkeys((1, "1", "linear"), "linear"),
    **dict.fromkeys((2, "2", "two", "two_layers", "mlp2", "mlp-2", "mlp_2", "point_bert"), "two_layer"),
    **dict.fromkeys((3, "3", "three", "three_layers", "mlp3", "mlp-3", "mlp_3", "point_mae"), "three_layer"),
}
LAST_LAYERS: dict[int, HeadKind] = {8: "three_layer", 3: "two_layer", 0: "linear"}
"""Heads by the official number of their last layer, the longest first."""
INPUT_SPELLINGS: dict[Any, Pool] = dict.fromkeys(("cls", "cls_token", "class_token"), "class")
HEADS_OWN = ("cls_dim", "num_classes", "num_class", "smooth", "smoothing", "label_smooth", "label_smoothing", "head")
"""Keys of the head that published configurations have among the encoder's."""
NESTED = ("transformer_config", "adapter_config")
"""Where published configurations of Point-M2AE and Point-PEFT have some of an encoder's and a method's settings."""
NOT_NEEDED: dict[str, str | None] = dict.fromkeys(
    (
        *("NAME", "drop_path_rate", "drop_rate", "attn_drop_rate", "npoints", "n_points"),
        *("mask_ratio", "mask_type", "decoder_depth", "decoder_num_heads", "decoder_depths", "decoder_dims"),
        *("decoder_up_blocks", "loss", "transfer_type", "qkv_bias", "mlp_ratio", "norm_eps"),
    )
)
"""Of published configurations: what pre-training alone uses, what drops out, and what no configuration changes."""


class HeadPart(_Section):
    """The classification head and its loss. What drops out is switched off, so its rates do not matter."""

    model_config = ConfigDict(extra="allow")

    inputs: Annotated[tuple[Pool, ...], Field(min_length=1)]
    classes: Annotated[int, Field(ge=2, le=MAX_SIZE)]
    label_smoothing: Share = 0.0
    kind: HeadKind | None = None
    width: Literal[256] = 256
    dropout: Share | None = None

    @model_validator(mode="before")
    @classmethod
    def _in_our_words(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        found, aside = in_our_words(given, HEAD_SPELLINGS)
        inputs, kind = found.get("inputs"), found.get("kind")
        if isinstance(inputs, list):
            found["inputs"] = [INPUT_SPELLINGS.get(name, name) if isinstance(name, str) else name for name in inputs]
        if isinstance(kind, int | str):
            found["kind"] = HEAD_KINDS.get(kind, kind)
        return found | {key: given[key] for key in aside}

    @model_validator(mode="after")
    def _nothing_unknown(self) -> Self:
        unknown = [key for key in self.aside if key not in HEAD_SPELLINGS]
        if unknown:
            raise ValueError(f"unknown key '{unknown[0]}'; {did_you_mean(unknown[0], type(self).model_fields)}")
        return self

    @property
    def aside(self) -> list[str]:
        """Keys that do not matter here."""
        return list(self.model_extra or {})


class ModelSection(_Section):
    """What was run, in this project's terms."""

    model_config = ConfigDict(extra="forbid")

    encoder: EncoderPart
    method: Part
    head: HeadPart

    @model_validator(mode="before")
    @classmethod
    def _in_their_places(cls, given: Any) -> Any:
        """Published configurations nest some settings, and have the head's with the encoder's."""
        if not isinstance(given, dict) or not all(isinstance(given.get(part), dict) for part in cls.model_fields):
            return given
        encoder, method, head = (_flat(given[part]) for part in cls.model_fields)
        for key in [key for key in HEADS_OWN if key in encoder]:
            value = encoder.pop(key)
            if head.setdefault(key, value) != value:
                raise ValueError(f"'{key}' of the encoder and of the head differ: {value}, {head[key]}")
        return given | {"encoder": encoder, "method": method, "head": head}


def _flat(part: dict[str, Any]) -> dict[str, Any]:
    """A section with its nested sections' settings beside its own. Raises ValueError where two differ."""
    nested = [value for key, value in part.items() if key in NESTED and isinstance(value, dict)]
    found = {key: value for key, value in part.items() if key not in NESTED or not isinstance(value, dict)}
    for key, value in (item for inner in nested for item in inner.items()):
        if found.setdefault(key, value) != value:
            raise ValueError(f"'{key}' is given twice, and differs: {found[key]}, {value}")
    return found


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
        if (stated := self.manifest.model.head.kind) is not None:
            return stated
        for layers, kind in LAST_LAYERS.items():
            if f"cls_head_finetune.{layers}.weight" in self.state:
                return kind
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
    optional = ("out.logits_eval_each_alone", "out.logits_eval_batch_reversed", "out.logits_eval_no_cache")
    for key in ("out.logits_eval", "out.logits_train", *(key for key in optional if key[4:] in record.outputs)):
        _tensor(record.outputs, key, (batch, classes))
    if _tensor(record.outputs, "out.loss", None).numel() != 1:
        raise UserError("'out.loss' must be one number")
    if "logits_eval_no_cache" in record.outputs and "bank" not in record.inputs:
        raise UserError("'out.logits_eval_no_cache' is of a model without its memory bank, and there is no 'in.bank'")
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
