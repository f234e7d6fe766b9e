"""The adapter: the files that turn a trial's base weights into its trained model, and the card that describes them.

    OUTPUT/trials/ID/adapter/   adapter_model.safetensors, head.safetensors, adapter_config.json

A training writes them (`pack`), harness.trained and harness.importing.loading read them (`load_adapter`). Where HF
`peft` has the same tuner (LoRA), it can read the first and the last onto the bare encoder, too: the tensors have its
names then, and the card its keys beside ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

import harness
from harness.build import build
from harness.data.dataset import Declaration
from harness.errors import UserError
from harness.method import Attached, Method
from harness.models.official import renamed
from harness.tasks import TASKS, task_of
from harness.trial import Trial


class AdapterCard(BaseModel):
    """What is needed beside the tensors to build the model and to treat clouds as training did; no dataset is."""

    model_config = ConfigDict(frozen=True)

    trial: str
    spec: dict[str, Any]
    classes: tuple[str, ...]
    train_items: int
    stored_points: int
    """Points per cloud in the dataset, of which the encoder sees `spec.data.points`."""
    up: Literal["y", "z"]
    normalised: bool
    base_weights: str | None
    """SHA-256 of the file that the tensors belong on; None with random weights."""
    versions: dict[str, str]
    """Of what wrote it: harness, torch."""
    task: str = "classification"
    details: dict[str, Any] = {}
    """What the task must know of the dataset beside all this."""

    def dataset(self) -> Declaration:
        """The trial's dataset as far as the adapter knows it: a declaration without clouds."""
        if self.task not in TASKS:
            raise UserError(f"the adapter is for {self.task}, which this harness does not know: install a newer one")
        common = {
            "name": self.spec["dataset"]["name"],
            "version": self.spec["dataset"]["version"],
            "classes": self.classes,
            "train_items": self.train_items,
            "test_items": 0,
            "points": self.stored_points,
            "up": self.up,
            "normalised": self.normalised,
            "licence": "not known",
            "source": "not known",
        }
        return TASKS[self.task].remembered(common, self.details)


def untrained(trial: Trial, *, train_items: int) -> tuple[Attached, str | None]:
    """A trial's model before training, on the CPU, and its base weights' digest; without any data.

    The caller's random numbers go on as if nothing had been drawn. Raises UserError as `load_weights` does.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        attached, digests = build(trial, device=torch.device("cpu"), train_items=train_items)
    return attached, digests.get("weights")


@dataclass(frozen=True)
class Packed:
    """The contents of the three files."""

    adapter: bytes
    head: bytes
    card: AdapterCard
    peft: dict[str, Any]
    """What HF peft's card says, where it has the method's tuner."""

    def described(self) -> str:
        """The content of adapter_config.json."""
        return json.dumps({"harness": self.card.model_dump(mode="json")} | self.peft, indent=1)


HEAD = "head."
"""How the names of the head's tensors begin."""
PEFT = "base_model.model."
"""How HF peft begins the names of tensors in its files."""


def file_names(names: Iterable[str], method: Method) -> dict[str, str]:
    """What tensors of a classifier are called in the files, by their names in it."""
    renames = () if method.peft_config() is None else ((r"^encoder\.", PEFT), *method.peft_names)
    return {name: name if name.startswith(HEAD) else renamed(name, renames) for name in names}


def pack(attached: Attached, trial: Trial, *, train_items: int) -> Packed:
    """The contents of the adapter's files.

    They hold all trainable tensors, and every other one that a reader would not get by building the model anew.
    Which those are is not reasoned out but tried: the model is built once more, under another seed, and what differs
    is kept. So whatever was drawn at random (a frozen class token, which no pre-training has), filled from the data
    or changed by training (statistics, banks) is in, without a seed being part of the format; and what equals the base
    weights (frozen layers, a method's frozen copies of them) is not, wherever a method has moved it.
    """
    fresh, base_weights = untrained(trial.with_seed(trial.seed + 1), train_items=train_items)
    rebuilt = tensors(fresh.model)
    kept = {
        name: value.detach().cpu()
        for name, value in sorted(tensors(attached.model).items())
        if name in attached.trainable or name not in rebuilt or not torch.equal(value.cpu(), rebuilt[name])
    }
    files: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, called in file_names(kept, trial.method).items():
        files[name.startswith(HEAD)][called] = kept[name].contiguous().clone()
    adapter, head = (save(file, metadata={"trial": trial.identity}) for file in files)
    card = AdapterCard(
        trial=trial.identity,
        spec=trial.spec(),
        classes=trial.dataset.classes,
        train_items=train_items,
        stored_points=trial.dataset.points,
        up=trial.dataset.up,
        normalised=trial.dataset.normalised,
        base_weights=base_weights,
        versions={"harness": harness.__version__, "torch": torch.__version__},
        task=trial.dataset.task,
        details=task_of(trial.dataset).details(trial.dataset),
    )
    return Packed(adapter, head, card, trial.method.peft_config() or {})


