"""doctor: what a machine or a cluster lacks, before a run finds out."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.markup import escape

from harness.cli.options import Address, AsJson, DataFolder, Output, make_console, print_json

app = typer.Typer()
SIGNS = {"ok": "[green]ok[/green]     ", "note": "[yellow]note[/yellow]   ", "problem": "[red]problem[/red]"}


@app.command()
def doctor(
    address: Address = None,
    output: Output = Path("results"),
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, and with --address every node of a cluster: what is there, what to mend. 1 for problems."""
    from harness.doctor import examine

    console = make_console()
    findings = []
    for finding in examine(output=output, address=address):
        findings.append(finding)
        if not as_json:
            where = f"{finding.host}: " if finding.host else ""
            text = escape(f"{where}{finding.subject}: {finding.text}")
            console.print(f"{SIGNS[finding.state]} {text}", highlight=False)
            if finding.mend:
                console.print(f"        mend: {escape(finding.mend)}", highlight=False)
    problems = sum(finding.state == "problem" for finding in findings)
    if as_json:
        print_json({"problems": problems, "findings": [vars(finding) for finding in findings]})
    elif problems:
        console.print(f"\n{problems} problem{'s' if problems > 1 else ''}")
    else:
        console.print("\nfit to run")
    raise typer.Exit(1 if problems else 0)
