"""An imported model, ready to use; and `load_model`, which takes a trial or an imported model by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from harness.adapter import Advice, load_adapter
from harness.errors import UserError
from harness.importing.cards import CARD, HEAD, TENSORS, ImportedCard, imported_models, read_imported
from harness.models.manifest import NAME, model_folder
from harness.settings import Protocol, Resources, Train
from harness.trained import TrainedModel, load_trial, usable_device


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
    method or backbone are missing or others.
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
        "resources": Resources().spec(),
    }
    again = "import it again: harness weights import FILE --force"
    advice = Advice(
        what=f"model '{card.name}' ({folder})",
        vouching=f"{CARD} there",
        absent=again,
        again=again,
        made_on="was imported on",
        base="import one of the two again",
        changed="the harness has changed since the import: import it again",
    )
    files = {folder / TENSORS: card.digest, folder / HEAD: card.head_digest}
    trial, attached = load_adapter(known, known.spec | rest, files, advice)
    return ImportedModel(attached.model.to(place).eval(), known.classes, trial, card)