def unpack(contents: Iterable[bytes], attached: Attached, method: Method) -> dict[str, Tensor]:
    """The tensors of the files by their names in the model; what is unknown there keeps its name.

    Raises SafetensorError.
    """
    ours = {called: name for name, called in file_names(tensors(attached.model), method).items()}
    return {ours.get(name, name): value for content in contents for name, value in load(content).items()}


@dataclass(frozen=True)
class Advice:
    """What errors say of an adapter's files, by where these came from."""

    what: str
    """Whose they are: `trial 0123 (folder)`."""
    vouching: str
    """What the digests are of."""
    absent: str
    """Why a file may not be there."""
    again: str
    """How to get whole files."""
    made_on: str
    """How the weights that it belongs on came in: `was trained on`."""
    base: str
    """What to do when those are not here."""
    changed: str
    """Why tensors may not fit although the files are whole."""


def load_adapter(
    card: AdapterCard, spec: Mapping[str, Any], files: Mapping[Path, str | None], advice: Advice
) -> tuple[Trial, Attached]:
    """The trained model of an adapter on the CPU, and its trial; without any data.

    `spec` is the trial's whole specification; `files` hold the tensors, by path, with the SHA-256 that each must have.
    Raises UserError when a file is missing, damaged or another one, and when the base weights, or the plug-ins of the
    method or the backbone, are not here or are others.
    """
    contents = [_vouched(file, digest, advice) for file, digest in files.items()]
    try:
        trial = Trial.from_spec(dict(spec), dataset=card.dataset())
        attached, weights = untrained(trial, train_items=card.train_items)
    except UserError as error:
        raise UserError(f"{advice.what} cannot be built: {error}") from None
    if weights != card.base_weights:
        raise UserError(
            f"{advice.what} {advice.made_on} other weights '{trial.backbone.weights}': SHA-256 "
            f"{str(card.base_weights)[:12]}…, here {str(weights)[:12]}…; {advice.base}"
        )
    first = next(iter(files))
    try:
        state = unpack(contents, attached, trial.method)
    except SafetensorError as error:
        raise UserError(f"{first.parent}: cannot be read as safetensors: {error}; {advice.again}") from None
    if misfit := fill(attached, state):
        raise UserError(f"{first}: {misfit}; {advice.changed}")
    return trial, attached


def _vouched(file: Path, digest: str | None, advice: Advice) -> bytes:
    """A file's bytes. Raises UserError when it is not there, or not the one that the digest is of."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file: {advice.absent}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise UserError(
            f"{file}: damaged or replaced: SHA-256 {found[:12]}…, and {advice.vouching} says {str(digest)[:12]}…; "
            f"{advice.again}"
        )
    return content


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name; what a model shares with itself goes by its first name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@torch.no_grad()
def fill(attached: Attached, state: Mapping[str, Tensor]) -> str | None:
    """Put an adapter's tensors into an untrained model. Returns what does not fit, and then has changed nothing."""
    own = tensors(attached.model)
    for name in sorted({*state, *attached.trainable}):
        if name not in own:
            return f"'{name}' is no part of the model"
        if name not in state:
            return f"'{name}' is trained, and the file lacks it"
        if (state[name].shape, state[name].dtype) != (own[name].shape, own[name].dtype):
            here = f"{tuple(own[name].shape)} {own[name].dtype}"
            return f"'{name}' is {tuple(state[name].shape)} {state[name].dtype}, and the model's is {here}"
    for name, value in state.items():
        own[name].copy_(value)
    return None


def read_card(path: Path) -> AdapterCard:
    """The card at a path. Raises UserError when it is missing or damaged."""
    try:
        read = json.loads(path.read_bytes())
        return AdapterCard.model_validate(read.get("harness") if isinstance(read, dict) else None)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); it belongs beside the adapter") from None
    except (ValueError, RecursionError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": "no JSON"}
        where = ".".join(map(str, first["loc"])) or "file"
        raise UserError(
            f"{path}: damaged, or not of this version of the harness ({where}: {first['msg']}); "
            "get the folder again, or run its trial again into another --output"
        ) from None
