"""weights: checkpoints of others become weights with a name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.options import AsJson, make_console, print_json

if TYPE_CHECKING:
    from harness.models.manifest import Manifest, Source

SHOWN = 3
"""Names of tensors that a line tells."""

app = typer.Typer()
weights_app = typer.Typer(no_args_is_help=True, help="Import checkpoints; list, show and remove weights.")
app.add_typer(weights_app, name="weights")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Weights.")]


@weights_app.command("import")
def weights_import(
    file: Annotated[Path, typer.Argument(help=".pth, .pt or .safetensors, in any layout of docs/weights.md.")],
    name: Annotated[str | None, typer.Option("--as", metavar="NAME", help="What suites will call it.")] = None,
    backbone: Annotated[str | None, typer.Option(help="The encoder it is, where its names do not tell.")] = None,
    branch: Annotated[
        Literal["q", "k"] | None, typer.Option(help="Of Point-BERT's two: q as its authors do, k as DAPT does.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What no tensor tells, e.g. backbone.heads=6."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is imported under that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make weights of a checkpoint that its authors published; the file is read safely and kept as it is."""
    from harness.importing.files import import_file

    found = import_file(file, name=name, backbone=backbone, branch=branch, settings=settings or (), force=force)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        _tell(found, named=name is not None)


def _tell(manifest: Manifest, *, named: bool) -> None:
    """What an import came to."""
    from harness.importing.files import suite_entry
    from harness.models.manifest import weights_path
    from harness.models.weights import WEIGHTS

    source = manifest.source
    heading = f"{manifest.name}: {source.layout}"
    if manifest.name in WEIGHTS and not named:
        heading += " (by layout, sizes and file name the authors' file; if it is another, --as gives it another name)"
    typer.echo(heading)
    told = [f"{key} {_value(value)}" for key, value in manifest.requires.items() if key not in source.assumed]
    assumed = [f"{key} {_value(value)}" for key, value in source.assumed.items()]
    lines = [
        ("file", f"{source.file}, {source.bytes / 1e6:.1f} MB, SHA-256 {source.digest}"),
        ("encoder", f"{manifest.backbone}: {', '.join(told)}"),
        *(("assumed", f"{words}: no tensor tells; --set backbone.{words.split()[0]}=…") for words in assumed),
        *_tensor_lines(source),
    ]
    _echo(lines)
    typer.echo(f"wrote {weights_path(manifest.name)} and its manifest\n\nNext, in a suite:\n")
    typer.echo(f"    backbones:\n      {suite_entry(manifest)}")


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
        *(("missing", f"{', '.join(names)}: {why}") for why, names in missing.items()),
        *([("it says", said)] if said else []),
    ]


def _echo(lines: list[tuple[str, str]]) -> None:
    for key, words in lines:
        typer.echo(f"  {key:<8} {words}")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


@weights_app.command("list")
def weights_list(as_json: AsJson = False) -> None:
    """All weights: shipped, known by where their authors publish them, and imported."""
    from harness.describe import describe_weights
    from harness.models.weights import all_weights

    found = [describe_weights(name) for name in all_weights()]
    if as_json:
        print_json([{key: entry[key] for key in entry if key not in ("recipe", "manifest")} for entry in found])
        return
    table = Table()
    for column in ("weights", "backbone", "here", "source"):
        table.add_column(column)
    for entry in found:
        here = "yes" if entry["missing"] is None else "no"
        table.add_row(entry["name"], entry["backbone"], here, escape(entry["source"]))
    make_console().print(table)
    for entry in found:
        if entry["missing"] is not None:
            typer.echo(entry["missing"])


@weights_app.command("show")
def weights_show(name: Name) -> None:
    """What weights are, where they lie, and the manifest or recipe they came with."""
    from harness.describe import describe_weights

    print_json(describe_weights(name))


@weights_app.command("remove")
def weights_remove(name: Name) -> None:
    """Delete what was imported under a name."""
    from harness.importing.files import remove

    for path in remove(name):
        typer.echo(f"removed {path}")
