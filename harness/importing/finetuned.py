"""What a fine-tuned checkpoint is: its head, its method, the published model that it may be, and its classes.

The method is the one whose tensors, by the names of its official code, are those of the file, no more and no fewer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from harness import registry
from harness.adapter import tensors
from harness.data.dataset import Dataset
from harness.errors import UserError
from harness.importing.child import Refused
from harness.importing.fitting import Fit
from harness.importing.known import MODELS, KnownModel
from harness.importing.layouts import HEAD
from harness.importing.reading import Contents
from harness.method import Method, Task, attach, misfits
from harness.models.head import HEADS, HeadKind
from harness.models.official import renamed


@dataclass(frozen=True)
class Head:
    """A classification head by its shapes."""

    kind: HeadKind
    inputs: int
    classes: int


@dataclass(frozen=True)
class Trained:
    """The method of a checkpoint by its tensors."""

    method: str
    settings: dict[str, Any]
    """What the tensors tell of them."""
    twice: tuple[str, ...]
    """Official names of tensors that are in the file under another name, too."""


def head_of(found: Fit) -> Head:
    """The head of a checkpoint. Raises Refused when it is none of ours."""
    given = {name.removeprefix(HEAD): tuple(t.shape) for name, t in found.tensors.items() if name.startswith(HEAD)}
    layers = [name for name in given if name.removesuffix(".weight").isdecimal()]
    last = max(layers, key=lambda name: int(name.removesuffix(".weight")), default="")
    with contextlib.suppress(KeyError, IndexError):
        inputs, classes = given["0.weight"][1], given[last][0]
        for kind, build in HEADS.items():
            with torch.device("meta"):
                own = build(inputs=inputs, classes=classes).state_dict()
            if {name: tuple(value.shape) for name, value in own.items()} == given:
                return Head(kind, inputs, classes)
    raise Refused(f"its head (layers {', '.join(sorted(layers))}) is none of the field's, {', '.join(HEADS)}")


def method_of(found: Fit) -> Trained:
    """The method whose tensors a file has. Raises Refused when there is none."""
    given = {name for name in found.tensors if not name.startswith(HEAD)}
    differences: dict[str, tuple[list[str], list[str]]] = {}
    for name, method, told in _candidates(found):
        twice = _twice(found, method)
        with torch.device("meta"):
            attached = attach(method, found.backbone.build(drop_path=0.0), Task(classes=2, train_items=1))
        names = {own: found.official_of(own, method) for own in tensors(attached.model)}
        trained = {names[own] for own in attached.trainable if not names[own].startswith(HEAD)}
        differences[name] = sorted(given - {*names.values(), *twice}), sorted(trained - given)
        if not any(differences[name]):
            return Trained(name, told, twice)
    if not differences:
        raise Refused(f"is a fine-tuned {found.kind}, and no method here that reads checkpoints is defined on that")
    nearest, (unknown, lacking) = min(differences.items(), key=lambda item: sum(map(len, item[1])))
    words = [f"has {len(unknown)} tensors more, first '{found.files[unknown[0]]}'"] if unknown else []
    words += [f"lacks {len(lacking)}, first '{lacking[0]}'"] if lacking else []
    what = f"is a fine-tuned {found.kind} of no method known here"
    raise Refused(f"{what}; nearest is {nearest}, but it {' and '.join(words)}")


def _twice(found: Fit, method: Method) -> tuple[str, ...]:
    """Tensors that a method's code holds under two names: the second ones, where both are in the file and equal."""
    tensors = found.tensors
    others = {name: other for name in tensors if (other := renamed(name, method.official_aliases)) != name}
    return tuple(n for n, other in others.items() if other in tensors and torch.equal(tensors[n], tensors[other]))


def _candidates(found: Fit) -> Iterator[tuple[str, Method, dict[str, Any]]]:
    """Methods that see something of theirs in a file, with what they see."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}
    for name in registry.names("methods"):
        with contextlib.suppress(UserError, KeyError, IndexError, ValueError):  # a plug-in that fails; not this method
            model: type[Method] = registry.get("methods", name)
            if (told := model.sizes(shapes)) is not None:
                method = model.model_validate(told).on(found.backbone)
                if not misfits(method, found.backbone):
                    yield name, method, told


def known_model(
    contents: Contents, found: Fit, method: str, *, name: str | None, data: str | None
) -> KnownModel | None:
    """The published model that a file is: named so, else by its digest or by method and file name.

    Raises UserError when it is named so, and is not.
    """
    what = (found.kind, method)
    if name in MODELS:
        known = MODELS[name]
        if (known.backbone, known.method) != what or data not in (None, known.data):
            raise UserError(
                f"--as {name}: that is {known.method} on {known.backbone}, trained on {known.data}; {contents.path} is "
                f"{method} on {found.kind}{f', trained on {data}' if data else ''}; choose another name"
            )
        return known
    for known in MODELS.values() if name is None else ():
        digest, file = known.official.sha256, known.official.file
        same = digest == contents.digest if digest else file == contents.path.name
        if same and (known.backbone, known.method) == what and data in (None, known.data):
            return known
    return None


def trained_on(head: Head, name: str | None) -> Dataset:
    """The declaration of the dataset that a model was trained on. Raises UserError when it is not told, or not that."""
    classes: dict[str, int] = {}
    for known in registry.names("datasets"):
        with contextlib.suppress(UserError):  # a plug-in that fails hides no other
            dataset = registry.get("datasets", known)
            if isinstance(dataset, Dataset):
                classes[known] = len(dataset.classes)
    if name is None:
        fitting = ", ".join(known for known, count in classes.items() if count == head.classes) or "none is here"
        raise UserError(
            f"a fine-tuned model of {head.classes} classes: say what it was trained on with --data NAME (of so many "
            f"classes: {fitting})"
        )
    declared = registry.get("datasets", name)
    if not isinstance(declared, Dataset):
        raise UserError(f"--data {name}: is not a dataset of this kind of classification")
    if len(declared.classes) != head.classes:
        raise UserError(f"--data {name}: has {len(declared.classes)} classes, and the file's head {head.classes}")
    return declared
