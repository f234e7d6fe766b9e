"""A pre-training checkpoint becomes weights with a name: HARNESS_DATA/weights/NAME.safetensors and its manifest.

Strict inside the encoder: every tensor of ours is there, in its shape, and none that we do not know. Every tensor that
is left has its reason.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from safetensors.torch import save
from torch import Tensor

from harness import __version__
from harness.atomic import write_atomically
from harness.errors import UserError
from harness.importing.child import Refused
from harness.importing.fitting import Fit, fit
from harness.importing.known import MODELS
from harness.importing.layouts import ELSEWHERE, Names, why_left
from harness.importing.reading import Contents
from harness.models.manifest import NAME, Manifest, Source, manifest_path, model_folder, weights_path
from harness.models.weights import WEIGHTS

FORMAT = "pointpeft-harness encoder 1"
"""All that the file says of itself: safetensors writes several entries in any order, and digests would differ."""


def import_encoder(
    contents: Contents,
    names: Names,
    *,
    name: str | None,
    backbone: str | None,
    settings: Mapping[str, Any],
    force: bool,
) -> Manifest:
    """Write a checkpoint's encoder as weights; returns the manifest.

    Without `name` it is that of the known weights whose file this seems to be, else the file's own. Raises Refused for
    a file whose tensors are not those of the encoder, UserError for a name or a setting that cannot be; then nothing
    has been written.
    """
    found = fit(contents.tensors, names, backbone=backbone, settings=settings)
    state, missing = _state(found)
    used = {own: found.files[found.official(own)] for own in state}
    left = _left(names, contents, used=set(used.values()), kind=found.kind)
    name = name or _default_name(contents, names, found)
    check_name(name, force=force, folder=False)
    _check_known(name, contents, found)
    content = save(state, metadata={"format": FORMAT})
    manifest = Manifest(
        name=name,
        backbone=found.kind,
        requires=found.requires,
        digest=hashlib.sha256(content).hexdigest(),
        source=source(contents, names, used=used, left=left, missing=missing, assumed=found.assumed),
        harness=__version__,
        imported=now(),
    )
    _write(manifest, content)
    return manifest


def check_name(name: str, *, force: bool, folder: bool | None = None) -> None:
    """Raises UserError for a name that cannot be, or is taken; `folder`: whether a model is to have it."""
    if not NAME.fullmatch(name) or name == "random":
        raise UserError(
            f"--as {name}: may hold letters, digits, '.', '_' and '-' only, 1 to 64 of them, "
            "and neither begin with '.' nor be 'random'"
        )
    if name in WEIGHTS and WEIGHTS[name].shipped:
        raise UserError(f"--as {name}: weights of the harness are called so; choose another name")
    taken = {False: manifest_path(name).exists(), True: model_folder(name).exists()}
    if folder is not None and (taken[not folder] or name in (WEIGHTS if folder else MODELS)):
        raise UserError(f"--as {name}: {'weights are' if folder else 'a model is'} called so; choose another name")
    if any(taken.values()) and not force:
        raise UserError(f"'{name}' is imported already; --force replaces it, --as gives another name")


def source(
    contents: Contents,
    names: Names,
    *,
    used: dict[str, str],
    left: dict[str, tuple[str, ...]],
    missing: dict[str, str],
    assumed: dict[str, Any],
) -> Source:
    """Where an import came from, for its manifest."""
    return Source(
        file=contents.path.name,
        digest=contents.digest,
        bytes=contents.size,
        layout=names.layout.title,
        container=contents.container,
        used=used,
        left=left,
        missing=missing,
        said=contents.said,
        assumed=assumed,
    )


def now() -> str:
    """The time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _state(found: Fit) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Our encoder's tensors out of a checkpoint, and what of ours it need not have, with the reason."""
    own = found.encoder.state_dict()
    state = found.place(own, found.official)
    optional = found.encoder.new_at_fine_tuning
    absent = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    if wanted := [found.official(name) for name in absent if name not in optional]:
        raise Refused(f"lacks {len(wanted)} tensors of a {found.kind} encoder, first '{wanted[0]}'; is it cut off?")
    return state, {name: optional[name] for name in absent}


def _left(names: Names, contents: Contents, *, used: set[str], kind: str) -> dict[str, tuple[str, ...]]:
    """Why tensors are left, and which. Raises Refused for one inside the encoder that no encoder of ours has."""
    found: dict[str, list[str]] = {}
    inside = {names.layout.prefix + name: file for name, file in names.encoder.items()}
    unknown = [file for name, file in inside.items() if file not in used and why_left(name) is None]
    if unknown:
        raise Refused(
            f"holds {len(unknown)} tensors that a {kind} encoder lacks, first '{unknown[0]}': it is of another "
            "architecture, or has more in it than an encoder"
        )
    for name, file in (inside | names.outside).items():
        if file not in used:
            found.setdefault(why_left(name) or ELSEWHERE, []).append(file)
    if contents.odd:
        found["no tensor"] = list(contents.odd)
    return {why: tuple(sorted(files)) for why, files in sorted(found.items())}


def _default_name(contents: Contents, names: Names, found: Fit) -> str:
    """The known weights whose file this seems to be, by digest or by layout, sizes and file name; else the file's."""
    for known in WEIGHTS.values():
        official = known.official
        if official is None or (known.backbone, known.requires) != (found.kind, found.requires):
            continue
        if official.sha256 == contents.digest:
            return known.name
        if official.sha256 is None and official.file == contents.path.name and not names.layout.guess:
            return known.name
    return file_stem(contents)


def file_stem(contents: Contents) -> str:
    """A file's own name, as far as it can be one here. Raises UserError when nothing is left of it."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", contents.path.stem)[:64].strip("._")
    if not name:
        raise UserError(f"{contents.path}: what shall it be called? --as NAME")
    return name


def _check_known(name: str, contents: Contents, found: Fit) -> None:
    """Raises UserError when weights are given a known name that is not theirs."""
    known = WEIGHTS.get(name)
    if known is None:
        return
    if (known.backbone, known.requires) != (found.kind, found.requires):
        raise UserError(
            f"--as {name}: those are {_described(known.backbone, known.requires)}; {contents.path} is "
            f"{_described(found.kind, found.requires)}; choose another name"
        )
    if known.official is not None and known.official.sha256 not in (None, contents.digest):
        raise UserError(
            f"--as {name}: the authors' file has SHA-256 {str(known.official.sha256)[:12]}…, {contents.path} has "
            f"{contents.digest[:12]}…; choose another name"
        )


def _described(kind: str, requires: Mapping[str, Any]) -> str:
    return f"{kind} ({', '.join(f'{key} {value}' for key, value in requires.items())})"


def _write(manifest: Manifest, content: bytes) -> None:
    """The tensors first, the manifest last: without one nothing is imported."""
    tensors, path = weights_path(manifest.name), manifest_path(manifest.name)
    new = not path.exists()
    try:
        write_atomically(tensors, content)
        write_atomically(path, manifest.model_dump_json(indent=1) + "\n")
    except BaseException as error:
        if new:
            tensors.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{path.parent}: cannot be written ({error.strerror})") from None
        raise
