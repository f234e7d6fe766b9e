"""Settings as published configurations spell them, in our words; what no model of ours depends on is set aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def in_our_words(given: Mapping[str, Any], spellings: Mapping[str, str | None]) -> tuple[dict[str, Any], list[str]]:
    """Settings under our names, and the keys that were set aside.

    `spellings` are the published names: ours, or None for what does not matter here. Names in neither are left as they
    are, for whoever reads the settings to refuse. Raises ValueError where two spellings of one setting differ.
    """
    found: dict[str, Any] = {}
    said: dict[str, str] = {}
    aside = []
    for key, value in given.items():
        ours = spellings.get(key, key)
        if ours is None:
            aside.append(key)
        elif found.setdefault(ours, value) != value:
            raise ValueError(f"'{said[ours]}' and '{key}' are the same setting, and differ: {found[ours]}, {value}")
        else:
            said.setdefault(ours, key)
    return found, aside
