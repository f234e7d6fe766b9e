"""What is known of imported weights without opening them: HARNESS_DATA/weights/NAME.json beside NAME.safetensors.

`harness.importing.encoders` writes both; `harness.models.weights` finds them.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from harness.atomic import read_json
from harness.errors import UserError

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
"""Of what is imported; it becomes a folder's name, so it does not begin with a dot."""
VERSION = 1
"""Of what an import makes of a file. Other files under the same name are told by their digest."""


def _with_tuples(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as backbones hold them: JSON has lists only."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


Settings = Annotated[dict[str, Any], AfterValidator(_with_tuples)]


class Source(BaseModel):
    """The file that something was imported from, and what became of its tensors."""

    model_config = ConfigDict(frozen=True)

    file: str
    """Its name, without where it lay."""
    digest: str
    """SHA-256."""
    bytes: int
    layout: str
    """How it names its tensors, in words."""
    guess: str
    """What the names do not tell and nobody said; empty where there is no such thing."""
    container: str | None
    """The key that the tensors lay under."""
    used: dict[str, str]
    """Our name -> the file's."""
    left: dict[str, tuple[str, ...]]
    """Why -> the file's names."""
    missing: dict[str, str]
    """Our name -> why the file need not have it."""
    said: dict[str, float | int | str | bool]
    """Single values beside the tensors: `epoch`, `metrics.acc`."""
    assumed: Settings
    """Settings that no tensor tells."""


class Manifest(BaseModel):
    """Weights that were imported, or pre-trained here."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    kind: Literal["encoder"] = "encoder"
    name: str
    version: int = VERSION
    backbone: str
    requires: Settings
    """Settings of the backbone that the tensors need."""
    digest: str
    """SHA-256 of NAME.safetensors."""
    source: Source
    harness: str
    """Its version."""
    imported: str
    """When, UTC."""


def data_root() -> Path:
    """Where a user's data and weights lie: HARNESS_DATA, or `data` in the current folder."""
    return Path(os.environ.get("HARNESS_DATA", "data")).expanduser()


def model_folder(name: str) -> Path:
    """Where an imported fine-tuned model lies (harness.importing.cards)."""
    return data_root() / "models" / name


def weights_path(name: str) -> Path:
    """Where the tensors of weights lie that do not ship."""
    return data_root() / "weights" / f"{name}.safetensors"


def manifest_path(name: str) -> Path:
    """Where their manifest lies."""
    return weights_path(name).with_suffix(".json")


def read_manifest(name: str) -> Manifest | None:
    """The manifest of imported weights; None where there is none. Raises UserError when it is damaged."""
    path = manifest_path(name)
    if not NAME.fullmatch(name):
        return None
    try:
        stamp = path.stat()
    except OSError:
        return None
    found = _parsed(path, (stamp.st_mtime_ns, stamp.st_size, stamp.st_ino))
    if isinstance(found, str) or found.name != name:
        reason = found if isinstance(found, str) else f"it is of '{found.name}'"
        raise UserError(
            f"{path}: no manifest of weights '{name}' ({reason}); "
            f"import them again: harness weights import FILE --as {name} --force"
        )
    return found


@lru_cache(maxsize=64)
def _parsed(path: Path, stamp: tuple[int, ...]) -> Manifest | str:
    """A manifest, or why it is damaged; read once while the file is the same."""
    content = read_json(path)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return f"{where}: {first['msg']}" if where else str(first["msg"])


def imported_names() -> list[str]:
    """Names of all weights with a manifest that can be read, sorted."""
    found = []
    for path in sorted((data_root() / "weights").glob("*.json")):
        try:
            if read_manifest(path.stem) is not None:
                found.append(path.stem)
        except UserError:
            continue
    return found
