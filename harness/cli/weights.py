"""weights: checkpoints of others become weights with a name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.options import AsJson, make_console, print_json

if TYPE_CHECKING:
    from harness.importing.cards import ImportedCard
    from harness.models.manifest import Manifest, Source

SHOWN = 3
"""Names of tensors that a line tells."""

app = typer.Typer()
weights_app = typer.Typer(no_args_is_help=True, help="Import or fetch checkpoints; list, show and remove weights.")
app.add_typer(weights_app, name="weights")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Weights.")]


@weights_app.command("import")
def weights_import(
    file: Annotated[Path, typer.Argument(help=".pth, .pt or .safetensors, in any layout of docs/weights.md.")],
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="What it will be called.")] = None,
    backbone: Annotated[str | None, typer.Option(help="The encoder it is, where its names do not tell.")] = None,
    branch: Annotated[
        Literal["q", "k"] | None, typer.Option(help="Of Point-BERT's two: q as its authors do, k as DAPT does.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Of a fine-tuned model: the dataset it was trained on.")] = None,
    base: Annotated[str | None, typer.Option(help="Of a fine-tuned model: the weights it began with.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What no tensor tells, e.g. backbone.heads=6."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is imported under that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make weights of a published checkpoint, or a model of a fine-tuned one; the file is read safely."""
    from harness.importing.files import import_file

    found = import_file(
        file, name=name, backbone=backbone, branch=branch, data=data, base=base, settings=settings or (), force=force
    )
    _tell(found, named=name is not None, as_json=as_json)


