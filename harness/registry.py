"""The four kinds of plug-in, found by entry points: methods, backbones, datasets, reporters.

Our own come in by the same door as a third party's: a package that declares, say,

    [project.entry-points."harness.methods"]
    my_method = "my_package:MyMethod"

is usable in a suite as `my_method` once it is installed.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from harness.errors import UserError, did_you_mean

Kind = Literal["methods", "backbones", "datasets", "reporters"]


@cache
def _entries(kind: Kind) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"harness.{kind}"):
        if entry.name in found and found[entry.name].value != entry.value:
            raise UserError(
                f"two plug-ins call themselves '{entry.name}' in harness.{kind}: "
                f"{found[entry.name].value} and {entry.value}; uninstall one of them"
            )
        found[entry.name] = entry
    return found


def names(kind: Kind) -> list[str]:
    """Names of all installed plug-ins of a kind, sorted."""
    return sorted(_entries(kind))


def explain_unknown(kind: Kind, name: str) -> str:
    """What to say of a name that nobody registered."""
    return f"unknown {kind.removesuffix('s')} '{name}'; {did_you_mean(name, _entries(kind))}"


@cache
def get(kind: Kind, name: str) -> Any:
    """The plug-in called `name`. Raises UserError with a suggestion when there is none."""
    if name not in _entries(kind):
        raise UserError(explain_unknown(kind, name))
    entry = _entries(kind)[name]
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"plug-in '{name}' ({entry.value}) cannot be loaded: {error}") from error
