"""`harness …`: arguments in, text and exit codes out; no logic of its own.

Exit codes: 0 all done, 1 some trials failed, 2 bad input, 130 interrupted. Heavy libraries are imported by the
commands that need them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness import __version__
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.suite import Suite
    from harness.trial import Trial

app = typer.Typer(
    name="harness",
    help="Fair comparison of parameter-efficient fine-tuning methods for pre-trained point-cloud models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
show_app = typer.Typer(no_args_is_help=True, help="Show a method's parameters, a dataset, a suite or weights.")
data_app = typer.Typer(no_args_is_help=True, help="List datasets, prepare data from installed packages.")
app.add_typer(show_app, name="show")
app.add_typer(data_app, name="data")

SuiteName = Annotated[
    str, typer.Argument(metavar="SUITE", help="Path of a suite file, or the name of a shipped suite.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. train.epochs=5."),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="KEY=A,B", help="Select by method, dataset, backbone or seed."),
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder of results and reports.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def _out(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160  # a pipe has no width: don't cut columns to 80
    return console


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


def _chosen(suite: Suite, only: list[str] | None) -> tuple[Trial, ...]:
    return suite.only(only) if only else suite.trials


@app.command()
def run(
    suite: SuiteName,
    only: Only = None,
    settings: Set = None,
    output: Output = Path("results"),
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at a time; all slots by default.")] = None,
    check: Annotated[
        bool | None,
        typer.Option("--check/--no-check", help="One dry step of every combination first; default above 20 trials."),
    ] = None,
    retry: Annotated[
        str,
        typer.Option(metavar="STATUS,…", help="Run trials again that ended so: failed, oom, diverged, timeout."),
    ] = "",
    track: Annotated[bool, typer.Option("--mlflow/--no-mlflow", help="Mirror the run into MLflow.")] = True,
    as_json: AsJson = False,
) -> None:
    """Run a suite: trials without a result, then the reports."""
    from harness.display import RunDisplay, duration
    from harness.run import (
        CHECK_ABOVE,
        remember_suite,
        run_suite,
        summarise,
        to_run,
        what_is_missing,
        write_reports,
    )
    from harness.run import check as dry_steps
    from harness.store import Store
    from harness.suite import load_suite

    wanted = {word for word in retry.split(",") if word}
    unknown = wanted - {"failed", "oom", "diverged", "timeout", "lost", "interrupted"}
    if unknown:
        raise UserError(
            f"--retry {', '.join(sorted(unknown))}: no such status; use failed, oom, diverged, timeout, lost"
        )
    loaded = load_suite(suite, settings or ())
    trials = _chosen(loaded, only)
    missing = what_is_missing(trials)
    if missing:
        raise UserError("this suite needs what is not here yet:\n" + "\n".join(f"- {message}" for message in missing))
    store = Store(output)
    store.prepare()
    left = to_run(trials, store, retry=sorted(wanted))
    console = _console(stderr=as_json)
    console.print(
        f"[bold]{loaded.name}[/bold]: {len(trials)} trials, {len(trials) - len(left)} done before, {len(left)} to run"
    )
    seconds: dict[str, float] = {}
    if left and (check if check is not None else len(left) > CHECK_ABOVE):
        with console.status("checking one step of every combination"):
            seconds = dry_steps(left)
        console.print("checked: one step of every combination works")
    remember_suite(loaded, store)
    if left:
        with RunDisplay(left, store=store, console=console) as display:
            summary = run_suite(
                loaded,
                left,
                store=store,
                display=display,
                seconds_per_step=seconds,
                max_concurrent=max_concurrent,
                track=track,
            )
        took = duration(display.elapsed)
        everything = summarise(loaded, trials, store, interrupted=summary.interrupted)
        summary.done, summary.failed = everything.done, everything.failed
    else:
        summary = summarise(loaded, trials, store, interrupted=False)
        summary.reports = write_reports(store, loaded.name)
        took = "no time"
    if as_json:
        _out(
            {
                "suite": loaded.name,
                "digest": loaded.digest,
                "trials": len(trials),
                "done": summary.done,
                "failed": summary.failed,
                "interrupted": summary.interrupted,
                "reports": [str(path) for path in summary.reports],
                "mlflow": summary.tracking,
            }
        )
    else:
        _print_summary(console, store, loaded, summary, took)
    raise typer.Exit(summary.exit_code)


def _print_summary(console: Console, store: Any, suite: Suite, summary: Any, took: str) -> None:
    from harness.display import leaderboard_table

    for name, error in summary.failed.items():
        console.print(f"[red]failed[/red]    {escape(name)}: {escape(error)}", highlight=False)
    if summary.interrupted:
        console.print("interrupted; the same command goes on where it stopped")
    if summary.done:
        console.print()
        console.print(leaderboard_table(store.load(suite.name)))
    console.print(f"\n{summary.done} done, {len(summary.failed)} failed, in {took}")
    for path in summary.reports:
        if path.suffix == ".html":
            console.print(f"report: {path}", highlight=False)
    if summary.tracking:
        console.print(f"MLflow: {escape(summary.tracking)}", highlight=False)


@app.command()
def validate(
    suites: Annotated[list[str], typer.Argument(metavar="SUITE…", help="Suite files or names of shipped suites.")],
    settings: Set = None,
    as_json: AsJson = False,
) -> None:
    """Check suites: all problems at once, with file, line and field. Reads no data and no weights."""
    from harness.errors import SuiteError
    from harness.suite import load_suite

    problems, valid = [], []
    for name in suites:
        try:
            loaded = load_suite(name, settings or ())
        except SuiteError as error:
            problems += [vars(problem) for problem in error.problems]
            if not as_json:
                typer.echo(str(error), err=True)
        else:
            valid.append({"suite": loaded.name, "trials": len(loaded.trials), "digest": loaded.digest})
            if not as_json:
                typer.echo(f"{name}: valid, {len(loaded.trials)} trials")
    if as_json:
        _out({"valid": valid, "problems": problems})
    raise typer.Exit(2 if problems else 0)


@app.command()
def plan(
    suite: SuiteName,
    only: Only = None,
    settings: Set = None,
    output: Output = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Show the trials of a suite, which are done already, and what is missing to run them."""
    from harness.run import what_is_missing
    from harness.store import Store
    from harness.suite import load_suite

    loaded = load_suite(suite, settings or ())
    trials, store = _chosen(loaded, only), Store(output)
    results = {trial.identity: store.trial(trial.identity).result() for trial in trials}
    rows = [
        {
            "id": trial.identity,
            "method": trial.method_label,
            "backbone": trial.backbone_label,
            "dataset": trial.dataset.name,
            "seed": trial.seed,
            "reference": trial.reference,
            "status": result.status if (result := results[trial.identity]) else "to run",
        }
        for trial in trials
    ]
    missing = what_is_missing(trials)
    if as_json:
        _out({"suite": loaded.name, "digest": loaded.digest, "trials": rows, "missing": missing})
        return
    table = Table(title=f"{loaded.name}: {len(trials)} trials", title_justify="left")
    for column in (
        "method",
        "backbone",
        "dataset",
        "seeds",
        "done",
        "epochs",
        "batch",
        "learning rate",
        "points",
    ):
        table.add_column(column)
    groups: dict[tuple[str, str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.method_label, trial.backbone_label, trial.dataset.name), []).append(trial)
    for labels, members in groups.items():
        done = sum(1 for t in members if (r := results[t.identity]) is not None and r.status == "done")
        first = members[0]
        training = [str(first.train.epochs), str(first.train.batch_size), f"{first.train.learning_rate:g}"]
        if first.baseline is not None:
            training = ["–"] * 3
        table.add_row(*labels, str(len(members)), f"{done}/{len(members)}", *training, str(first.data.points))
    console = _console()
    console.print(table)
    for message in missing:
        console.print(f"missing: {escape(message)}", highlight=False)


