"""`harness …`: arguments in, text and exit codes out; no logic of its own.

Exit codes: 0 all done, 1 some trials failed, some files were refused, some fixtures do not agree or the doctor found
problems, 2 bad input, 130 interrupted. Heavy libraries are imported by the commands that need them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from harness import __version__, registry
from harness.cli import data, doctor, plan, report, run, show, use, verify, watch, weights
from harness.errors import UserError

app = typer.Typer(
    name="harness",
    help="Fair comparison of parameter-efficient fine-tuning methods for pre-trained point-cloud models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (run, plan, watch, report, use, show, verify, doctor, data, weights):
    app.add_typer(part.app)


def _add_commands() -> None:
    """Commands of plug-ins, those of the reports among them; one that is broken is named and takes no other down."""
    with _warning():
        for name in registry.names("commands"):
            with _warning():
                app.add_typer(registry.get("commands", name))


@contextmanager
def _warning() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        typer.echo(f"warning: {error}", err=True)


_add_commands()


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pointpeft-harness {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if sys.platform == "win32":
        raise UserError("Windows is not supported: use Linux, macOS, or the Windows Subsystem for Linux")


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except UserError as error:
        for line in str(error).splitlines():
            typer.echo(line if line.startswith("- ") else f"error: {line}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(0)
