"""status, logs, clean: what a run does or did, from another terminal or afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from harness.cli.options import AsJson, Output, make_console, print_json, suite_name
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.trial_folder import TrialFolder

app = typer.Typer()
SuiteHere = Annotated[
    str | None, typer.Argument(metavar="[SUITE]", help="Name or file of a suite that ran into the output folder.")
]
EVERY = 2.0
"""Seconds between two looks of --watch."""


@app.command()
def status(
    suite: SuiteHere = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep looking until no run goes on any more.")] = False,
    output: Output = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Show how far suites are: done, running, failed and why, best so far, time left. All suites when none is named."""
    from rich.live import Live

    from harness.display import status_picture
    from harness.status import suite_status
    from harness.store import Store

    store = Store(output)
    names = [suite_name(suite)] if suite is not None else list(store.suites())
    if not names:
        raise UserError(f"{output}: no suite ran into this folder yet; `harness run SUITE --output {output}`")
    if as_json:
        found = [suite_status(store, name).as_json() for name in names]
        print_json(found if suite is None else found[0])
        return
    console = make_console()
    if not watch:
        for name in names:
            console.print(status_picture(suite_status(store, name)))
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found_now = [suite_status(store, name) for name in names]
            live.update(status_picture(*found_now), refresh=True)
            if not any(one.active for one in found_now):
                return
            time.sleep(EVERY)


@app.command()
def logs(
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="Identity of a trial, or its first characters.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep reading while the trial runs.")] = False,
    output: Output = Path("results"),
) -> None:
    """Show a trial's attempts, its error and its log."""
    from harness.store import Store

    store = Store(output)
    folder = store.find(trial)
    entry, lease, result = store.entry(folder.identity), folder.running(), folder.result()
    typer.echo(f"{folder.identity}  {entry.name if entry is not None else ''}".rstrip())
    attempts = result.attempts if result is not None else lease.earlier if lease is not None else []
    for attempt in attempts:
        resumed = f", gone on after epoch {attempt['resumed']}" if attempt.get("resumed") else ""
        times = f"{attempt.get('started')} to {attempt.get('ended')}"
        typer.echo(f"attempt {attempt.get('attempt')}: {attempt.get('status')}{resumed}, {times}")
    if lease is not None:
        typer.echo(f"attempt {lease.attempt}: runs as process {lease.pid} on {lease.host}, {lease.done} epochs done")
    if result is not None and result.error:
        typer.echo(f"\n{result.error.rstrip()}")
    typer.echo("")
    for text in _log(folder, follow=follow):
        typer.echo(text, nl=False)


def _log(folder: TrialFolder, *, follow: bool) -> Iterator[str]:
    """The log's text, and what is added to it while the trial runs."""
    try:
        file = (folder.path / "log.txt").open(errors="replace")
    except OSError:
        yield "(no log)\n"
        return
    with file:
        while True:
            running = folder.running() is not None
            if text := file.read():
                yield text
            if not (follow and running):
                return
            time.sleep(0.5)


@app.command()
def clean(
    output: Output = Path("results"),
    checkpoints: Annotated[bool, typer.Option("--checkpoints", help="Also checkpoints of ended trials.")] = False,
    adapters: Annotated[bool, typer.Option("--adapters", help="Also the adapters of finished trials.")] = False,
    unlisted: Annotated[bool, typer.Option("--unlisted", help="Also trials that no suite here lists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove what nothing needs any more: files of writers that died, and more on request.

    Results, predictions and reports of listed trials always stay, and so do checkpoints of trials that are not over.
    """
    from harness.cleaning import clean as remove
    from harness.store import Store

    if not (output / "trials").is_dir():
        raise UserError(f"{output}: is no output folder of `harness run`")
    console, total, count = make_console(), 0, 0
    for item in remove(Store(output), checkpoints=checkpoints, adapters=adapters, unlisted=unlisted, dry_run=dry_run):
        total, count = total + item.bytes, count + 1
        console.print(f"{escape(str(item.path))}  {item.bytes / 1e6:.1f} MB  {item.why}", highlight=False)
    console.print(f"{'would free' if dry_run else 'freed'} {total / 1e6:.1f} MB in {count} places")
