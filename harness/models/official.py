"""Our parameter names in the words of the official code: for stored outputs and, later, their checkpoints.

The encoder's names are Point-MAE's (`models/Point_MAE.py`); a method that wraps parts adds its own renames in its
file (`Method.official_names`), applied before these.
"""

from __future__ import annotations

import re

from harness.method import Method

POINT_MAE = (
    (r"^head\.", "cls_head_finetune."),
    (r"^class_token$", "cls_token"),
    (r"^class_position$", "cls_pos"),
    (r"^tokenizer\.point1\.", "encoder.first_conv.0."),
    (r"^tokenizer\.norm1\.", "encoder.first_conv.1."),
    (r"^tokenizer\.point2\.", "encoder.first_conv.3."),
    (r"^tokenizer\.point3\.", "encoder.second_conv.0."),
    (r"^tokenizer\.norm2\.", "encoder.second_conv.1."),
    (r"^tokenizer\.point4\.", "encoder.second_conv.3."),
    (r"^position\.fc1\.", "pos_embed.0."),
    (r"^position\.fc2\.", "pos_embed.2."),
    (r"^blocks\.(?=\d)", "blocks.blocks."),
)


def official_name(name: str, method: Method) -> str:
    """The official name of a parameter or buffer of a classifier."""
    name = re.sub(r"^encoder\.", "", name)
    for pattern, replacement in (*method.official_names, *POINT_MAE):
        name = re.sub(pattern, replacement, name)
    return name
