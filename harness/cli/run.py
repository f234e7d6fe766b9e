"""run, validate, sync, init: a suite from file to leaderboard."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from harness.cli.options import (
    Address,
    Artifacts,
    AsJson,
    CopyTo,
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
    suite_name,
)
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.suite import Suite

app = typer.Typer()


@app.command()
def run(
    suite: SuiteName,
    only: Only = None,
    settings: Set = None,
    output: Output = Path("results"),
    data: DataFolder = None,
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
    artifacts: Artifacts = True,
    address: Address = None,
    copy_to: CopyTo = None,
    as_json: AsJson = False,
) -> None:
    """Run a suite: trials without a result, then the reports."""
    from harness.display import RunDisplay, duration
    from harness.remote import Copier, Remote
    from harness.reporting import write_reports
    from harness.run import (
        CHECK_ABOVE,
        check_gpus,
        join_cluster,
        remember_suite,
        run_suite,
        summarise,
        to_run,
        what_is_missing,
        with_shares,
    )
    from harness.store import Store
    from harness.suite import load_suite

    wanted = {word for word in retry.split(",") if word}
    unknown = wanted - {"failed", "oom", "diverged", "timeout", "lost", "interrupted"}
    if unknown:
        raise UserError(
            f"--retry {', '.join(sorted(unknown))}: no such status; use failed, oom, diverged, timeout, lost"
        )
    loaded = load_suite(suite, settings or ())
    trials = chosen_of(loaded, only)
    missing = what_is_missing(trials)
    if missing:
        raise UserError("this suite needs what is not here yet:\n" + "\n".join(f"- {message}" for message in missing))
    if address is None:
        check_gpus(trials)
    store = Store(output)
    remote = Remote(copy_to, store) if copy_to is not None else None
    store.prepare()
    fetched = remote.fetch(trial.identity for trial in trials) if remote is not None else 0
    left = to_run(trials, store, retry=sorted(wanted))
    console = make_console(stderr=as_json)
    if fetched:
        console.print(f"fetched {fetched} finished from {copy_to}", highlight=False)
    chosen = {job.trial.identity for job in left}
    ended = summarise(loaded, [t for t in trials if t.identity not in chosen], store, interrupted=False)
    failed = f"{len(ended.failed)} failed before (--retry runs them again), " if ended.failed else ""
    console.print(
        f"[bold]{loaded.name}[/bold]: {in_words(len(trials))}, {ended.done} done before, {failed}{len(left)} to run"
    )
    cluster = join_cluster(address, [job.trial for job in left], store) if address is not None and left else None
    if cluster is not None:
        console.print(cluster.described(), highlight=False)
    if any(job.trial.resources.gpus == "shared" for job in left):
        with predicting(make_console(stderr=True)) as progress:
            left = with_shares(left, cluster=cluster, progress=progress)
    command = [suite, *(word for setting in settings or () for word in ("--set", setting)), "--output", str(output)]
    command += ["--address", address] if address is not None else []
    command += ["--copy-to", copy_to] if copy_to is not None else []
    remember = partial(remember_suite, loaded, store, chosen=trials, command=command)
    names = [trial.identity for trial in trials]
    copier = Copier(remote, suite=loaded.name, identities=names) if remote is not None else None
    if left:
        with RunDisplay([job.trial for job in left], store=store, console=console) as display:
            summary = run_suite(
                loaded,
                left,
                asked=trials,
                store=store,
                display=display,
                remember=remember,
                checking=check if check is not None else len(left) > CHECK_ABOVE,
                max_concurrent=max_concurrent,
                track=track,
                artifacts=artifacts,
                cluster=cluster,
            )
        took = duration(display.elapsed)
    else:
        remember()
        summary = summarise(loaded, trials, store, interrupted=False)
        summary.reports, summary.unwritten = write_reports(store, loaded.name)
        took = "no time"
    uncopied = copier.finish() if copier is not None else ""
    if as_json:
        print_json(
            {
                "suite": loaded.name,
                "digest": loaded.digest,
                "trials": len(trials),
                "done": summary.done,
                "failed": summary.failed,
                "interrupted": summary.interrupted,
                "problem": summary.problem,
                "reports": [str(path) for path in summary.reports],
                "unwritten": summary.unwritten,
                "mlflow": summary.tracking,
                "copy": uncopied or None,
            }
        )
    else:
        _print_summary(console, store, loaded, summary, total=len(trials), took=took)
        if uncopied:
            console.print(f"copy: {escape(uncopied)}", highlight=False)
    atexit.register(_leave, summary.exit_code)
    raise typer.Exit(summary.exit_code)


def _leave(code: int) -> None:
    """End the process without taking torch and Ray apart, which takes seconds; nothing is left to be done."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _print_summary(console: Console, store: Any, suite: Suite, summary: Any, *, total: int, took: str) -> None:
    from harness.display import failure_lines, leaderboard_table
    from harness.status import suite_status

    for line in failure_lines(suite_status(store, suite.name)):
        console.print(line, highlight=False)
    if summary.interrupted:
        console.print("interrupted; the same command goes on where it stopped")
    if summary.problem:
        console.print(f"[red]stopped[/red]   {escape(summary.problem)}", highlight=False)
        console.print("what is finished is safe; mend that, and the same command goes on where it stopped")
    if summary.done:
        console.print()
        console.print(leaderboard_table(store.load(suite.name)))
    left = total - summary.done - len(summary.failed)
    to_go = f", {left} to go" if left else ""
    console.print(f"\n{summary.done} done, {len(summary.failed)} failed{to_go}, in {took}")
    for path in summary.reports:
        if path.suffix == ".html":
            console.print(f"report: {path}", highlight=False)
    for problem in summary.unwritten:
        console.print(f"[red]no report[/red] {escape(problem)}", highlight=False)
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
    from harness.pretraining import is_pretraining, load_pretraining
    from harness.suite import load_suite

    problems, valid = [], []
    for name in suites:
        try:
            if is_pretraining(name):
                load_pretraining(name)
                valid.append({"suite": name, "trials": 0, "digest": None})
                if not as_json:
                    typer.echo(f"{name}: valid, a pre-training")
                continue
            loaded = load_suite(name, settings or ())
        except SuiteError as error:
            problems += [vars(problem) for problem in error.problems]
            if not as_json:
                typer.echo(str(error), err=True)
        else:
            valid.append({"suite": loaded.name, "trials": len(loaded.trials), "digest": loaded.digest})
            if not as_json:
                typer.echo(f"{name}: valid, {in_words(len(loaded.trials))}")
    if as_json:
        print_json({"valid": valid, "problems": problems})
    raise typer.Exit(2 if problems else 0)


