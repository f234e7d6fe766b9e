"""The contract of a method, and what the engine makes of it.

A method is a frozen pydantic model: its fields are its hyper-parameters, its docstring names the paper. `adapt`
takes the pre-trained encoder and returns the encoder to train together with *the modules and parameters that it
trains, by identity*. `attach` freezes everything else and counts. Nothing is ever matched by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from harness.models.backbone import Backbone
from harness.models.encoder import Encoder, Renames
from harness.models.head import HEADS, Classifier, Headed, HeadKind, Pool

Probability = Annotated[float, Field(ge=0, lt=1)]
Trainable = nn.Module | nn.Parameter


@dataclass(frozen=True)
class Task:
    """What a method may know of the task: number of classes and of training clouds, and what the head sees."""

    classes: int
    train_items: int
    pooled: bool = True
    """Whether the head sees tokens as `pool` says; otherwise the patch tokens alone."""


@dataclass(frozen=True)
class Adapted:
    """An encoder made ready by a method, and what of it trains.

    added: new modules and parameters. unfrozen: parts of the pre-trained encoder that train (class token and
    position count here: no pre-trained checkpoint holds them). dead: parameters among these that published code
    declares and that get no gradient, or one that is always zero; they count. no_decay: parameters of two and more
    dimensions that get no weight decay all the same. before_training: called once with the training clouds (B, N, 3),
    in index order, before the first epoch.
    """

    encoder: nn.Module
    added: Iterable[Trainable] = ()
    unfrozen: Iterable[Trainable] = ()
    dead: Iterable[nn.Parameter] = ()
    no_decay: Iterable[nn.Parameter] = ()
    before_training: Callable[[Iterable[Tensor]], None] | None = None


class Method(BaseModel, ABC):
    """A fine-tuning method. Subclasses add their hyper-parameters as fields and say how they adapt an encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    version: ClassVar[int] = 1
    """Raised by hand when the same settings would give other numbers; part of a trial's identity."""

    official_names: ClassVar[Renames] = ()
    """Renames from this method's parameter names to the official code's, applied before the encoder's own."""
    official_names_after: ClassVar[Renames] = ()
    """Renames applied last, where the method's official code calls parts of the encoder otherwise."""

    official_aliases: ClassVar[Renames] = ()
    """Renames for tensors that the official code's files hold twice, from the second name to the first."""
    official_settings: ClassVar[dict[str, str | None]] = {}
    """What published configurations call the settings: ours, or None for what the method does not depend on."""

    peft_names: ClassVar[Renames] = ()
    """Renames from this method's parameter names to those in HF peft's files, where it has the same tuner."""

    pool: Annotated[tuple[Pool, ...], Field(min_length=1)] | None = None
    """What the head sees, concatenated in this order; the backbone's own choice when not given."""

    @abstractmethod
    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        """The encoder to train and what of it trains."""

    def on(self, backbone: Backbone) -> Self:
        """These settings with what they leave to the backbone filled in; the same again when called twice."""
        return self if self.pool is not None else self.model_copy(update={"pool": backbone.pool})

    def peft_config(self) -> dict[str, Any] | None:
        """The adapter_config.json with which HF peft reads this method's adapter; None where it has no such tuner."""
        return None

    def merged(self, encoder: nn.Module) -> Encoder | None:
        """The plain encoder that computes what a trained one does; None where that takes more than other weights.

        `encoder` is what `adapt` returned, trained; it may be taken apart. Not asked of one that is plain already.
        """
        return None

    def problems(self, backbone: Backbone) -> list[str]:
        """What makes these settings, filled in, impossible on a backbone; empty when they fit."""
        return []

    def untold(self, backbone: Backbone) -> tuple[str, ...]:
        """Settings that a trained model on a backbone depends on, and that `sizes` cannot know for certain."""
        return ()

    @classmethod
    def sizes(cls, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        """Settings that a trained model's tensors tell by their shapes, under the names of the official code.

        None when there is no such code, or they are not of this method.
        """
        return None


def misfits(method: Method, backbone: Backbone) -> list[str]:
    """Why a method, with its settings filled in, is not defined on a backbone; empty when it is."""
    found = method.problems(backbone)
    if not found and backbone.hierarchical and "class" in (method.pool or ()):
        return ["pool asks for the class token, and this backbone has none; use mean and max"]
    return found


@dataclass(frozen=True)
class Counts:
    """Parameters by origin. `total` is backbone + added + head: frozen helpers of a method are not in it."""

    added: int
    unfrozen: int
    head: int
    trainable: int
    total: int


@dataclass
class Attached:
    """A model with exactly its declared parameters trainable."""

    model: Headed
    counts: Counts
    trainable: dict[str, nn.Parameter]
    """Trainable parameters by their name in the model, for messages and files."""
    dead: list[nn.Parameter]
    no_decay: list[nn.Parameter]
    before_training: Callable[[Iterable[Tensor]], None] | None = None

    def optimizer_groups(self, weight_decay: float) -> list[dict[str, object]]:
        """AdamW groups by the papers' rule: no decay for one-dimensional tensors and what is declared so."""
        exempt = {id(parameter) for parameter in self.no_decay}
        plain = [p for p in self.trainable.values() if p.ndim <= 1 or id(p) in exempt]
        decayed = [p for p in self.trainable.values() if p.ndim > 1 and id(p) not in exempt]
        groups: list[dict[str, object]] = [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def starved(self) -> list[str]:
        """Names of declared parameters without a gradient after a backward pass, the dead ones aside."""
        dead = {id(parameter) for parameter in self.dead}
        return [name for name, p in self.trainable.items() if p.grad is None and id(p) not in dead]

    def watch(self) -> Callable[[], list[str]]:
        """Note from now on which declared parameters a gradient reaches; the call names the others, and ends the watch.

        As `starved`, but also where gradients do not stay in `grad` (DDP's buckets, DeepSpeed). Hooks are called for
        what a function gives no gradient for, too, with None.
        """
        dead, reached = {id(parameter) for parameter in self.dead}, set()

        def note(gradient: Tensor | None, name: str) -> None:
            if gradient is not None:
                reached.add(name)

        hooks = [p.register_hook(partial(note, name=name)) for name, p in self.trainable.items()]

        def starved() -> list[str]:
            for hook in hooks:
                hook.remove()
            return [name for name, p in self.trainable.items() if name not in reached and id(p) not in dead]

        return starved

    def changing(self) -> dict[str, Tensor]:
        """What training can change, by name: trainable parameters and all buffers."""
        return {name: p.detach() for name, p in self.trainable.items()} | dict(self.model.named_buffers())

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of what training can change."""
        return {name: tensor.clone() for name, tensor in self.changing().items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Put a snapshot back."""
        for name, tensor in self.changing().items():
            tensor.copy_(snapshot[name])


def _parameters(parts: Iterable[Trainable]) -> dict[int, nn.Parameter]:
    found: dict[int, nn.Parameter] = {}
    for part in parts:
        members = [part] if isinstance(part, nn.Parameter) else part.parameters()
        found.update((id(parameter), parameter) for parameter in members)
    return found


def _count(parameters: dict[int, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def attach(
    method: Method, encoder: Encoder, task: Task, *, head: HeadKind = "three_layer", head_dropout: float = 0.5
) -> Attached:
    """A classifier: `attach_with` the classification head, on what the method pools.

    `method` has its settings filled in (`Method.on`). Raises ValueError where they are not, and as `attach_with` does.
    """
    pool = method.pool
    if pool is None:
        raise ValueError(f"{type(method).__name__} has no pool: fill its settings in with `method.on(backbone)`")
    inputs = encoder.dim * len(pool)

    def classifier(adapted: nn.Module) -> Classifier:
        layers = HEADS[head](inputs=inputs, classes=task.classes, dropout=head_dropout)
        return Classifier(encoder=adapted, pool=pool, head=layers)

    return attach_with(method, encoder, task, classifier)


def attach_with(method: Method, encoder: Encoder, task: Task, put_head: Callable[[nn.Module], Headed]) -> Attached:
    """Adapt the encoder, put a head on what comes of it, freeze all that is not declared, and count.

    Raises ValueError when the method declares something twice, or something that the model does not hold.
    """
    backbone = _parameters([encoder])
    adapted = method.adapt(encoder, task)
    model = put_head(adapted.encoder)
    head = _parameters([model.head])

    added, unfrozen = _parameters(adapted.added), _parameters(adapted.unfrozen)
    if added.keys() & backbone.keys() or not unfrozen.keys() <= backbone.keys():
        raise ValueError(f"{type(method).__name__} declares a backbone parameter as added, or a new one as unfrozen")
    declared = added | unfrozen | head
    trainable = {name: p for name, p in model.named_parameters() if id(p) in declared}
    if len(trainable) != len(declared):
        raise ValueError(f"{type(method).__name__} declares parameters that its encoder does not hold")

    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in declared)
    counts = Counts(
        added=_count(added),
        unfrozen=_count(unfrozen),
        head=_count(head),
        trainable=_count(declared),
        total=_count(backbone) + _count(added) + _count(head),
    )
    return Attached(
        model=model,
        counts=counts,
        trainable=trainable,
        dead=list(adapted.dead),
        no_decay=[*encoder.no_decay, *adapted.no_decay],
        before_training=adapted.before_training,
    )
