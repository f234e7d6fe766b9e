"""`harness weights import FILE`: read, recognised, written; and what lies in the weights folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness import registry
from harness.errors import UserError, did_you_mean
from harness.importing.child import Refused
from harness.importing.encoders import check_name, import_encoder
from harness.importing.layouts import Branch, recognise
from harness.importing.reading import read_checkpoint
from harness.models.manifest import NAME, Manifest, imported_names, manifest_path, weights_path
from harness.models.weights import WEIGHTS, find_weights
from harness.yaml_source import parse_settings

EXAMPLE = "backbone.heads=6"


def import_file(
    path: Path,
    *,
    name: str | None = None,
    backbone: str | None = None,
    branch: Branch | None = None,
    settings: Sequence[str] = (),
    force: bool = False,
) -> Manifest:
    """Make weights of a checkpoint; see `import_encoder`. Raises UserError, and then has written nothing."""
    given = parse_settings(settings, example=EXAMPLE)
    if unknown := [key for key in given if not key.startswith("backbone.")]:
        raise UserError(f"--set {unknown[0]}: cannot be set; expected, for example, {EXAMPLE}")
    if name is not None:
        check_name(name, force=force)  # before a large file is read
    contents = read_checkpoint(path)
    try:
        names = recognise(contents.tensors, branch=branch)
        if names.fine_tuned:
            raise Refused("is a fine-tuned model, with a head; these are not read yet")
        return import_encoder(contents, names, name=name, backbone=backbone, settings=given, force=force)
    except Refused as refusal:
        raise UserError(f"{path}: {refusal}") from None


def remove(name: str) -> list[Path]:
    """Delete what was imported under a name; returns the files. Raises UserError when there is nothing."""
    if name in WEIGHTS and WEIGHTS[name].shipped:
        raise UserError(f"weights '{name}' ship with the harness; they stay")
    files = [path for path in (manifest_path(name), weights_path(name)) if NAME.fullmatch(name) and path.is_file()]
    if not files:
        there = f"; {did_you_mean(name, imported_names())}" if imported_names() else ""
        raise UserError(f"nothing is imported as '{name}'{there}")
    try:
        for path in files:  # the manifest first: without it there are no weights
            path.unlink()
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be removed ({error.strerror})") from None
    return files


def suite_entry(manifest: Manifest) -> str:
    """A line for the `backbones` of a suite: the preset that fits, or every number."""
    declared = registry.get("backbones", manifest.backbone)
    for preset in getattr(declared, "presets", {}):
        if find_weights(manifest.name).misfit(declared(preset=preset)) is None:
            return f"{manifest.backbone}: {{preset: {preset}, weights: {manifest.name}}}"
    settings = ", ".join(f"{key}: {json.dumps(value)}" for key, value in manifest.requires.items())
    return f"{manifest.backbone}: {{{settings}, weights: {manifest.name}}}"
