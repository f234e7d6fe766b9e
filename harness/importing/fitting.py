"""A checkpoint's tensors under the official fine-tuning code's names, the encoder that they are of, and ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness import registry
from harness.errors import UserError
from harness.importing.child import Refused
from harness.importing.layouts import Names
from harness.method import Method
from harness.models.backbone import Backbone
from harness.models.encoder import Encoder
from harness.models.official import official_name, renamed

BACKBONE = "backbone."
"""How settings of the backbone begin, as in suites: `backbone.heads`."""


@dataclass(frozen=True)
class Fit:
    """The encoder of a checkpoint: its settings, and its tensors by their official names."""

    kind: str
    """Name of the backbone."""
    backbone: Backbone
    encoder: Encoder
    """Ours, without memory behind its tensors: their names and shapes."""
    requires: dict[str, Any]
    """Settings that the tensors need."""
    assumed: dict[str, Any]
    """Those among them that neither shapes nor the user told."""
    tensors: dict[str, Tensor]
    files: dict[str, str]
    """Official name -> the file's."""

    def official(self, name: str) -> str:
        """The official name of a tensor of our encoder."""
        return renamed(name, self.encoder.official_names)

    def official_of(self, name: str, method: Method) -> str:
        """The official name of a tensor of our classifier with a method."""
        return renamed(official_name(name, method, self.encoder), self.backbone.spellings)

    def place(self, wanted: Mapping[str, Tensor], official: Callable[[str], str]) -> dict[str, Tensor]:
        """The tensors for ours, by our names, shaped like ours; those that the file lacks are left out.

        Linear layers of ours are 1x1 convolutions there, with an axis or two more. Raises Refused for other shapes,
        NaN and infinity.
        """
        found: dict[str, Tensor] = {}
        for name, like in wanted.items():
            if (tensor := self.tensors.get(official(name))) is None:
                continue
            file = self.files[official(name)]
            if tuple(tensor.shape) not in (tuple(like.shape), (*like.shape, 1), (*like.shape, 1, 1)):
                raise Refused(f"'{file}' is {tuple(tensor.shape)}, and a {self.kind} has {tuple(like.shape)}")
            if not torch.isfinite(tensor).all():
                raise Refused(f"'{file}' holds NaN or infinite values; the file is damaged, or its training failed")
            found[name] = tensor.view(like.shape).to(like.dtype)
        return found


def fit(tensors: Mapping[str, Tensor], names: Names, *, backbone: str | None, settings: Mapping[str, Any]) -> Fit:
    """Read an encoder's settings off the shapes of its tensors.

    `backbone` overrules what the layout is taken for; `settings` (`backbone.heads`, …) are for what shapes do not
    tell. Raises Refused for a file that is no such encoder, UserError for settings that cannot be.
    """
    kind = backbone or names.layout.backbone
    model: type[Backbone] = registry.get("backbones", kind)
    files = names.encoder
    if names.layout.own:
        with torch.device("meta"):
            renames = model().build(drop_path=0.0).official_names
        files = {renamed(name, renames): file for name, file in files.items()}
    files = {renamed(name, model.spellings): file for name, file in files.items()}
    try:
        told = model.sizes({name: tuple(tensors[file].shape) for name, file in files.items()})
    except (KeyError, IndexError) as error:
        raise Refused(f"is no {kind} encoder: it lacks {error}, or that has no shape") from None
    given = {key.removeprefix(BACKBONE): value for key, value in settings.items() if key.startswith(BACKBONE)}
    for key in told.keys() & given.keys():
        raise UserError(f"--set {BACKBONE}{key}={given[key]}: the tensors say {told[key]}")
    declared: Backbone = registry.configured("backbones", kind, told | given)
    if problems := declared.problems(declared.default_points):
        hints = "".join(f"; if that is wrong: --set {BACKBONE}{key}=…" for key in model.untold if key not in given)
        raise UserError("\n".join(f"the file's {kind} encoder cannot be: {problem}{hints}" for problem in problems))
    with torch.device("meta"):
        encoder = declared.build(drop_path=0.0)
    return Fit(
        kind=kind,
        backbone=declared,
        encoder=encoder,
        requires={key: getattr(declared, key) for key in (*told, *model.untold)},
        assumed={key: getattr(declared, key) for key in model.untold if key not in given},
        tensors={name: tensors[file] for name, file in files.items()},
        files=dict(files),
    )
