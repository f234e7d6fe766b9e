"""Our parameter names in the words of the official code: for stored outputs and for checkpoints.

An encoder says what its parts are called there (`Encoder.official_names`), a method how the names of parts that it
wraps or adds become the encoder's (`Method.official_names`), and what is to be changed at the end.
"""

from __future__ import annotations

import re

from harness.method import Method
from harness.models.encoder import Encoder, Renames

HEAD: Renames = ((r"^head\.", "cls_head_finetune."),)


def official_name(name: str, method: Method, encoder: Encoder) -> str:
    """The official name of a parameter or buffer of a classifier."""
    name = re.sub(r"^encoder\.", "", name)
    return renamed(name, (*method.official_names, *encoder.official_names, *HEAD, *method.official_names_after))


def renamed(name: str, renames: Renames) -> str:
    """A name after all renames, in their order."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name
