"""The kinds of plug-in, found by entry points: methods, backbones, datasets, reporters, and commands of `harness`.

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

from pydantic import ValidationError

from harness.errors import UserError, did_you_mean

Kind = Literal["methods", "backbones", "datasets", "reporters", "commands"]


def _origin(entry: EntryPoint) -> str:
    return f"{entry.value} of package {entry.dist.name}" if entry.dist is not None else entry.value


@cache
def _entries(kind: Kind) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"harness.{kind}"):
        if entry.name in found and found[entry.name].value != entry.value:
            raise UserError(
                f"two plug-ins call themselves '{entry.name}' in harness.{kind}: "
                f"{_origin(found[entry.name])} and {_origin(entry)}; uninstall one of them"
            )
        found[entry.name] = entry
    return found


@cache
def _load(kind: Kind, name: str) -> Any:
    entry = _entries(kind)[name]
    try:
        plugin = entry.load()
    except Exception as error:  # whatever a third party's module does when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"plug-in '{name}' ({_origin(entry)}) cannot be loaded: {reason}") from error
    if (wanted := _misfit(kind, plugin)) is not None:
        raise UserError(
            f"plug-in '{name}' ({_origin(entry)}) must be {wanted}, and is {plugin!r:.80}; mend its entry point"
        )
    return plugin


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
    """The plug-in, or the imported dataset, called `name`.

    Raises UserError when there is none, it cannot be loaded, or is of another kind.
    """
    if name in _entries(kind):
        return _load(kind, name)
    imported = _imported(kind)
    if name not in imported:
        raise UserError(explain_unknown(kind, name))
    return imported[name]


def configured(kind: Kind, name: str, settings: Mapping[str, Any]) -> Any:
    """A method's or backbone's settings, read from plain values.

    Raises UserError that names every wrong one, or as `get` does.
    """
    model = get(kind, name)
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            field = ".".join(map(str, item["loc"]))
            if item["type"] == "extra_forbidden":
                lines.append(f"{name}: unknown setting '{field}'; {did_you_mean(field, model.model_fields)}")
            else:
                lines.append(f"{name}: {field}: {item['msg']}, got {item.get('input')!r:.80}")
        raise UserError("\n".join(lines)) from None


def _imported(kind: Kind) -> Mapping[str, Any]:
    """Read anew each time: the data folder may be another one, and imports come and go while Python runs."""
    if kind != "datasets":
        return {}
    from harness.data.imported import imported_datasets
    from harness.models.weights import data_root

    return imported_datasets(data_root())


def _misfit(kind: Kind, plugin: Any) -> str | None:
    """What a plug-in of this kind must be, if this one is not."""
    # Imported here, because the contracts import torch.
    match kind:
        case "methods":
            from harness.method import Method

            return None if isinstance(plugin, type) and issubclass(plugin, Method) else "a subclass of Method"
        case "backbones":
            from harness.models.backbone import Backbone

            return None if isinstance(plugin, type) and issubclass(plugin, Backbone) else "a subclass of Backbone"
        case "datasets":
            from harness.data.dataset import Declaration

            return None if isinstance(plugin, Declaration) else "an instance of a Dataset"
        case "reporters":
            return None if callable(plugin) else "a function write(results, path), or a Reporter"
        case "commands":
            from typer import Typer

            return None if isinstance(plugin, Typer) else "a Typer with commands"
