"""Our model of a record: built as the manifest says, in the official state, with what was recorded as its inputs.

    Record -> encoder, method, head (with the shapes checked first) -> official state -> scores and gradients

It goes by the same way as a trial's model. What drops out is switched off, as it was when the outputs were recorded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness import registry
from harness.build import set_training
from harness.errors import UserError
from harness.method import Attached, Method, Task, attach, misfits
from harness.models.backbone import Backbone
from harness.models.encoder import Renames
from harness.models.head import classification_loss
from harness.models.official import official_name, renamed
from harness.models.transformer import without_chance
from harness.recorded import NOT_NEEDED, Part, Record
from harness.spellings import in_our_words


class StoredQuery(nn.Module):
    """Stands for the frozen query encoder, whose output was recorded: (B, C), of which `rows` are asked for."""

    feature: Tensor

    def __init__(self, feature: Tensor) -> None:
        super().__init__()
        self.register_buffer("feature", feature, persistent=False)
        self.rows = torch.arange(len(feature))

    def forward(self, patches: object) -> Tensor:
        """The recorded features of the clouds in the batch."""
        return self.feature[self.rows]


class Rebuilt:
    """Our model of a record in the official state, nothing dropping out, with the record's inputs."""

    def __init__(self, record: Record, *, device: torch.device, dtype: torch.dtype) -> None:
        with torch.device("meta"):  # shapes first: a state that does not fit allocates nothing
            self.names = _assemble(record).check_state(record)
        assembled = _assemble(record)
        self.record, self.attached, self.query = record, assembled.attached, assembled.query
        self.model = self.attached.model.to(device=device, dtype=dtype)
        own = self.model.state_dict()
        places = {ours: official for ours, official in self.names.items() if official in record.state}
        self.model.load_state_dict({k: record.state[v].view(own[k].shape) for k, v in places.items()}, strict=False)
        self.points = record.inputs["points"].to(device=device, dtype=dtype)
        self.labels = record.inputs["labels"].to(device)

    def scores(self, rows: Tensor) -> Tensor:
        """Class scores of some of the recorded clouds, in the order of `rows`."""
        rows = rows.to(self.points.device)
        if self.query is not None:
            self.query.rows = rows
        scores: Tensor = self.model(self.points[rows])
        return scores

    def scores_without_memory(self, rows: Tensor) -> Tensor:
        """The same with an empty memory bank."""
        encoder = self.model.encoder
        bank = encoder.get_buffer("bank")
        encoder.register_buffer("bank", bank[:, :0])
        try:
            return self.scores(rows)
        finally:
            encoder.register_buffer("bank", bank)

    def backward(self) -> tuple[Tensor, Tensor]:
        """One pass in training mode, batch norms with the batch's statistics: scores and loss; leaves gradients."""
        set_training(self.model, frozen_batchnorm="batch")
        scores = self.scores(torch.arange(len(self.points)))
        smoothing = self.record.manifest.model.head.label_smoothing
        loss = classification_loss(scores, self.labels, label_smoothing=smoothing)
        self.model.zero_grad()
        loss.backward()
        return scores.detach(), loss.detach()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by official name."""
        return {self.names[ours]: parameter for ours, parameter in self.attached.trainable.items()}


def keys_aside(record: Record) -> tuple[str, ...]:
    """Keys of a manifest's model section that do not matter here."""
    with torch.device("meta"):
        return _assemble(record).aside


@dataclass
class _Assembled:
    attached: Attached
    query: StoredQuery | None
    names: dict[str, str]
    """Our names of parameters and buffers, and the official ones."""
    aliases: Renames
    """From the second names of tensors that the official code holds twice to the first."""
    aside: tuple[str, ...]
    """Keys of the manifest's model section that do not matter here."""

    def check_state(self, record: Record) -> dict[str, str]:
        """The names, when everything in the record finds its place and nothing is missing. Raises UserError."""
        own = {self.names[key]: value for key, value in self.attached.model.state_dict().items() if key in self.names}
        missing = [name for name in own if name not in record.state and not name.endswith("num_batches_tracked")]
        for twin in [name for name in record.state if name not in own]:
            if (first := renamed(twin, self.aliases)) in own:
                own[twin] = own[first]
        foreign = [f"state.{name}" for name in record.state if name not in own]
        foreign += [f"bn_after_train.{name}" for name in record.buffers if name not in own]
        common = [("state", name, value) for name, value in record.state.items()]
        common += [("grad", name, value) for name, value in record.gradients.items()]
        common += [("bn_after_train", name, value) for name, value in record.buffers.items()]
        shapes = [
            f"{kind}.{name} is {list(value.shape)} of {value.dtype}, here {list(own[name].shape)} of {own[name].dtype}"
            for kind, name, value in common
            if name in own and not _alike(value, own[name])
        ]
        problems = (
            ("of this model's state are missing", missing),
            ("find no place in this model", foreign),
            ("have another shape or type in this model", shapes),
        )
        told = [f"{len(found)} tensors {what}, first: {found[0]}" for what, found in problems if found]
        if told:
            raise UserError("\n".join(told))
        return self.names


