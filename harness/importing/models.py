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
from harness.errors import UserError
from harness.importing.cards import CARD, HEAD, IMPORTED, TENSORS, ImportedCard
from harness.importing.child import Refused
from harness.importing.encoders import check_name, file_stem, now, source
from harness.importing.finetuned import Head, head_of, known_model, method_of, trained_on
from harness.importing.fitting import BACKBONE, Fit, fit
from harness.importing.layouts import Names
from harness.importing.reading import Contents
from harness.method import Attached, Method, misfits
from harness.models.manifest import model_folder
from harness.models.official import official_name
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
    found = fit(contents.tensors, names, backbone=backbone, settings=settings)
    head = head_of(found)
    method, told = method_of(found)
    known = known_model(contents, found, method, name=name, data=data)
    if known:
        settings = {**known.settings, **settings}
        found = fit(contents.tensors, names, backbone=backbone, settings=settings)
    dataset = trained_on(head, data or (known.data if known else None))
    name = name or (known.name if known else file_stem(contents))
    check_name(name, force=force, folder=True)
    filled = _on_base(_trial(found, head, method, told, dataset, settings), found, base)
    if misfit := fill(filled.attached, filled.state):
        raise Refused(misfit)
    trial = filled.trial
    packed = pack(filled.attached, trial, train_items=dataset.train_items)
    card = packed.card
    spec = {key: value for key, value in card.spec.items() if key not in NOT_KNOWN}
    imported = ImportedCard(
        name=name,
        adapter=card.model_copy(update={"trial": IMPORTED, "spec": spec}),
        base=None if trial.backbone.weights == "random" else trial.backbone.weights,
        frozen=len(filled.as_base),
        as_base=sum(filled.as_base.values()),
        from_training_set=bool(filled.lacking),
        published=known.published if known else None,
        source=source(
            contents,
            names,
            guess=names.layout.guess if backbone is None and known is None else "",
            used={own: found.files[_official(own, trial, found)] for own in filled.state},
            left={"no tensor": contents.odd} if contents.odd else {},
            missing=dict.fromkeys(filled.lacking, "of the base weights, or made of the training set when loaded"),
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


def _trial(
    found: Fit, head: Head, method: str, told: dict[str, Any], dataset: Dataset, settings: Mapping[str, Any]
) -> Trial:
    """What stands for the training that we have not seen: method, backbone and data are those of the file."""
    backbone = found.backbone.model_copy(update={"head": head.kind})
    values = told | _under(METHOD, settings)
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
    """Tensors that the file lacks, all of them helpers that the method makes of the base weights and the data."""
    as_base: dict[str, bool]
    """Of the file's frozen tensors: whether they equal those of the base weights."""


def _on_base(trial: Trial, found: Fit, base: str | None) -> _Filled:
    """The model on the weights that its training began with, where they are here or named.

    Else on none, for the file has the whole encoder; but what a method keeps beside it (Point-PEFT's query encoder)
    is not in the file, and then there must be a base.
    """
    fitting = [weights for weights in all_weights().values() if weights.backbone == found.kind]
    here = [w.name for w in fitting if w.misfit(trial.backbone) is None and w.missing() is None]
    if base is not None and base not in here:
        raise UserError(
            f"--base {base}: no such weights for this {found.kind} are here ({', '.join(here) or 'none are'})"
        )
    for name in here if base is None else [base]:
        backbone = trial.backbone.model_copy(update={"weights": name})
        filled = _filled(replace(trial, backbone=backbone), found)
        if base is not None or (filled.as_base and all(filled.as_base.values())):
            return filled
    filled = _filled(trial, found)
    if filled.lacking:
        raise UserError(
            f"{trial.method_name} keeps a frozen copy of the encoder that it began with, which the file lacks, and no "
            f"weights here are that encoder: import them first, or name them with --base"
        )
    return filled


def _filled(trial: Trial, found: Fit) -> _Filled:
    """An untrained model, and the file's tensors for it. Raises Refused when it lacks what it must have."""
    attached, _ = untrained(trial, train_items=trial.dataset.train_items)
    own = tensors(attached.model)
    state = found.place(own, lambda name: _official(name, trial, found))
    lacking = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    if lacking and attached.before_training is None:
        raise Refused(f"lacks {len(lacking)} tensors of a {trial.method_name} model, first '{lacking[0]}'")
    parameters = dict(attached.model.named_parameters())
    frozen = sorted((parameters.keys() - attached.trainable.keys()) & state.keys())
    return _Filled(trial, attached, state, lacking, {key: torch.equal(own[key], state[key]) for key in frozen})


def _official(name: str, trial: Trial, found: Fit) -> str:
    return official_name(name, trial.method, found.encoder)


def _under(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(section): value for key, value in settings.items() if key.startswith(section)}


def _untold(trial: Trial, found: Fit) -> dict[str, Any]:
    """Settings that the model depends on and that no tensor tells."""
    told = {*found.requires, "preset", "weights", "head"} - found.assumed.keys()
    keys = {f"{BACKBONE}{key}": value for key, value in trial.backbone.model_dump().items() if key not in told}
    keys |= {f"{METHOD}{key}": getattr(trial.method, key) for key in trial.method.untold}
    return keys | {f"{DATA}{key}": getattr(trial.data, key) for key in ("points", "sampling")}
