"""plan: the trials of a suite, what is done, and what the rest will cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.cli.options import (
    AsJson,
    DataFolder,
    Only,
    Output,
    Set,
    SuiteName,
    chosen_of,
    in_words,
    make_console,
    predicting,
    print_json,
)
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.hardware import Hardware
    from harness.planning import Cost, Total
    from harness.store import Store
    from harness.trial import Trial

app = typer.Typer()
COLUMNS = (
    *("method", "backbone", "dataset", "seeds", "done", "epochs", "batch", "rate", "points"),
    *("memory", "a step", "a trial", "at once", "time"),
)
UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


@app.command()
def plan(
    suite: SuiteName,
    only: Only = None,
    settings: Set = None,
    output: Output = Path("results"),
    data: DataFolder = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="Cost on such a GPU: H100, A100, RTX 3090, …")] = None,
    on: Annotated[Literal["this"] | None, typer.Option(help="Cost on this machine.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="How many; 1, or all of this machine.")] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Work out what is not in the cache yet: seconds for every combination.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the trials of a suite, which are done already, what is missing, and what they will cost."""
    from harness.planning import Planner, total
    from harness.prediction import Predictions
    from harness.run import what_is_missing
    from harness.store import Store
    from harness.suite import load_suite

    hardware, slots = _hardware(gpu, on, gpus)
    loaded = load_suite(suite, settings or ())
    trials, store = chosen_of(loaded, only), Store(output)
    statuses = _statuses(trials, store)
    predictions = Predictions(trials, gpu=hardware is None or hardware.gpu)
    console = make_console()
    if estimate:
        with predicting(make_console(stderr=True)) as progress:
            predictions.complete(progress)
    planner = Planner(predictions, hardware=hardware, store=store)
    costs = {trial.identity: planner.cost(trial) for trial in trials}
    rows = [t.row() | {"status": statuses[t.identity], "cost": asdict(costs[t.identity])} for t in trials]
    left = [trial for trial in trials if statuses[trial.identity] != "done"]
    sums = total(left, [costs[trial.identity] for trial in left], slots=slots)
    missing = what_is_missing(trials)
    if as_json:
        cost = {"hardware": hardware.name if hardware is not None else None, "slots": slots, "to_run": asdict(sums)}
        listed = {"trials": rows, "missing": missing, "cost": cost, "unpredicted": len(predictions.missing)}
        print_json({"suite": loaded.name, "digest": loaded.digest, **listed})
        return
    console.print(_table(f"{loaded.name}: {in_words(len(trials))}", trials, statuses, costs))
    if stale := sum(found == "stale" for found in statuses.values()):
        console.print(f"stale: {stale} made with other data or weights than those here; a run makes them anew")
    for message in missing:
        console.print(f"missing: {escape(message)}", highlight=False)
    _print_sums(console, sums, hardware, slots=slots, measured=any(cost.measured for cost in costs.values()))
    if too_large := [trial for trial in left if costs[trial.identity].at_once == 0]:
        how = "take a smaller train.batch_size"
        if not all(trial.resources.activation_checkpointing for trial in too_large):
            how += ", or set resources.activation_checkpointing to true"
        console.print(f"predicted too large for this GPU: {in_words(len(too_large))}; {how} (docs/plan.md)")
    for line in sorted({f"{trial.method_label} on {trial.backbone_label} cannot be predicted: {problem}"
                        for trial in trials if (problem := costs[trial.identity].problem)}):  # fmt: skip
        console.print(escape(line), highlight=False)
    if unpredicted := len(predictions.missing):
        console.print(f"not predicted yet: {unpredicted} combinations; --estimate works them out, once")


def _hardware(gpu: str | None, on: str | None, count: int | None) -> tuple[Hardware | None, int]:
    """What to plan for, and how many of it. Raises UserError."""
    from harness.hardware import find_gpu, this_machine

    if gpu is not None and on is not None:
        raise UserError("--gpu and --on exclude each other: give one of them")
    if on is not None:
        from harness.schedule import gpus_here

        return this_machine(), count or gpus_here() or os.cpu_count() or 1
    return (find_gpu(gpu) if gpu is not None else None), count or 1


