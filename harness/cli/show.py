"""list, show and schema: what is installed, what it counts, what a suite may hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.options import AsJson, SuiteName, make_console, print_json
from harness.errors import UserError

app = typer.Typer()
show_app = typer.Typer(no_args_is_help=True, help="Show a method's parameters, a dataset, a suite or weights.")
app.add_typer(show_app, name="show")


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="methods, backbones, datasets, suites or weights; all when omitted.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what is installed."""
    from harness import registry
    from harness.errors import did_you_mean
    from harness.models.weights import all_weights
    from harness.suite import shipped_suites

    found: dict[str, list[str]] = {
        "methods": registry.names("methods"),
        "backbones": registry.names("backbones"),
        "datasets": registry.names("datasets"),
        "reporters": registry.names("reporters"),
        "suites": sorted(shipped_suites()),
        "weights": ["random", *all_weights()],
    }
    if kind is not None:
        if kind not in found:
            raise UserError(f"nothing to list called '{kind}'; {did_you_mean(kind, found)}")
        found = {kind: found[kind]}
    if as_json:
        print_json(found)
        return
    for title, entries in found.items():
        typer.echo(f"{title}: {', '.join(entries)}" if kind is None else "\n".join(entries))


@app.command()
def schema(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="File to write instead of stdout.")
    ] = None,
) -> None:
    """Print the JSON Schema of suite files, for completion and errors in an editor."""
    from harness.atomic import write_atomically
    from harness.schema import suite_schema

    found = suite_schema()
    if output is None:
        print_json(found)
        return
    try:
        write_atomically(output, json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from None
    typer.echo(f"wrote {output}; a suite beside it begins with: # yaml-language-server: $schema={output.name}")


@show_app.command("method")
def show_method(
    name: Annotated[str, typer.Argument(help="Method.")],
    backbone: Annotated[str, typer.Option(help="Backbone.")] = "point_mae",
    preset: Annotated[str, typer.Option(help="Its size.")] = "base",
    classes: Annotated[int, typer.Option(min=2, help="Number of classes.")] = 15,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Parameters of a method on a backbone, by origin, and its settings."""
    from harness.describe import describe_method

    found = describe_method(name, backbone=backbone, preset=preset, classes=classes, settings=settings or ())
    if as_json:
        print_json(found["parameters"])
        return
    table = Table(title=f"{name} on {backbone} {preset}, {classes} classes", title_justify="left", show_header=False)
    for key, value in found["parameters"].items():
        table.add_row(key, f"{value:,}")
    table.add_row("trainable / total", f"{100 * found['parameters']['trainable'] / found['parameters']['total']:.2f} %")
    console = make_console()
    console.print(table)
    console.print(escape(found["about"]), highlight=False)
    for key, value in found["settings"].items():
        console.print(f"  {key}: {escape(json.dumps(value))}", highlight=False)


@show_app.command("dataset")
def show_dataset(name: Annotated[str, typer.Argument(help="Dataset.")], as_json: AsJson = False) -> None:
    """A dataset's declaration, and whether its files are here."""
    from harness.describe import describe_dataset

    found = describe_dataset(name)
    if as_json:
        print_json(found)
        return
    missing = found.pop("missing")
    for key, value in (found | {"here": "yes" if missing is None else f"no: {missing}"}).items():
        if value is not None:
            typer.echo(f"{key}: {', '.join(value) if isinstance(value, list) else value}")


@show_app.command("suite")
def show_suite(name: SuiteName) -> None:
    """The text of a suite."""
    from harness.suite import find_suite

    typer.echo(find_suite(name).read_text(), nl=False)


@show_app.command("weights")
def show_weights(name: Annotated[str, typer.Argument(help="Weights.")]) -> None:
    """What weights are, where they are, and how the shipped ones were made."""
    from harness.describe import describe_weights

    print_json(describe_weights(name))
