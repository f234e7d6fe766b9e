"""`harness weights import FILE`: read, recognised, written; and what was imported, by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from harness import registry
from harness.errors import UserError, did_you_mean
from harness.importing.cards import ImportedCard, imported_models
from harness.importing.child import Refused
from harness.importing.encoders import check_name, import_encoder
from harness.importing.layouts import Branch, recognise
from harness.importing.models import import_model
from harness.importing.reading import read_checkpoint
from harness.models.manifest import NAME, Manifest, imported_names, manifest_path, model_folder, weights_path
from harness.models.weights import WEIGHTS, find_weights
from harness.yaml_source import parse_settings

EXAMPLE = "backbone.heads=6"
SECTIONS = ("backbone.", "method.", "data.")


def import_file(
    path: Path,
    *,
    name: str | None = None,
    backbone: str | None = None,
    branch: Branch | None = None,
    data: str | None = None,
    base: str | None = None,
    settings: Sequence[str] = (),
    force: bool = False,
) -> Manifest | ImportedCard:
    """Make weights of a pre-training checkpoint, or a model of a fine-tuned one.

    See `import_encoder` and `import_model`; the former takes neither `data` nor `base`, and of `settings` the
    backbone's only. Raises UserError, and then has written nothing.
    """
    given = parse_settings(settings, example=EXAMPLE)
    if unknown := [key for key in given if not key.startswith(SECTIONS)]:
        raise UserError(f"--set {unknown[0]}: cannot be set; expected, for example, {EXAMPLE}")
    if name is not None:
        check_name(name, force=force)  # before a large file is read
    contents = read_checkpoint(path)
    try:
        names = recognise(contents.tensors, branch=branch)
        if names.fine_tuned:
            return import_model(
                contents, names, name=name, backbone=backbone, data=data, base=base, settings=given, force=force
            )
        only = [key for key in given if not key.startswith(SECTIONS[0])]
        only += [option for option, value in (("--data", data), ("--base", base)) if value is not None]
        if only:
            raise UserError(f"{only[0]}: is for fine-tuned models; {path} is {names.layout.title}, without a head")
        return import_encoder(contents, names, name=name, backbone=backbone, settings=given, force=force)
    except Refused as refusal:
        raise UserError(f"{path}: {refusal}") from None


def remove(name: str) -> list[Path]:
    """Delete what was imported under a name; returns its places. Raises UserError when there is nothing."""
    if name in WEIGHTS and WEIGHTS[name].shipped:
        raise UserError(f"weights '{name}' ship with the harness; they stay")
    places = (manifest_path(name), weights_path(name), model_folder(name))
    here = [path for path in places if NAME.fullmatch(name) and path.exists()]
    if not here:
        known = [*imported_names(), *imported_models()]
        raise UserError(f"nothing is imported as '{name}'{f'; {did_you_mean(name, known)}' if known else ''}")
    try:
        for path in here:  # the manifest first: without it there are no weights
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be removed ({error.strerror})") from None
    return here


def suite_entry(manifest: Manifest) -> str:
    """A line for the `backbones` of a suite: the preset that fits, or every number."""
    declared = registry.get("backbones", manifest.backbone)
    for preset in declared.presets:
        if find_weights(manifest.name).misfit(declared(preset=preset)) is None:
            return f"{manifest.backbone}: {{preset: {preset}, weights: {manifest.name}}}"
    settings = ", ".join(f"{key}: {json.dumps(value)}" for key, value in manifest.requires.items())
    return f"{manifest.backbone}: {{{settings}, weights: {manifest.name}}}"