def _statuses(trials: Sequence[Trial], store: Store) -> dict[str, str]:
    """By identity: `to run`, or what became of a trial; `stale` where data or weights are others by now."""
    from harness.run import DigestsAtHand, what_is_missing

    at_hand, found = DigestsAtHand(), {}
    for trial in trials:
        result = store.trial(trial.identity).result()
        status: str = "to run" if result is None else result.status
        if result is not None and status == "done" and not what_is_missing([trial]) and at_hand.differ(trial, result):
            status = "stale"
        found[trial.identity] = status
    return found


def _table(title: str, trials: Sequence[Trial], statuses: dict[str, str], costs: dict[str, Cost]) -> Table:
    """A row for each method, backbone and dataset; columns of which nothing is known are left out."""
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.method_label, trial.backbone_label, trial.dataset.name), []).append(trial)
    rows = []
    for (method, backbone, dataset), members in groups.items():
        first, cost = members[0], costs[members[0].identity]
        seeds, folds = ({trial.label(key) for trial in members} for key in ("seed", "fold"))
        done = sum(statuses[member.identity] == "done" for member in members)
        row = {
            "method": method,
            "backbone": backbone,
            "dataset": dataset,
            "seeds": f"{len(seeds)}" + (f" x {len(folds)} folds" if first.fold is not None else ""),
            "done": f"{done}/{len(members)}",
        }
        if first.baseline is None:
            row |= {
                "epochs": str(first.train.epochs),
                "batch": str(first.train.batch_size),
                "rate": f"{first.train.learning_rate:g}",
            }
        rows.append(row | {"points": str(first.data.points)} | _told(cost))
    table = Table(title=title, title_justify="left")
    columns = [key for key in COLUMNS if any(key in row for row in rows)]
    for column in columns:
        table.add_column(column, justify="left" if column in COLUMNS[:3] else "right", overflow="fold")
    for row in rows:
        table.add_row(*(row.get(column, "–") for column in columns))
    return table


def _told(cost: Cost) -> dict[str, str]:
    """What is known of a cost, in words."""
    from harness.display import duration

    told: dict[str, tuple[float | None, Callable[[Any], str]]] = {
        "memory": (cost.memory, size),
        "a step": (cost.flops_step, flop),
        "a trial": (cost.flops, flop),
        "at once": (cost.at_once, str),
        "time": (cost.seconds, duration),
    }
    return {key: words(value) for key, (value, words) in told.items() if value is not None}


def _print_sums(console: Console, sums: Total, hardware: Hardware | None, *, slots: int, measured: bool) -> None:
    from harness.display import duration

    if not sums.trials:
        return
    if not sums.flops:  # nothing is predicted: sums of nothing would look like a suite for free
        console.print(f"to run: {in_words(sums.trials)}", highlight=False)
        return
    unknown = f" ({in_words(sums.unknown)} not predicted and left out)" if sums.unknown else ""
    console.print(
        f"to run: {in_words(sums.trials)}, {flop(sums.flops)} in all, {sums.disk / 1e6:,.0f} MB on disk{unknown}",
        highlight=False,
    )
    if hardware is None or sums.wall_seconds is None or sums.processor_seconds is None:
        return
    unit = "GPU" if hardware.gpu else "core"
    ran = "times of equal trials that ran there, else " if measured else ""
    console.print(
        f"on {slots} x {escape(hardware.name)}: {sums.processor_seconds / 3600:,.1f} {unit} hours, "
        f"{duration(sums.wall_seconds)} from start to end; estimated: {ran}{hardware.assumption}",
        highlight=False,
    )


def flop(count: float) -> str:
    """A number of FLOPs in words."""
    scale, name = next((unit for unit in UNITS if count >= unit[0]), UNITS[-1])
    return f"{count / scale:.3g} {name}"


def size(count: float) -> str:
    """Bytes in words; 1 GB is 10⁹."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
