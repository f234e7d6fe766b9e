"""A fine-tuned checkpoint becomes a model: adapter and head on a named encoder, or all of it in one file.

Our model of what the checkpoint is (harness.importing.finetuned) is built, filled, and written as a trial's adapter is:
what the base weights hold is not written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness import __version__, registry
from harness.adapter import fill, pack, tensors, untrained
from harness.atomic import write_in_order
from harness.data.dataset import Dataset
from harness.data.splits import load_split, test_batches
from harness.errors import UserError
from harness.importing.cards import CARD, HEAD, IMPORTED, TENSORS, ImportedCard
from harness.importing.child import Refused
from harness.importing.encoders import check_name, file_stem, now, source
from harness.importing.finetuned import Head, Trained, head_of, known_model, method_of, trained_on
from harness.importing.fitting import BACKBONE, Fit, fit
from harness.importing.layouts import Names
from harness.importing.reading import Contents
from harness.method import Attached, Method, misfits
from harness.models.manifest import data_root, model_folder
from harness.models.weights import all_weights
from harness.settings import Data, Protocol, Resources, Train
from harness.trial import Trial

METHOD, DATA = "method.", "data."
NOT_KNOWN = ("train", "protocol", "seed", "resources")
"""Parts of a trial's specification that say how it was trained."""


def import_model(
    contents: Contents,
    names: Names,
    *,
    name: str | None,
    backbone: str | None,
    data: str | None,
    base: str | None,
    settings: Mapping[str, Any],
    force: bool,
) -> ImportedCard:
    """Write a fine-tuned checkpoint as a model; returns its card.

    `data` is what it was trained on; `base` the weights that it began with. Without a base the weights that are here
    are tried: those whose tensors are the file's frozen ones are it. Raises Refused for a file whose tensors are not
    those of a model we have, UserError for what is missing or cannot be; then nothing has been written.
    """
    if names.layout.unread:
        raise Refused(f"is {names.layout.title}, which is not read: {names.layout.unread}")
    kinds = (backbone,) if backbone is not None else (names.layout.backbone, *names.layout.alike)
    found = fit(contents.tensors, names, backbone=kinds[0], settings=settings)
    head, trained = head_of(found), method_of(found)
    known = known_model(contents, found, trained.method, name=name, data=data)
    if known:
        kinds, settings = (known.backbone,), {**known.settings, **settings}
    dataset = trained_on(head, data or (known.data if known else None))
    name = name or (known.name if known else file_stem(contents))
    check_name(name, force=force, folder=True)
    fits = [fit(contents.tensors, names, backbone=kind, settings=settings) for kind in kinds]
    found, filled = _on_base([(f, _trial(f, head, trained, dataset, settings)) for f in fits], base)
    if misfit := fill(filled.attached, filled.state):
        raise Refused(misfit)
    trial = filled.trial
    missing = _make_helpers(filled, dataset)
    packed = pack(filled.attached, trial, train_items=dataset.train_items)
    card = packed.card
    spec = {key: value for key, value in card.spec.items() if key not in NOT_KNOWN}
    certain = backbone is not None or known is not None or trial.backbone.weights != "random"
    left = {"no tensor": contents.odd, "held twice": tuple(found.files[twin] for twin in trained.twice)}
    imported = ImportedCard(
        name=name,
        adapter=card.model_copy(update={"trial": IMPORTED, "spec": spec}),
        base=None if trial.backbone.weights == "random" else trial.backbone.weights,
        frozen=len(filled.as_base),
        as_base=sum(filled.as_base.values()),
        published=known.published if known else None,
        source=source(
            contents,
            names,
            guess="" if certain else names.layout.guess,
            used={own: found.files[found.official_of(own, trial.method)] for own in filled.state},
            left={why: files for why, files in left.items() if files},
            missing=missing,
            assumed={key: value for key, value in _untold(trial, found).items() if key not in settings},
        ),
        digest=hashlib.sha256(packed.adapter).hexdigest(),
        head_digest=hashlib.sha256(packed.head).hexdigest(),
        harness=__version__,
        imported=now(),
    )
    folder, document = model_folder(name), imported.model_dump_json(indent=1) + "\n"
    write_in_order([(folder / TENSORS, packed.adapter), (folder / HEAD, packed.head), (folder / CARD, document)])
    return imported