@app.command()
def sync(
    suite: Annotated[str, typer.Argument(help="Name or file of a suite that ran into the output folder.")],
    output: Output = Path("results"),
    artifacts: Artifacts = True,
) -> None:
    """Replay a suite's results into MLflow (MLFLOW_TRACKING_URI, or the database in the output folder)."""
    from harness.store import Store
    from harness.tracking import sync as replay

    typer.echo(str(replay(store=Store(output), suite=suite_name(suite), files=artifacts)))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("suite.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented suite to start from."""
    from harness.atomic import write_atomically
    from harness.suite import shipped_suites

    if path.exists() and not force:
        raise UserError(f"{path}: is there already; --force overwrites it")
    name, text = _suite_name(path), shipped_suites()["quickstart"].read_text()
    for there, here in (
        ("harness run quickstart ", f"harness run {path} "),
        ("results/quickstart/", f"results/{name}/"),
        ("name: quickstart", f"name: {name}"),
    ):
        text = text.replace(there, here)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    word = shlex.quote(str(path))
    typer.echo(f"wrote {path}; `harness validate {word}`, then `harness run {word}`")


def _suite_name(path: Path) -> str:
    kept = "".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "_" for c in path.stem)[:64]
    return kept if kept not in ("", "quickstart") else "my_suite"
