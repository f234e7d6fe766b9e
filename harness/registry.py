"""The four kinds of plug-in, found by entry points: methods, backbones, datasets, reporters.

Our own come in by the same door as a third party's: a package that declares, say,

    [project.entry-points."harness.methods"]
    my_method = "my_package:MyMethod"

is usable in a suite as `my_method` once it is installed. Datasets that the user imported (harness.data.imported) are
found beside the installed ones; an installed one goes first.
"""

from __future__ import annotations

from collections.abc import Mapping
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


@cache
def _load(kind: Kind, name: str) -> Any:
    entry = _entries(kind)[name]
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"plug-in '{name}' ({entry.value}) cannot be loaded: {error}") from error


def installed(kind: Kind) -> list[str]:
    """Names of all installed plug-ins of a kind, sorted."""
    return sorted(_entries(kind))


def names(kind: Kind) -> list[str]:
    """Names of all that can be used: the installed plug-ins and, of datasets, the imported ones; sorted."""
    return sorted({*_entries(kind), *_imported(kind)})


def explain_unknown(kind: Kind, name: str) -> str:
    """What to say of a name that nobody registered."""
    if kind == "datasets":
        from harness.data.imported import card_problem
        from harness.models.weights import data_root

        if problem := card_problem(name, data_root()):
            return problem
    return f"unknown {kind.removesuffix('s')} '{name}'; {did_you_mean(name, names(kind))}"


def get(kind: Kind, name: str) -> Any:
    """The plug-in, or the imported dataset, called `name`. Raises UserError with a suggestion when there is none."""
    if name in _entries(kind):
        return _load(kind, name)
    imported = _imported(kind)
    if name not in imported:
        raise UserError(explain_unknown(kind, name))
    return imported[name]


def _imported(kind: Kind) -> Mapping[str, Any]:
    """Read anew each time: the data folder may be another one, and imports come and go while Python runs."""
    if kind != "datasets":
        return {}
    from harness.data.imported import imported_datasets
    from harness.models.weights import data_root

    return imported_datasets(data_root())