def _trial(found: Fit, head: Head, trained: Trained, dataset: Dataset, settings: Mapping[str, Any]) -> Trial:
    """What stands for the training that we have not seen: method, backbone and data are those of the file."""
    backbone = found.backbone.model_copy(update={"head": head.kind})
    method, values = trained.method, trained.settings | _under(METHOD, settings)
    parts, rest = divmod(head.inputs, found.encoder.dim)
    if "pool" not in values and backbone.hierarchical and parts == 1:
        values["pool"] = ("mean_plus_max",)  # the official head for ModelNet40
    configured: Method = registry.configured("methods", method, values).on(backbone)
    pool = configured.pool or ()
    if rest or len(pool) != parts:
        raise UserError(
            f"the head has {head.inputs} inputs, {head.inputs / found.encoder.dim:g} times the encoder's width, and "
            f"pool has {len(pool)} parts ({', '.join(pool)}); --set method.pool=[…]"
        )
    given = _under(DATA, settings)
    points = given.get("points", backbone.default_points)
    data = Data.model_validate({"points": points, "sampling": "fps"} | given)
    problems = [*backbone.problems(points), *misfits(configured, backbone)]
    if points > dataset.points:
        problems.append(f"{points} points, but {dataset.name} has {dataset.points} per cloud; --set data.points=…")
    if problems:
        raise UserError("\n".join(problems))
    return Trial(
        method_label=method,
        backbone_label=found.kind,
        method_name=method,
        method=configured,
        backbone_name=found.kind,
        backbone=backbone,
        dataset=dataset,
        train=Train(),
        protocol=Protocol(),
        data=data,
        resources=Resources(),
    )


@dataclass(frozen=True)
class _Filled:
    """An untrained model of ours, and what the file has for it."""

    trial: Trial
    attached: Attached
    state: dict[str, Tensor]
    lacking: list[str]
    """Tensors that the file lacks, all of them helpers that the method has of the base weights or makes of the data."""
    as_base: dict[str, bool]
    """Of the file's frozen tensors: whether they equal those of the base weights."""


def _on_base(candidates: list[tuple[Fit, Trial]], base: str | None) -> tuple[Fit, _Filled]:
    """The model on the weights that its training began with, where they are here or named.

    `candidates` are the encoders that the file may hold, the likeliest first. Where no weights are its base it is taken
    for the first, on none, for the file has the whole encoder; but what a method keeps beside it (Point-PEFT's query
    encoder) is not in the file, and then there must be a base.
    """
    known = list(all_weights().values())
    here = {
        weights.name: (found, trial)
        for found, trial in candidates
        for weights in known
        if weights.backbone == found.kind and weights.misfit(trial.backbone) is None and weights.missing() is None
    }
    if base is not None and base not in here:
        kinds = " or ".join(found.kind for found, _ in candidates)
        raise UserError(f"--base {base}: no such weights for this {kinds} are here ({', '.join(here) or 'none are'})")
    for name in here if base is None else [base]:
        found, trial = here[name]
        filled = _filled(replace(trial, backbone=trial.backbone.model_copy(update={"weights": name})), found)
        if base is not None or (filled.as_base and all(filled.as_base.values())):
            return found, filled
    found, trial = candidates[0]
    filled = _filled(trial, found)
    if filled.lacking:
        raise UserError(
            f"{trial.method_name} keeps a frozen copy of the encoder that it began with, which the file lacks, and no "
            f"weights here are that encoder: import them first, or name them with --base"
        )
    return found, filled


def _filled(trial: Trial, found: Fit) -> _Filled:
    """An untrained model, and the file's tensors for it. Raises Refused when it lacks what it must have."""
    attached, _ = untrained(trial, train_items=trial.dataset.train_items)
    own = tensors(attached.model)
    state = found.place(own, lambda name: found.official_of(name, trial.method))
    lacking = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    if lacking and attached.before_training is None:
        raise Refused(f"lacks {len(lacking)} tensors of a {trial.method_name} model, first '{lacking[0]}'")
    parameters = dict(attached.model.named_parameters())
    frozen = sorted((parameters.keys() - attached.trainable.keys()) & state.keys())
    return _Filled(trial, attached, state, lacking, {key: torch.equal(own[key], state[key]) for key in frozen})


def _make_helpers(filled: _Filled, dataset: Dataset) -> dict[str, str]:
    """Make what a method keeps beside its encoder, as before a training; returns what the file lacks, and whence it is.

    Raises UserError when it takes the training clouds, and they are not here.
    """
    trial, make = filled.trial, filled.attached.before_training
    if make is None or not filled.lacking:
        return {}
    if problem := dataset.missing(data_root()):
        raise UserError(
            f"{trial.method_name} makes its memory bank of the training clouds of {dataset.name}, since the "
            f"authors' file holds none; and they are not here: {problem}"
        )
    model = filled.attached.model
    begin = {name: tensors(model)[name].clone() for name in filled.lacking}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).eval()
    clouds = load_split(dataset, "train", device)
    make(batch for _, batch in test_batches(clouds, trial))
    model.cpu()
    same = {name: torch.equal(value, tensors(model)[name]) for name, value in begin.items()}
    made = f"made of the training clouds of {dataset.name}"
    return {name: "the base weights'" if unchanged else made for name, unchanged in same.items()}


def _under(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(section): value for key, value in settings.items() if key.startswith(section)}


def _untold(trial: Trial, found: Fit) -> dict[str, Any]:
    """Settings that the model depends on and that no tensor tells."""
    told = {*found.requires, "preset", "weights", "head"} - found.assumed.keys()
    keys = {f"{BACKBONE}{key}": value for key, value in trial.backbone.model_dump().items() if key not in told}
    keys |= {f"{METHOD}{key}": getattr(trial.method, key) for key in trial.method.untold(trial.backbone)}
    return keys | {f"{DATA}{key}": getattr(trial.data, key) for key in ("points", "sampling")}
