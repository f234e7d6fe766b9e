"""list, show and schema: what is installed, what it counts, what a suite may hold; what became of a trial."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.options import AsJson, Output, SuiteName, make_console, print_json
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.one_trial import OneTrial

app = typer.Typer()
show_app = typer.Typer(no_args_is_help=True, help="Show a method's parameters, a dataset, a suite, weights or a trial.")
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


@show_app.command("trial")
def show_trial(
    trial: Annotated[
        str, typer.Argument(metavar="TRIAL", help="Identity of a trial, its first characters, or its folder.")
    ],
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with the clouds that it got wrong, to look at."),
    ] = None,
    items: Annotated[int, typer.Option(min=1, max=500, help="Wrong items to show.")] = 12,
    output: Output = Path("results"),
    as_json: AsJson = False,
) -> None:
    """A trial's configuration, numbers, curves and mistakes; with --html, the clouds that it got wrong."""
    from harness.one_trial import one_trial

    found = one_trial(trial, output, items=items)
    if page is not None:
        _write_page(found, page)
    if as_json:
        print_json(found.as_json())
        return
    from harness.trial_text import trial_lines

    for line in trial_lines(found):
        typer.echo(line)
    if page is not None:
        typer.echo(f"\npage: {page}")
    elif found.wrong:
        typer.echo(f"\nthe clouds: harness show trial {found.entry.id}{_where(output)} --html trial.html")


def _where(output: Path) -> str:
    """The option that leads there, where it is needed."""
    return "" if output == Path("results") else f" --output {shlex.quote(str(output))}"


def _write_page(trial: OneTrial, path: Path) -> None:
    from harness import registry
    from harness.reporter import as_reporter

    write = as_reporter("html", registry.get("reporters", "html")).one_trial
    if write is None:
        raise UserError("the installed reporter 'html' writes no page of one trial; install this version anew")
    try:
        write(trial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