def _alike(stored: Tensor, own: Tensor) -> bool:
    """Whether one can be copied into the other; the official code writes linear layers as 1x1 convolutions."""
    same_shape = [size for size in stored.shape if size != 1] == [size for size in own.shape if size != 1]
    return same_shape and stored.is_floating_point() == own.is_floating_point()


def _assemble(record: Record) -> _Assembled:
    """The model as the manifest describes it, with random weights. Raises UserError."""
    declared, head = record.manifest.model, record.manifest.model.head
    shapes = {name: tuple(value.shape) for name, value in record.state.items()}
    kind: type[Backbone] = registry.get("backbones", declared.encoder.name)
    way: type[Method] = registry.get("methods", declared.method.name)
    sizes, encoder_aside = _settings(declared.encoder, kind.official_settings)
    settings, method_aside = _settings(declared.method, way.official_settings)
    if tuple(settings.get("pool", head.inputs)) != head.inputs:
        raise UserError(f"model.method.pool and model.head.inputs differ: {settings['pool']}, {list(head.inputs)}")
    with contextlib.suppress(LookupError):  # what is not told keeps its default
        sizes = kind.sizes({renamed(name, kind.spellings): shape for name, shape in shapes.items()}) | sizes
    with contextlib.suppress(LookupError):
        settings = (way.sizes(shapes) or {}) | settings
    backbone = registry.configured("backbones", declared.encoder.name, sizes)
    method = registry.configured("methods", declared.method.name, settings | {"pool": head.inputs}).on(backbone)
    if problems := [*backbone.problems(record.inputs["points"].shape[1]), *misfits(method, backbone)]:
        where = f"{declared.method.name} on {declared.encoder.name}"
        raise UserError("\n".join(f"{where}: {problem}" for problem in problems))

    bank = record.inputs.get("bank")
    task = Task(head.classes, train_items=1 if bank is None else bank.shape[-1])
    encoder = backbone.build(drop_path=declared.encoder.drop_path)
    attached = attach(method, encoder, task, head=record.head_kind)
    without_chance(attached.model)
    query = _remember(attached.model.encoder, record)
    own = [name for name in attached.model.state_dict() if name != "encoder.bank"]
    names = {name: official_name(name, method, encoder) for name in own}
    aside = [*(f"encoder.{key}" for key in encoder_aside), *(f"method.{key}" for key in method_aside)]
    return _Assembled(attached, query, names, way.official_aliases, (*aside, *(f"head.{key}" for key in head.aside)))


def _settings(part: Part, spellings: Mapping[str, str | None]) -> tuple[dict[str, Any], list[str]]:
    """A section's settings in our words, and the keys that do not matter here. Raises UserError."""
    try:
        return in_our_words(part.settings, NOT_NEEDED | dict(spellings))
    except ValueError as error:
        raise UserError(f"model: {part.name}: {error}") from None


def _remember(encoder: nn.Module, record: Record) -> StoredQuery | None:
    """Put the recorded memory bank and query features in the place of what would make them, where a method has them."""
    bank = dict(encoder.named_buffers(recurse=False)).get("bank")
    given = {key: value for key, value in record.inputs.items() if key == "bank" or key.startswith("cp_feat")}
    if bank is None:
        if given:
            raise UserError(f"'in.{next(iter(given))}' finds no place: the method keeps no memory bank")
        return None
    features = [value for key, value in given.items() if key != "bank"]
    if "bank" not in given or len(features) != 1:
        raise UserError(
            "the method's memory bank and query are needed: 'in.bank', and one 'in.cp_feat' or 'in.cp_feat_…'"
        )
    wanted = (len(record.inputs["points"]), bank.shape[0])
    for key, value in given.items():
        shape = tuple(bank.shape) if key == "bank" else wanted
        if value.shape != shape or not value.is_floating_point():
            raise UserError(f"'in.{key}' is {list(value.shape)} of {value.dtype}, must be {list(shape)} of floats")
    encoder.register_buffer("bank", given["bank"])
    query = StoredQuery(features[0])
    encoder.register_module("query", query)
    return query