@app.command()
def report(
    suite: Annotated[str, typer.Argument(help="Name of a suite that ran into the output folder.")],
    output: Output = Path("results"),
) -> None:
    """Write the reports of a suite again, from the results on disk."""
    from harness.run import write_reports
    from harness.store import Store

    for path in write_reports(Store(output), suite):
        typer.echo(path)


@app.command()
def sync(
    suite: Annotated[str, typer.Argument(help="Name of a suite that ran into the output folder.")],
    output: Output = Path("results"),
) -> None:
    """Replay a suite's results into MLflow (MLFLOW_TRACKING_URI, or the database in the output folder)."""
    from harness.store import Store
    from harness.tracking import sync as replay

    typer.echo(str(replay(store=Store(output), suite=suite)))


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
    from harness.models.weights import WEIGHTS
    from harness.suite import shipped_suites

    found: dict[str, list[str]] = {
        "methods": registry.names("methods"),
        "backbones": registry.names("backbones"),
        "datasets": registry.names("datasets"),
        "reporters": registry.names("reporters"),
        "suites": sorted(shipped_suites()),
        "weights": ["random", *WEIGHTS],
    }
    if kind is not None:
        if kind not in found:
            raise UserError(f"nothing to list called '{kind}'; {did_you_mean(kind, found)}")
        found = {kind: found[kind]}
    if as_json:
        _out(found)
        return
    for title, entries in found.items():
        typer.echo(f"{title}: {', '.join(entries)}" if kind is None else "\n".join(entries))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("suite.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented suite to start from."""
    from harness.store import write_atomically
    from harness.suite import shipped_suites

    if path.exists() and not force:
        raise UserError(f"{path}: is there already; --force overwrites it")
    text = shipped_suites()["quickstart"].read_text().replace("name: quickstart", f"name: {_suite_name(path)}")
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    typer.echo(f"wrote {path}; `harness validate {path}`, then `harness run {path}`")


def _suite_name(path: Path) -> str:
    kept = "".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "_" for c in path.stem)[:64]
    return kept if kept not in ("", "quickstart") else "my_suite"