@weights_app.command("fetch")
def weights_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Weights or model whose authors publish a file.")],
    url: Annotated[str | None, typer.Option(help="Where from, where the authors give no direct link.")] = None,
    sha256: Annotated[str | None, typer.Option(help="The digest that you trust, where none is known.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is imported under that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download a published checkpoint over https, hold it to its digest, import it."""
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from harness.importing.fetching import fetch

    console = make_console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        found = fetch(
            name,
            url=url,
            sha256=sha256,
            force=force,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    _tell(found, named=True, as_json=as_json)


def _tell(found: Manifest | ImportedCard, *, named: bool, as_json: bool) -> None:
    """What an import came to; `named`: whether the user chose the name."""
    from harness.models.manifest import Manifest

    if as_json:
        print_json(found.model_dump(mode="json"))
    elif isinstance(found, Manifest):
        _tell_weights(found, named=named)
    else:
        _tell_model(found, named=named)


def _tell_weights(manifest: Manifest, *, named: bool) -> None:
    """What an import of weights came to."""
    from harness.importing.files import suite_entry
    from harness.models.manifest import weights_path
    from harness.models.weights import WEIGHTS

    source = manifest.source
    taken = "layout, sizes and file name" if manifest.name in WEIGHTS and not named else None
    told = [f"{key} {_value(value)}" for key, value in manifest.requires.items() if key not in source.assumed]
    assumed = {f"backbone.{key}": value for key, value in source.assumed.items()}
    _echo(manifest.name, source, taken, [("encoder", f"{manifest.backbone}: {', '.join(told)}"), *_assumed(assumed)])
    typer.echo(f"wrote {weights_path(manifest.name)} and its manifest\n\nNext, in a suite:\n")
    typer.echo(f"    backbones:\n      {suite_entry(manifest)}")


def _tell_model(card: ImportedCard, *, named: bool) -> None:
    """What an import of a fine-tuned model came to."""
    from harness.importing.known import MODELS
    from harness.models.manifest import model_folder

    spec, folder = card.adapter.spec, model_folder(card.name)
    method, backbone, data = (spec[key]["name"] for key in ("method", "backbone", "dataset"))
    taken = "method and file name" if card.name in MODELS and not named else None
    base = "none: every tensor of the encoder was trained"
    if card.base is not None:
        base = f"{card.base}: {card.as_base} of {card.frozen} frozen tensors are its own"
    elif card.frozen:
        base = f"no weights here have its {card.frozen} frozen tensors: the whole encoder is in the model's file"
    lines = [
        ("model", f"{method} on {backbone}, {len(card.adapter.classes)} classes of {data}"),
        ("base", base),
        *_assumed(card.source.assumed),
    ]
    _echo(card.name, card.source, taken, lines)
    typer.echo(f"wrote {folder}\n\nNext:\n\n    harness evaluate {card.name}")


def _echo(name: str, source: Source, taken: str | None, lines: list[tuple[str, str]]) -> None:
    """What was recognised, then what became of the file's tensors."""
    by = f" (by {taken} the authors' file; if it is another, --as gives it another name)" if taken else ""
    typer.echo(f"{name}: {source.layout}{by}")
    file = ("file", f"{source.file}, {source.bytes / 1e6:.1f} MB, SHA-256 {source.digest}")
    for key, words in [file, *lines, *_tensor_lines(source)]:
        typer.echo(f"  {key:<8} {words}")


def _assumed(settings: dict[str, Any]) -> list[tuple[str, str]]:
    words = ", ".join(f"{key}={_value(value)}" for key, value in settings.items())
    return [("assumed", f"{words}: no tensor tells; --set KEY=VALUE")] if settings else []


def _tensor_lines(source: Source) -> list[tuple[str, str]]:
    """What became of a file's tensors."""
    under = f" under '{source.container}'" if source.container else ""
    missing: dict[str, list[str]] = {}
    for name, why in source.missing.items():
        missing.setdefault(why, []).append(name)
    said = ", ".join(f"{key} {_value(value)}" for key, value in list(source.said.items())[: 2 * SHOWN])
    return [
        ("used", f"{len(source.used)} tensors{under}"),
        *(("left", f"{len(names)} {why} ({_some(names)})") for why, names in source.left.items()),
        *(("missing", f"{_some(names)}: {why}") for why, names in missing.items()),
        *([("it says", said)] if said else []),
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


@weights_app.command("list")
def weights_list(as_json: AsJson = False) -> None:
    """All weights: shipped, known by where their authors publish them, and imported; and imported models."""
    from harness.describe import describe_weights
    from harness.importing.cards import imported_models, read_imported
    from harness.models.manifest import model_folder
    from harness.models.weights import all_weights

    weights = [describe_weights(name) for name in all_weights()]
    models = [read_imported(model_folder(name)) for name in imported_models()]
    if as_json:
        brief = [{key: entry[key] for key in entry if key not in ("recipe", "manifest")} for entry in weights]
        print_json({"weights": brief, "models": [card.model_dump(mode="json", exclude={"source"}) for card in models]})
        return
    table = Table()
    for column in ("weights", "backbone", "here", "source"):
        table.add_column(column)
    for entry in weights:
        here = "yes" if entry["missing"] is None else "no"
        table.add_row(entry["name"], entry["backbone"], here, escape(entry["source"]))
    make_console().print(table)
    if models:
        table = Table()
        for column in ("model", "method", "backbone", "trained on", "base", "source"):
            table.add_column(column)
        for card in models:
            parts = [card.adapter.spec[key]["name"] for key in ("method", "backbone", "dataset")]
            table.add_row(card.name, *parts, card.base or "", escape(card.source.file))
        make_console().print(table)
    for entry in weights:
        if entry["missing"] is not None:
            typer.echo(entry["missing"])


@weights_app.command("show")
def weights_show(name: Name) -> None:
    """What weights or a model are, where they lie, and the manifest or recipe they came with."""
    from harness.describe import describe_weights
    from harness.importing.cards import imported_models, read_imported
    from harness.models.manifest import model_folder

    if name in imported_models():
        print_json(read_imported(model_folder(name)).model_dump(mode="json"))
    else:
        print_json(describe_weights(name))


@weights_app.command("remove")
def weights_remove(name: Name) -> None:
    """Delete what was imported under a name."""
    from harness.importing.files import remove

    for path in remove(name):
        typer.echo(f"removed {path}")
