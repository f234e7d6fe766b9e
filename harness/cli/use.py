"""predict, evaluate, export: a trained model on files of your own, on a test split, and as a file of its own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.options import AsJson, Output, make_console, print_json
from harness.errors import UserError
from harness.headline import headline_of

if TYPE_CHECKING:
    from harness.trained import FilePrediction, TrainedModel

app = typer.Typer()

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Identity of a finished trial, its beginning, its folder, or an imported model's name.",
    ),
]


@dataclass(frozen=True)
class _Guess:
    """One cloud of a file, and its likeliest classes."""

    file: Path
    cloud: int
    """Index in the file."""
    several: bool
    """Whether the file holds more than this cloud."""
    classes: list[tuple[str, float]]
    """Name and probability, the likeliest first."""


@app.command()
def predict(
    model: ModelName,
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Clouds or meshes, as `data import` reads.")],
    output: Output = Path("results"),
    top: Annotated[int, typer.Option(min=1, help="Classes to show per cloud.")] = 3,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Lines of file, cloud, rank, class, probability.")] = False,
) -> None:
    """Classify .ply .off .obj .xyz .npy .h5 files with a trained model."""
    if as_json and as_csv:
        raise UserError("--json and --csv: choose one of them")
    from harness import load_model

    trained = load_model(model, output=output)
    found = trained.predict_files(files)
    refused = [entry for entry in found if entry.refused is not None]
    if len(refused) == len(found):
        raise UserError("\n".join(["no file could be read", *(f"- {e.path}: {e.refused}" for e in refused)]))
    if as_json:
        print_json(_as_json(trained, found, top))
    elif as_csv:
        typer.echo(_as_csv(_guesses(trained, found, top)), nl=False)
    else:
        _print_table(trained, list(_guesses(trained, found, top)))
    for entry in refused:
        typer.echo(f"refused: {entry.path}: {entry.refused}", err=True)
    raise typer.Exit(1 if refused else 0)


@app.command()
def export(
    trial: Annotated[str, typer.Argument(help="Identity of a finished trial, its beginning, or the trial's folder.")],
    file: Annotated[Path, typer.Argument(help="Where to write; a .json beside it says what to build.")],
    output: Output = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Write a finished trial's model as one plain .safetensors file, its method merged into the weights."""
    from harness import load_trial
    from harness.export import export as write

    done = write(load_trial(trial, output=output), file)
    if as_json:
        print_json({"weights": str(done.weights), "description": str(done.description), "difference": done.difference})
    else:
        typer.echo(f"{done.weights} and {done.description}: scores differ by {done.difference:.1e} of the largest")


@app.command()
def evaluate(
    model: ModelName,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="Dataset; its own when not named.")] = None,
    output: Output = Path("results"),
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; a GPU where there is one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Accuracy of a trained model on the test split of a dataset, measured as a trial's is."""
    import torch

    from harness import load_model

    trained = load_model(model, output=output, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = data or trained.trial.dataset.name
    found = trained.evaluate(name)
    told = trained.told if name == trained.trial.dataset.name else {}
    if as_json:
        numbers = found.metrics().model_dump(exclude_none=True)
        print_json({"model": trained.name, "data": name, **numbers, "told": told})
        return
    headline, metrics = headline_of(trained.trial.dataset.task), found.metrics()
    counted = f"  ({metrics.correct} of {metrics.total})" if headline.counted else ""
    typer.echo(f"{trained.title}: test split of {name}")
    for title, key in ((headline.title, headline.key), (headline.mean_title, headline.mean_key)):
        typer.echo(f"  {title:<15} {100 * getattr(metrics, key):6.2f} %{counted if key == headline.key else ''}")
    for who, score in told.items():
        typer.echo(f"  {who:<15} {100 * score:6.2f} %")


def _guesses(trained: TrainedModel, found: list[FilePrediction], top: int) -> Iterator[_Guess]:
    """The likeliest classes of every cloud."""
    for entry in found:
        rows = entry.probabilities if entry.probabilities is not None else ()
        for index, row in enumerate(rows):
            values, chosen = row.topk(min(top, len(trained.classes)))
            classes = [(trained.classes[k], value) for k, value in zip(chosen.tolist(), values.tolist(), strict=True)]
            yield _Guess(entry.path, index, len(rows) > 1, classes)


def _as_json(trained: TrainedModel, found: list[FilePrediction], top: int) -> dict[str, object]:
    files: list[dict[str, object]] = []
    for entry in found:
        clouds = [
            [{"class": name, "probability": value} for name, value in guess.classes]
            for guess in _guesses(trained, [entry], top)
        ]
        files.append({"file": str(entry.path), "clouds": clouds, "refused": entry.refused})
    return {"trial": trained.name, "classes": list(trained.classes), "files": files}


def _as_csv(guesses: Iterator[_Guess]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "cloud", "rank", "class", "probability"])
    for guess in guesses:
        for rank, (name, value) in enumerate(guess.classes, start=1):
            writer.writerow([guess.file, guess.cloud, rank, name, value])
    return text.getvalue()


def _print_table(trained: TrainedModel, guesses: list[_Guess]) -> None:
    trial = trained.trial
    title = f"{trained.title}: {len(trained.classes)} classes, {trial.dataset.up} up"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("file")
    table.add_column("class")
    table.add_column("probability", justify="right")
    if any(guess.classes[1:] for guess in guesses):
        table.add_column("then")
    for guess in guesses:
        name = f"{guess.file}[{guess.cloud}]" if guess.several else str(guess.file)
        (first, value), *others = guess.classes
        then = [escape(", ".join(f"{name} {value:.3f}" for name, value in others))] if others else []
        table.add_row(escape(name), escape(first), f"{value:.3f}", *then)
    make_console().print(table)
