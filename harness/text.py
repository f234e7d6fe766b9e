"""Values and names from anywhere as text for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def cut(text: str, longest: int) -> str:
    """The text, or as much of it as fits into so many characters with a sign that there was more."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def printable(text: str) -> str:
    """Text on one line without signs that move a terminal's cursor or turn the reading direction."""
    return "".join(c if c.isprintable() else " " for c in text)


def as_text(value: Any) -> str:
    """Text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def flatten(value: Any, prefix: str = "", *, show: Callable[[Any], str] = as_text) -> dict[str, str]:
    """Nested tables as `train.epochs: 300`."""
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for key, part in value.items():
            found |= flatten(part, f"{prefix}.{key}" if prefix else str(key), show=show)
        return found
    return {prefix: show(value)} if prefix else {}
