"""`harness compare` and `harness publish`: commands that the reports bring along (entry point `harness.commands`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table as Shown
from rich.text import Text

from harness.cli.options import AsJson, Output, each, make_console, print_json, suite_name

if TYPE_CHECKING:
    from rich.console import Console

    from reports.contrast import Contrast
    from reports.tables import Table

app = typer.Typer()


@app.command()
def compare(
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A results folder, FOLDER:SUITE, a suite of the output folder, or a method of its suite."
        ),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The same; differences are B − A.")],
    output: Output = Path("results"),
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="SUITE", help="A and B are methods of this suite.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare two runs or two methods: what changed, and is the difference real (docs/reports.md)."""
    from reports.contrast import contrast
    from reports.sides import sides
    from reports.tidy import jsonable

    found = contrast(*sides(first, second, output=output, suite=suite_name(suite) if suite is not None else None))
    if as_json:
        print_json(jsonable(found))
    else:
        _tell(make_console(), found)


@app.command()
def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The results folder whose suites are published.")
    ] = Path("results"),
    site: Annotated[
        Path, typer.Option("--output", "-o", metavar="SITE", help="Folder to make, or to make anew.")
    ] = Path("site"),
    suites: Annotated[
        list[str] | None,
        typer.Option("--suite", metavar="SUITE", help="Publish this one; again for more. All without."),
    ] = None,
    title: Annotated[str, typer.Option(help="Heading of the index.")] = "Results",
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="NAME,NAME", help="Write these beside the page; `harness list` names them."),
    ] = None,
) -> None:
    """Make a folder that any static host can serve: an index of the suites, their reports, files and badges.

    Without paths, users, hosts and logs of the machines that ran them (docs/reports.md).
    """
    from harness import registry
    from harness.errors import UserError
    from harness.store import Store
    from reports.site import publish as make

    store = Store(folder)
    chosen = list(dict.fromkeys(map(suite_name, suites or ()))) or list(store.suites())
    if not chosen:
        raise UserError(f"{folder}: no suite ran into this folder; name the --output of a `harness run`")
    wanted = each(formats)
    names = list(dict.fromkeys(["html", *wanted])) if wanted else registry.names("reporters")
    made = make(store, site, suites=chosen, title=title, formats=names)
    counted = f"{len(made.suites)} suite{'' if len(made.suites) == 1 else 's'}, {made.trials:,} trials"
    typer.echo(f"published {counted}, {made.files} files; look at {made.index} before you show it to others")


def _tell(console: Console, found: Contrast) -> None:
    from reports import contrast_tables as tables

    _lines(console, tables.opening(found))
    _lines(console, tables.apart(found), style="yellow")
    _table(console, tables.changed(found), otherwise="Nothing changed: settings, versions and hardware are the same.")
    _table(console, tables.numbers(found))
    _table(console, tables.overall(found))
    _lines(console, ["", *found.notes] if found.notes else [])
    _table(console, tables.costs(found))
    if equal := tables.equal_costs(found):
        _lines(console, ["", f"The same on both sides: {', '.join(equal)}."])


def _lines(console: Console, lines: Iterable[str], *, style: str = "") -> None:
    from reports.details import printable

    for line in lines:
        console.print(Text(printable(line), style=style))


def _table(console: Console, table: Table, *, otherwise: str = "") -> None:
    """A table under its title; one line where it is empty."""
    if not table.rows:
        _lines(console, ["", otherwise] if otherwise else [])
        return
    from reports.details import printable

    shown = Shown(box=None, padding=(0, 2, 0, 0))
    for number, title in enumerate(table.header):
        shown.add_column(title, justify="left" if number < table.numbers_from else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    console.print(Text(f"\n{table.title}", style="bold"))
    console.print(shown)
