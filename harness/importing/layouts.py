"""How checkpoints of the papers' authors name their tensors: which are the encoder's, and why the others are left.

As their own loaders do, `module.` (torch's data-parallel wrapper) is cut out of every name, then one prefix is cut off.
What is left are the names of the official fine-tuning code, which `Encoder.official_names` knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from harness.importing.child import Refused

Branch = Literal["q", "k"]
HEAD = "cls_head_finetune."
DOCUMENTED = "docs/weights.md lists the layouts"


@dataclass(frozen=True)
class Layout:
    """One way to name an encoder's tensors."""

    title: str
    backbone: str
    """The encoder that files with these names hold, unless the user says otherwise."""
    mark: str
    """How the name of at least one tensor begins."""
    prefix: str = ""
    """Cut off; names without it are not the encoder's."""
    own: bool = False
    """The harness's own names, not the authors'."""
    guess: str = ""
    """What the names do not tell, where that is so."""
    alike: tuple[str, ...] = ()
    """Other encoders that files with these names may hold; weights that are here can tell which."""
    unread: str = ""
    """Why fine-tuned models with these names cannot be read."""


LAYOUTS = (
    Layout("Point-BERT, pre-training", "point_bert", "transformer_q.", "transformer_q."),
    Layout("Point-BERT, pre-training, momentum branch", "point_bert", "transformer_k.", "transformer_k."),
    Layout("ACT, pre-training", "act", "ACT_encoder.", "ACT_encoder."),
    Layout("ReCon, pre-training", "recon", "MAE_encoder.img_token", "MAE_encoder."),
    Layout("Point-MAE, pre-training", "point_mae", "MAE_encoder.", "MAE_encoder."),
    Layout("Point-M2AE, pre-training", "point_m2ae", "h_encoder.encoder_norms."),
    Layout("Point-M2AE, fine-tuning", "point_m2ae", "h_encoder."),
    Layout("Point-M2AE in Point-PEFT's code", "point_m2ae", "encoders.0."),
    Layout(
        "an encoder under base_model.", "recon", "base_model.encoder.", "base_model.", alike=("point_mae", "act"),
        guess="the names do not tell whose pre-training this is; taken for ReCon's",
    ),
    Layout(
        "ReCon, fine-tuning", "recon", "img_token",
        unread="in ReCon's own fine-tuning the class token goes through layers of its own with an image and a text "
        "token, and the head sees all three; no encoder here does that",
    ),
    Layout("Point-BERT, fine-tuning", "point_bert", "reduce_dim."),
    Layout(
        "Point-MAE, fine-tuning", "point_mae", "encoder.first_conv.", alike=("act", "recon"),
        guess="Point-MAE's, ACT's and other encoders share these names; taken for Point-MAE's",
    ),
    Layout("names of this harness (Point-BERT's tokenizer)", "point_bert", "tokenizer.network.", own=True),
    Layout(
        "names of this harness", "point_mae", "tokenizer.point1.", own=True,
        guess="Point-MAE's, ACT's and other encoders share these names; taken for Point-MAE's",
    ),
)  # fmt: skip

REASONS = (
    (r"(^|\.)(\w*decoder\w*|mask_token|increase_dim|rec_head|token_prop|proj_head)(\.|$)", "decoder of pre-training"),
    (r"^dvae", "the pre-training task's tokeniser"),
    (r"^queue", "the pre-training task's negatives"),
    (r"(^|\.)(lm_head|cls_head)\.", "head of pre-training"),
    (r"^transformer_[qk]\.", "the other branch of Point-BERT's two, which --branch takes"),
    (r"(^|\.)(img|text)_(token|pos|proj|encoder)|_contrast\.|^cls_proj\.", "ReCon's contrast with images and texts"),
    (r"\.encoder_norms\.", "norms on the way to the decoder; fine-tuning has one norm, a new one"),
)
ELSEWHERE = "no part of the encoder"


@dataclass(frozen=True)
class Names:
    """A file's names, sorted out."""

    layout: Layout
    encoder: dict[str, str]
    """Name in the fine-tuning code (or ours, where the layout is) -> the file's name."""
    outside: dict[str, str]
    """Name without `module.` -> the file's name, of what lacks the layout's prefix."""

    @property
    def fine_tuned(self) -> bool:
        """Whether there is a classification head: then all tensors are one model."""
        return any(name.startswith(HEAD) for name in self.encoder)


def recognise(names: Iterable[str], *, branch: Branch | None = None) -> Names:
    """Which layout a file's names are of. Raises Refused when it is none, or has no such branch.

    Point-BERT's own loader takes the branch q, which is the default; DAPT's takes k, the momentum copy.
    """
    stripped: dict[str, str] = {}
    for name in names:
        if stripped.setdefault(short := name.replace("module.", ""), name) != name:
            raise Refused(f"'{name}' and '{stripped[short]}' are one name without 'module.'")
    if branch is not None and not any(name.startswith(f"transformer_{branch}.") for name in stripped):
        raise Refused(f"--branch {branch}: there is no transformer_{branch}. in it")
    for layout in LAYOUTS:
        if branch == "k" and layout.mark == "transformer_q.":
            continue
        if any(name.startswith(layout.mark) for name in stripped):
            inside = {n.removeprefix(layout.prefix): f for n, f in stripped.items() if n.startswith(layout.prefix)}
            outside = {n: f for n, f in stripped.items() if not n.startswith(layout.prefix)}
            return Names(layout, inside, outside)
    shown = ", ".join(sorted(stripped)[:4])
    raise Refused(f"not recognised: {len(stripped)} tensors, among them {shown}; {DOCUMENTED}")


def why_left(name: str) -> str | None:
    """Why a tensor is not of use here, by its name without `module.`; None where that is not known."""
    return next((why for pattern, why in REASONS if re.search(pattern, name)), None)
