"""What the commands share: names of arguments, output helpers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from harness.suite import Suite
    from harness.trial import Trial


def _use_data_folder(folder: Path | None) -> Path | None:
    """Everything below reads HARNESS_DATA, processes that are started included."""
    if folder is not None:
        os.environ["HARNESS_DATA"] = str(folder)
    return folder


SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="Path of a suite file, or the name of a shipped suite.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. train.epochs=5."),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="KEY=A,B", help="Select by method, dataset, backbone, seed or fold."),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of results and reports.")]
DataFolder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", callback=_use_data_folder, help="Data folder, instead of HARNESS_DATA."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="auto|HOST:PORT", help="A running Ray cluster, by its head node."),
]
CopyTo = Annotated[
    str | None,
    typer.Option("--copy-to", metavar="URL", help="Copy finished trials there (s3://…, file:///…); read first."),
]
Artifacts = Annotated[
    bool, typer.Option("--artifacts/--no-artifacts", help="Attach adapters, predictions, logs and reports in MLflow.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def print_json(value: Any) -> None:
    """A value as indented JSON on stdout."""
    typer.echo(json.dumps(value, indent=1))


def megabytes(size: int) -> str:
    """Bytes in words; 1 MB is a million."""
    return f"{size / 1e6:,.1f} MB"


def in_words(trials: int) -> str:
    """`1 trial`, `12 trials`."""
    return f"{trials} trial{'' if trials == 1 else 's'}"


def chosen_of(suite: Suite, only: list[str] | None) -> tuple[Trial, ...]:
    """The trials that --only selects; all without it."""
    return suite.only(only) if only else suite.trials


@contextmanager
def predicting(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar for predictions on a terminal; yields what is to be called with how many are ready, and of how many."""
    from rich.progress import Progress

    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("predicting costs", total=None)
        yield lambda ready, of: bar.update(task, completed=ready, total=of)


def make_console(*, stderr: bool = False) -> Console:
    """A console that does not cut lines where nobody looks at a terminal."""
    console = Console(file=sys.stderr if stderr else sys.stdout, soft_wrap=True)  # bound: a run redirects sys.stdout
    if not console.is_terminal:
        console.width = 160  # a pipe has no width: don't cut columns to 80
    return console


def suite_name(argument: str) -> str:
    """The name of a suite that is given by its name or its file."""
    if Path(argument).suffix not in (".yaml", ".yml"):
        return argument
    from harness.suite import find_suite
    from harness.yaml_source import read_yaml

    return str(read_yaml(find_suite(argument)).data.get("name", argument))


def each(options: Sequence[str] | None) -> list[str]:
    """The names in an option that takes `NAME,NAME` and may be given again."""
    return [name for names in options or () for name in names.split(",") if name]
