"""An imported fine-tuned model: HARNESS_DATA/models/NAME with adapter_model, head and adapter_config."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.adapter import AdapterCard
from harness.data.folder import printable
from harness.errors import UserError
from harness.models.manifest import NAME, Source, data_root

TENSORS, HEAD, CARD = "adapter_model.safetensors", "head.safetensors", "adapter_config.json"
IMPORTED = "imported"
"""Stands for a trial's identity in the card of an adapter that no trial made."""


class ImportedCard(BaseModel):
    """What is known of an imported model without opening it."""

    model_config = ConfigDict(frozen=True)

    format: Literal[2] = 2
    kind: Literal["model"] = "model"
    name: str
    adapter: AdapterCard
    """As a trial's; `spec` says nothing of how it was trained."""
    base: str | None
    """Weights that the tensors belong on; None where the file holds the whole encoder."""
    frozen: int
    """Tensors of the encoder that the method does not train."""
    as_base: int
    """Those among them that equal the base weights'."""
    published: float | None
    """Accuracy that the authors print, 0 to 1."""
    source: Source
    digest: str
    """SHA-256 of the tensors' file."""
    head_digest: str
    """SHA-256 of the head's."""
    harness: str
    imported: str


def read_imported(folder: Path) -> ImportedCard:
    """The card of an imported model. Raises UserError when it is missing or damaged."""
    path = folder / CARD
    again = "import it again: harness weights import FILE --force"
    try:
        return ImportedCard.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {again}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise UserError(f"{path}: no card of an imported model ({where}: {printable(first['msg'])}); {again}") from None


def imported_models() -> list[str]:
    """Names of all imported models, sorted."""
    home = data_root() / "models"
    return sorted(path.parent.name for path in home.glob(f"*/{CARD}") if NAME.fullmatch(path.parent.name))