@app.command()
def pretrain(
    data: Annotated[Path, typer.Option(help="Clouds: .safetensors with `points` (n, N, 3), or .npy.")],
    name: Annotated[str, typer.Option(help="Name of the weights.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for NAME.safetensors and NAME.json.")] = Path(
        "weights"
    ),
    backbone: Annotated[str, typer.Option(help="Backbone to pre-train.")] = "point_mae",
    preset: Annotated[str, typer.Option(help="Its size.")] = "tiny",
    epochs: Annotated[int, typer.Option(min=1)] = 100,
    batch_size: Annotated[int, typer.Option(min=2)] = 32,
    learning_rate: Annotated[float, typer.Option(min=0.0)] = 1e-3,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Pre-train an encoder by masked autoencoding on any set of point clouds."""
    from harness.pretrain import Recipe, pretrain_to_file

    recipe = Recipe(epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    console = _console()

    def tell(epoch: int, loss: float, seconds: float) -> None:
        left = seconds / (epoch + 1) * (epochs - epoch - 1)
        console.print(f"epoch {epoch + 1}/{epochs}  loss {1e3 * loss:.3f}e-3  {seconds:.0f} s, about {left:.0f} s left")

    path = pretrain_to_file(
        data=data,
        name=name,
        folder=output,
        backbone=backbone,
        preset=preset,
        recipe=recipe,
        threads=threads,
        report=tell,
    )
    typer.echo(f"wrote {path} and its recipe beside it")


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
        _out(found["parameters"])
        return
    table = Table(title=f"{name} on {backbone} {preset}, {classes} classes", title_justify="left", show_header=False)
    for key, value in found["parameters"].items():
        table.add_row(key, f"{value:,}")
    table.add_row("trainable / total", f"{100 * found['parameters']['trainable'] / found['parameters']['total']:.2f} %")
    console = _console()
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
        _out(found)
        return
    for key, value in found.items():
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

    _out(describe_weights(name))


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """All datasets: sizes, licence, and whether they are here."""
    from harness import registry
    from harness.describe import describe_dataset

    found = [describe_dataset(name) for name in registry.names("datasets")]
    if as_json:
        _out(found)
        return
    table = Table()
    for column in ("dataset", "classes", "train", "test", "points", "here", "licence"):
        table.add_column(column)
    for entry in found:
        here = "yes" if entry["missing"] is None else "no"
        sizes = [str(entry[key]) for key in ("train_items", "test_items", "points")]
        table.add_row(entry["name"], str(len(entry["classes"])), *sizes, here, entry["licence"])
    _console().print(table)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[
        str, typer.Argument(help="sweethome12, or ldraw_pretrain (the shipped weights' pre-training set).")
    ],
    source: Annotated[Path, typer.Option(help="Folder of the Debian package's data (furniture libraries or LDraw).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("data"),
    furniture: Annotated[
        Path, typer.Option(help="For ldraw_pretrain: the furniture libraries whose other models join in.")
    ] = Path("/usr/share/sweethome3d/furniture"),
) -> None:
    """Make a dataset from an installed Debian package; the same bytes every time."""
    from harness.errors import did_you_mean

    if name == "sweethome12":
        from harness.data.prepare.sweethome import prepare_sweethome12

        written = prepare_sweethome12(source=source, output=output)
    elif name == "ldraw_pretrain":
        from harness.data.prepare.ldraw import prepare_pretraining

        written = prepare_pretraining(ldraw=source, furniture=furniture, output=output)
    else:
        raise UserError(f"nothing prepares '{name}'; {did_you_mean(name, ['sweethome12', 'ldraw_pretrain'])}")
    for path in written:
        typer.echo(path)


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
