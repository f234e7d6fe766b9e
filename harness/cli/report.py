"""report: the reports of a suite, from one results folder or several, once or while a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.options import Output, each, suite_name
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.store import Store

app = typer.Typer()


@app.command()
def report(
    suite: Annotated[
        str | None,
        typer.Argument(
            metavar="[SUITE]", help="Name or file of a suite that ran into the output folder; may be left out of one."
        ),
    ] = None,
    output: Output = Path("results"),
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            "--merge", metavar="DIR", help="A results folder, of a machine; several of them make one report in OUTPUT."
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="METHOD", help="Compare the others with this method, by default what trains most."
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="NAME,NAME", help="Write these only; `harness list` names the reporters."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Write there, not to OUTPUT/SUITE/report.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Write again when results change, until no run goes on any more.")
    ] = False,
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", min=0.1, help="Between two looks of --watch.")
    ] = 10.0,
) -> None:
    """Write the reports of a suite again, figures included, from the results on disk (docs/reports.md)."""
    from harness import registry
    from harness.merging import distinct, merged, only_suite
    from harness.reporting import Written, follow, write
    from harness.store import Store

    sources = distinct(merge) if merge else [output]
    name = suite_name(suite) if suite is not None else only_suite(sources)
    folder = to if to is not None else output / name / "report"
    if merge:
        _keep_apart(sources, folder)
    chosen = each(formats) or registry.names("reporters")
    stores = [Store(source) for source in sources]
    last: Written = ([], [])

    def write_now() -> None:
        nonlocal last
        results = merged(sources, name) if merge else stores[0].load(name)
        last = write(results, folder, formats=chosen, reference=reference)
        if watch:
            done = sum(entry.result is not None and entry.result.status == "done" for entry in results.entries)
            typer.echo(f"{done} of {len(results.entries)} trials done: {_page(last[0], folder)}")
        for problem in last[1]:
            typer.echo(f"error: {problem}", err=True)

    for number, source in enumerate(sources, start=1) if merge else ():
        typer.echo(f"folder {number}: {source}", err=True)
    if watch:
        follow(
            write_now,
            stamp=lambda: [store.stamp(name) for store in stores],
            active=lambda: _active(stores, name),
            every=every,
        )
    else:
        write_now()
        for path in last[0]:
            typer.echo(path)
    raise typer.Exit(1 if last[1] else 0)


def _page(paths: Sequence[Path], folder: Path) -> Path:
    """What to look at: the HTML page where there is one."""
    return next((path for path in paths if path.suffix == ".html"), folder)


def _keep_apart(sources: Sequence[Path], folder: Path) -> None:
    """Raises UserError where a report of several folders would lie in a results folder, or over a report of its own."""
    within = next((source for source in sources if folder.resolve().is_relative_to(source.resolve())), None)
    if within is not None:
        raise UserError(
            f"{folder}: lies in {within}, which is merged and stays as it is; choose another --output, or --to DIR"
        )
    if (folder.parent / "suite.json").exists():
        raise UserError(
            f"{folder.parent.parent}: holds results of this suite that --merge does not name; "
            f"add --merge {folder.parent.parent}, or choose another --output or --to DIR"
        )


def _active(stores: Sequence[Store], name: str) -> bool:
    """Whether a run of the suite goes on in any of the folders."""
    from harness.status import suite_status

    return any(suite_status(store, name).active for store in stores)
