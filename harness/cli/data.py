"""data and pretrain: clouds and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from harness.cli.options import AsJson, make_console, print_json
from harness.errors import UserError

app = typer.Typer()
data_app = typer.Typer(no_args_is_help=True, help="List datasets, prepare data from installed packages.")
app.add_typer(data_app, name="data")


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
    console = make_console()

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


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """All datasets: sizes, licence, and whether they are here."""
    from harness import registry
    from harness.describe import describe_dataset

    found = [describe_dataset(name) for name in registry.names("datasets")]
    if as_json:
        print_json(found)
        return
    table = Table()
    for column in ("dataset", "classes", "train", "test", "points", "here", "licence"):
        table.add_column(column)
    for entry in found:
        here = "yes" if entry["missing"] is None else "no"
        sizes = [str(entry[key]) for key in ("train_items", "test_items", "points")]
        table.add_row(entry["name"], str(len(entry["classes"])), *sizes, here, entry["licence"])
    make_console().print(table)


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
