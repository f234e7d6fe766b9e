"""An imported model, ready to use; and `load_model`, which takes a trial or an imported model by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from harness import registry
from harness.adapter import fill, unpack, untrained
from harness.data.dataset import Dataset
from harness.data.splits import load_split, test_batches
from harness.errors import UserError
from harness.importing.cards import CARD, HEAD, TENSORS, ImportedCard, imported_models, read_imported
from harness.models.manifest import NAME, data_root, model_folder
from harness.settings import Protocol, Resources, Train
from harness.trained import TrainedModel, load_trial, usable_device
from harness.trial import Trial


@dataclass(frozen=True)
class ImportedModel(TrainedModel):
    """A model of somebody else's training; `load_model` makes one."""

    card: ImportedCard

    @property
    def name(self) -> str:
        """What it was imported as."""
        return self.card.name

    @property
    def title(self) -> str:
        """`NAME: dapt on point_mae`."""
        return f"{self.card.name}: {self.trial.method_name} on {self.trial.backbone_name}"

    @property
    def told(self) -> dict[str, float]:
        """What the authors print, and what their file says."""
        said = self.card.source.said.get("metrics.acc")
        found = {} if self.card.published is None else {"published": self.card.published}
        return found | ({"its file says": said / 100} if isinstance(said, int | float) and 1 < said <= 100 else {})


def load_model(name: str | Path, *, output: str | Path = "results", device: str | torch.device = "cpu") -> TrainedModel:
    """The trained model of a finished trial (see `load_trial`), or an imported one, by its name or folder.

    Raises UserError as `load_trial` does, and when an imported model's files, its base weights or the plug-ins of its
    method or backbone are missing or others, or its training set is not here where something is made of that.
    """
    text = str(name)
    if NAME.fullmatch(text) and (model_folder(text) / CARD).is_file():
        return _load(model_folder(text), device)
    if (Path(name) / CARD).is_file():
        return _load(Path(name), device)
    try:
        return load_trial(name, output=output, device=device)
    except UserError as error:
        known = f"\n- imported models: {', '.join(imported_models())}" if imported_models() else ""
        raise UserError(f"{error}{known}") from None


def _load(folder: Path, device: str | torch.device) -> ImportedModel:
    place = usable_device(device)
    card = read_imported(folder)
    known = card.adapter
    rest = {
        "train": Train().model_dump(mode="json"),
        "protocol": Protocol().model_dump(mode="json"),
        "seed": 0,
        "resources": Resources().model_dump(mode="json", include={"precision", "processes", "strategy"}),
    }
    try:
        trial = Trial.from_spec(known.spec | rest, dataset=known.dataset())
        attached, weights = untrained(trial, train_items=known.train_items)
    except UserError as error:
        raise UserError(f"model '{card.name}' ({folder}) cannot be built: {error}") from None
    if weights != known.base_weights:
        raise UserError(
            f"model '{card.name}' ({folder}) was imported on other weights '{card.base}': SHA-256 "
            f"{str(known.base_weights)[:12]}…, here {str(weights)[:12]}…; import one of the two again"
        )
    contents = [_content(folder / TENSORS, card.digest), _content(folder / HEAD, card.head_digest)]
    if misfit := fill(attached, unpack(contents, attached, trial.method)):
        raise UserError(f"{folder / TENSORS}: {misfit}; the harness has changed since the import: import it again")
    model = attached.model.to(place).eval()
    if card.from_training_set and attached.before_training is not None:
        clouds = load_split(_training_set(card), "train", place)
        attached.before_training(batch for _, batch in test_batches(clouds, trial))
    return ImportedModel(model, known.classes, trial, card)


def _content(path: Path, digest: str) -> bytes:
    """The bytes of a file that the card vouches for. Raises UserError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); import it again") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{path}: damaged or replaced: not the SHA-256 of its card; import it again")
    return content


def _training_set(card: ImportedCard) -> Dataset:
    """The dataset whose training clouds fill what the authors' file lacks. Raises UserError when it is not here."""
    name = card.adapter.spec["dataset"]["name"]
    declared: Dataset = registry.get("datasets", name)
    if problem := declared.missing(data_root()):
        method = card.adapter.spec["method"]["name"]
        raise UserError(
            f"model '{card.name}': {method} makes its memory bank of the training clouds of {name}, since the authors' "
            f"file holds none; and they are not here: {problem}"
        )
    if declared.train_items != card.adapter.train_items:
        raise UserError(f"model '{card.name}': {name} has other clouds now than when it was imported; import it again")
    return declared
