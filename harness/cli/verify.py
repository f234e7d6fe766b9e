"""verify: our numbers against those recorded from the papers' code, on this machine."""

from __future__ import annotations

import math
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.options import AsJson, make_console, print_json
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.verify import Verified

app = typer.Typer()


class Device(StrEnum):
    """Where to compute."""

    cpu = "cpu"
    cuda = "cuda"


class DType(StrEnum):
    """Of our side of the comparison."""

    float32 = "float32"
    float64 = "float64"


@app.command()
def verify(
    fixtures: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FIXTURE.json…", help="Manifests of recorded outputs; those that ship when omitted."),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.cpu,
    dtype: Annotated[DType, typer.Option(help="Our precision; records are in float32.")] = DType.float32,
    as_json: AsJson = False,
) -> None:
    """Hold our models to outputs recorded from the papers' code; exit code 1 when something differs."""
    from harness.recorded import bundled
    from harness.verify import verify as verify_one

    results: dict[Path, Verified | UserError] = {}
    for file in fixtures or bundled():
        try:
            results[file] = verify_one(file, device=device.value, dtype=dtype.value)
        except UserError as error:
            results[file] = error
    refused = [str(found) for found in results.values() if isinstance(found, UserError)]
    if as_json:
        found_all = [_as_json(file, found) for file, found in results.items()]
        passed = all(map(_agrees, results.values()))
        print_json({"device": device.value, "dtype": dtype.value, "passed": passed, "fixtures": found_all})
    elif len(refused) < len(results):
        _print_table(results, title=f"{device.value}, {dtype.value}")
    if refused:
        raise UserError("\n".join(refused))
    raise typer.Exit(0 if all(map(_agrees, results.values())) else 1)


def _agrees(found: Verified | UserError) -> bool:
    return not isinstance(found, UserError) and found.passed


def _as_json(file: Path, found: Verified | UserError) -> dict[str, Any]:
    refused = isinstance(found, UserError)
    checks = [] if isinstance(found, UserError) else [_finite(asdict(c)) | {"passed": c.passed} for c in found.checks]
    return {
        "fixture": file.stem,
        "file": str(file),
        "passed": _agrees(found),
        "checks": checks,
        "set_aside": [] if isinstance(found, UserError) else list(found.aside),
        "refused": str(found) if refused else None,
    }


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: they become null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _print_table(results: dict[Path, Verified | UserError], *, title: str) -> None:
    table = Table(title=title, title_justify="left")
    for column in ("fixture", "check"):
        table.add_column(column, no_wrap=True)
    for column in ("error", "tolerance"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("where")
    for file, found in results.items():
        name = escape(file.stem)
        if isinstance(found, UserError):
            table.add_row(name, "", "", "", "refused", "", end_section=True)
            continue
        for index, check in enumerate(found.checks):
            passed = "pass" if check.passed else "[bold]FAIL[/bold]"
            numbers = (_number(check.error), _number(check.tolerance))
            table.add_row("" if index else name, check.name, *numbers, passed, escape(check.detail))
        table.add_section()
    console = make_console()
    console.print(table)
    for file, found in results.items():
        if not isinstance(found, UserError) and found.aside:
            console.print(escape(f"{file.stem}: not needed here, set aside: {', '.join(found.aside)}"))
    console.print(f"{sum(map(_agrees, results.values()))} of {len(results)} agree")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) or not value else f"{value:.1e}"
