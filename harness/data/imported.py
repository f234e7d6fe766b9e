"""Datasets that a user imported: ROOT/imported/NAME.safetensors beside NAME.json, the card that declares it.

`harness.data.importing` writes both. Finding and naming a dataset reads its card only; the clouds are opened, and held
against the card, by `load`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.data.clouds_file import read_split
from harness.data.dataset import Dataset, PointClouds, Split
from harness.errors import UserError

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
VERSION = 1
"""Of what an import makes of a file. Other files under the same name are told by their digest."""

Count = Annotated[int, Field(ge=0)]


class ClassCounts(BaseModel):
    """One class of an import: its files, and the clouds that were kept."""

    model_config = ConfigDict(frozen=True)

    read: Count
    refused: Count
    train: Count
    test: Count


class RefusedFile(BaseModel):
    """A file that gave nothing, and why."""

    model_config = ConfigDict(frozen=True)

    file: str
    reason: str


class Card(BaseModel):
    """What is known of an imported dataset without opening it."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    name: str
    version: int = VERSION
    classes: Annotated[tuple[str, ...], Field(min_length=2)]
    train_items: Annotated[int, Field(ge=1)]
    test_items: Annotated[int, Field(ge=1)]
    counts: dict[str, ClassCounts]
    """By class."""
    points: Annotated[int, Field(ge=1)]
    up: Literal["y", "z"]
    normalised: bool
    licence: str
    folder: str
    """Name of the folder that was imported, without where it lay."""
    split: str
    """The rule, in words."""
    duplicates: Count
    """Clouds that equal an earlier one of their class."""
    shared: Count
    """Test clouds that equal a training cloud: none, unless the folder brought its own split."""
    ignored: Count
    """Files of kinds that are not read."""
    refused: tuple[RefusedFile, ...]
    digest: str
    """SHA-256 of the file with the clouds."""

    @model_validator(mode="after")
    def _every_class_is_counted(self) -> Self:
        if set(self.counts) != set(self.classes):
            raise ValueError("classes and counts differ")
        return self


@dataclass(frozen=True)
class ImportedDataset(Dataset):
    """A user's own dataset, by its card."""

    digest: str

    def missing(self, root: Path) -> str | None:
        """None when the clouds are there, else where they should be."""
        path = clouds_path(self.name, root)
        return None if path.is_file() else f"dataset '{self.name}' lacks {path}; {_again(self.name)}"

    def sources(self, root: Path) -> list[Path]:
        """The file with the clouds."""
        return [clouds_path(self.name, root)]

    def load(self, split: Split, root: Path) -> PointClouds:
        """Read one split. Raises UserError when the file is missing, or is not the one that the card declares."""
        path = clouds_path(self.name, root)
        return read_split(path, split, declared=self, digest=self.digest, again=_again(self.name))


def clouds_path(name: str, root: Path) -> Path:
    """Where the clouds of an imported dataset lie."""
    return root / "imported" / f"{name}.safetensors"


def card_path(name: str, root: Path) -> Path:
    """Where its card lies."""
    return root / "imported" / f"{name}.json"


def read_card(name: str, root: Path) -> Card:
    """The card of an imported dataset. Raises UserError when it is missing, damaged or of a newer harness."""
    path = card_path(name, root)
    try:
        card = Card.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        reason = f"{where}: {first['msg']}" if where else str(first["msg"])
        raise UserError(f"{path}: damaged card of dataset '{name}' ({reason}); {_again(name)}") from None
    if card.name != name:
        raise UserError(f"{path}: is the card of '{card.name}', not of '{name}'; {_again(name)}")
    return card


def imported_dataset(name: str, root: Path) -> ImportedDataset:
    """The dataset of that name. Raises UserError as `read_card` does."""
    card = read_card(name, root)
    return ImportedDataset(
        name=name,
        version=card.version,
        classes=card.classes,
        train_items=card.train_items,
        test_items=card.test_items,
        points=card.points,
        up=card.up,
        normalised=card.normalised,
        licence=card.licence,
        source=f"imported from the folder '{card.folder}'",
        digest=card.digest,
    )


def imported_datasets(root: Path) -> dict[str, Dataset]:
    """All imported datasets by name, sorted; those with a damaged card are left out."""
    found: dict[str, Dataset] = {}
    for path in sorted((root / "imported").glob("*.json")):
        try:
            if NAME.fullmatch(path.stem):
                found[path.stem] = imported_dataset(path.stem, root)
        except UserError:
            continue
    return found


def card_problem(name: str, root: Path) -> str | None:
    """Why a dataset that was imported under this name cannot be used; None when there is none, or it can be."""
    if not NAME.fullmatch(name) or not card_path(name, root).exists():
        return None
    try:
        read_card(name, root)
    except UserError as error:
        return str(error)
    return None


def _again(name: str) -> str:
    return f"import it again: harness data import FOLDER --name {name} --force"
