"""data and pretrain: clouds and weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from harness.cli.options import AsJson, DataFolder, make_console, megabytes, print_json
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.data.checking import Report
    from harness.data.imported import Card

REASONS, FILES = 10, 3
"""Reasons of refusal that an import tells, and files of each."""

app = typer.Typer()
data_app = typer.Typer(no_args_is_help=True, help="List and check datasets, import your own, prepare data.")
app.add_typer(data_app, name="data")


@app.command()
def pretrain(
    suite: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="A file with `pretrain:`, or the name of a shipped one.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Clouds: .safetensors with `points` (n, N, 3), or .npy.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the weights.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the weights; unless told, where suites look: DATA/weights."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="Backbone to pre-train; point_mae unless told.")] = None,
    preset: Annotated[str | None, typer.Option(help="Its size; tiny unless told.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the file's; 100 without a file.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Likewise; 32.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Likewise; 0.001.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Likewise; 0.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Pre-train an encoder by masked autoencoding on any set of point clouds: by a file, or by options alone."""
    from harness.models.manifest import data_root
    from harness.pretrain import Recipe, pretrain_to_file
    from harness.pretraining import load_pretraining

    options = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if suite is not None:
        if backbone is not None or preset is not None:
            raise UserError("harness pretrain FILE: --backbone and --preset are for use without a file, which has both")
        file = load_pretraining(suite)
        recipe = Recipe(**file.pretrain.model_dump(exclude={"data", "backbone", "settings"}) | given)
        name, backbone, settings = name or file.name, file.pretrain.backbone, file.pretrain.settings
        data = data or data_root() / file.pretrain.data
    else:
        if data is None or name is None:
            raise UserError("harness pretrain: name a file with `pretrain:`, or give both --data and --name")
        recipe = Recipe(**given)
        backbone, settings = backbone or "point_mae", {"preset": preset or "tiny"}
    console = make_console()

    def tell(epoch: int, loss: float, seconds: float) -> None:
        left = seconds / (epoch + 1) * (recipe.epochs - epoch - 1)
        done = f"epoch {epoch + 1}/{recipe.epochs}  loss {1e3 * loss:.3f}e-3"
        console.print(f"{done}  {seconds:.0f} s, about {left:.0f} s left")

    path = pretrain_to_file(
        data=data,
        name=name,
        folder=output or data_root() / "weights",
        backbone=backbone,
        settings=settings,
        recipe=recipe,
        threads=threads,
        report=tell,
    )
    typer.echo(f"wrote {path} and its manifest beside it")


@data_app.command("list")
def data_list(data: DataFolder = None, as_json: AsJson = False) -> None:
    """All datasets: what for, sizes, licence, whether they are here, and where to get them."""
    from harness import registry
    from harness.describe import describe_dataset

    found, broken = [], []
    for name in registry.names("datasets"):
        try:
            found.append(describe_dataset(name))
        except UserError as error:  # a plug-in that cannot be loaded hides no other dataset
            broken.append(error)
    for problem in broken:
        typer.echo(f"error: {problem}", err=True)
    if as_json:
        print_json(found)
        raise typer.Exit(1 if broken else 0)
    console, table = make_console(), Table()
    for column in ("dataset", "for", "classes", "train", "test", "points", "here", "on disk", "licence"):
        table.add_column(
            column, justify="right" if column in ("classes", "train", "test", "points", "on disk") else "left"
        )
    for entry in found:
        here, size = ("yes", megabytes(entry["bytes"])) if entry["missing"] is None else ("no", "")
        sizes = [str(entry[key]) for key in ("train_items", "test_items", "points")]
        row = (str(len(entry["classes"]) or ""), *sizes, here, size, escape(entry["licence"]))
        table.add_row(entry["name"], entry["task"], *row)
    console.print(table)
    for entry in found:
        if entry["missing"] is not None:
            typer.echo(f"{entry['name']}: {entry['source']}")
    raise typer.Exit(1 if broken else 0)


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="A dataset, as `harness data list` names it.")],
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Read all of a dataset and say what is there, with digests, and what is wrong; exit code 2 when it is unusable."""
    from harness import registry
    from harness.data.checking import check_data
    from harness.models.weights import data_root

    report = check_data(registry.get("datasets", name), data_root())
    if as_json:
        print_json(report.as_json())
    else:
        _tell_check(report)
    raise typer.Exit(2 if report.problems else 0)


def _tell_check(report: Report) -> None:
    """A table of splits, one of classes, then what is wrong."""
    console = make_console()
    table = Table(title=f"{report.name}: {report.files} files, {megabytes(report.bytes)}", title_justify="left")
    for column in ("split", "items", "points", "items per class", "SHA-256 of the content"):
        table.add_column(column, justify="right" if column in ("items", "points") else "left")
    for split in report.splits:
        counts = split.labels.values()
        each = f"{min(counts)} to {max(counts)}" if counts else ""
        points = "differ" if split.points is None else str(split.points)
        table.add_row(split.split, str(split.items), points, each, split.digest or "")
    if report.splits:
        console.print(table)
    if 1 < len(report.splits) <= 3:
        for split in report.splits:
            typer.echo(f"{split.split}: " + ", ".join(f"{name} {count}" for name, count in split.labels.items()))
    for source in report.sources[:FILES]:
        typer.echo(f"{source['file']}: {megabytes(source['bytes'])}, SHA-256 {source['sha256']}")
    if len(report.sources) > FILES:
        typer.echo(f"{len(report.sources) - FILES} more source files: --json lists all")
    for note in report.notes:
        typer.echo(f"note: {note}")
    for problem in report.problems:
        typer.echo(f"error: {problem}", err=True)
    typer.echo(f"{report.name}: {'unusable' if report.problems else 'usable'}, in {report.root}")


@data_app.command("fewshot")
def data_fewshot(
    way: Annotated[int, typer.Option(min=2, max=40, help="Classes of a fold.")],
    shot: Annotated[int, typer.Option(min=1, help="Training clouds per class.")],
    seed: Annotated[int, typer.Option(min=0, help="Other seeds, other folds.")] = 0,
    data: DataFolder = None,
) -> None:
    """Draw ten few-shot folds from ModelNet40 by the official rule, where you do not have the official ones."""
    from harness.data.fewshot import draw_folds
    from harness.models.weights import data_root

    for path in draw_folds(data_root(), way=way, shot=shot, seed=seed):
        typer.echo(path)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[
        str,
        typer.Argument(
            help="ldraw16 (and its scan-like twin, into the data folder), sweethome12, shapenet55, or ldraw_pretrain "
            "(the shipped weights' pre-training set)."
        ),
    ],
    source: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the Debian package's data: an LDraw library (ldraw16: /usr/share/ldraw unless told) or "
            "furniture libraries; shapenet55 needs none."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write to, `data` unless told; ldraw16 takes none.")
    ] = None,
    furniture: Annotated[
        Path, typer.Option(help="For ldraw_pretrain: the furniture libraries whose other models join in.")
    ] = Path("/usr/share/sweethome3d/furniture"),
    points: Annotated[int, typer.Option(min=1, help="For shapenet55: points per cloud.")] = 2048,
    processes: Annotated[int | None, typer.Option(min=1, help="For ldraw16; one per core unless told.")] = None,
    data: DataFolder = None,
) -> None:
    """Make a dataset from an installed Debian package, or a file to pre-train on; the same bytes every time."""
    from harness.errors import did_you_mean

    known = ["ldraw16", "ldraw16_scanlike", "sweethome12", "ldraw_pretrain", "shapenet55"]
    if name not in known:
        raise UserError(f"nothing prepares '{name}'; {did_you_mean(name, known)}")
    folder = output or Path("data")
    if name in ("ldraw16", "ldraw16_scanlike"):
        if output is not None:
            raise UserError(f"--output: {name} goes into the data folder, where suites look: --data DIR")
        written = _prepare_ldraw16(source or Path("/usr/share/ldraw"), processes)
    elif name == "shapenet55":
        from harness.data.shapenet55 import SHAPENET55
        from harness.models.weights import data_root

        written = SHAPENET55.prepare(root=data_root(), output=folder, points=points)
    elif source is None:
        raise UserError(f"--source: needed for {name}: the folder of the Debian package's data")
    elif name == "sweethome12":
        from harness.data.prepare.sweethome import prepare_sweethome12

        written = prepare_sweethome12(source=source, output=folder)
    else:
        from harness.data.prepare.ldraw import prepare_pretraining

        written = prepare_pretraining(ldraw=source, furniture=furniture, output=folder)
    for path in written:
        typer.echo(path)


def _prepare_ldraw16(source: Path, processes: int | None) -> list[Path]:
    """Both sets, with a progress bar, and what came of it on stderr."""
    from rich.progress import Progress

    from harness.data.prepare.ldraw import SOURCE
    from harness.data.prepare.ldraw16 import prepare_ldraw16
    from harness.models.weights import data_root

    console = make_console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("looking for parts", total=None)
        done = prepare_ldraw16(
            source=source,
            root=data_root(),
            processes=processes,
            progress=lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total),
        )
    typer.echo(f"{done.train_items} items to train on, {done.test_items} to test on", err=True)
    for reason, count in done.left_out.items():
        typer.echo(f"left out: {reason}: {count}", err=True)
    found, version = done.differences, f"ldraw-parts {SOURCE['ldraw-parts']}"
    if found:
        typer.echo(
            f"note: not the items recorded with {version}: {found.absent} are not here, {found.new} are new, "
            f"{found.changed} differ; the split holds, but results compare only with others on these files",
            err=True,
        )
    else:
        typer.echo(f"all items are those recorded with {version}", err=True)
    return done.written


@data_app.command("import")
def data_import(
    folder: Annotated[Path, typer.Argument(help="FOLDER/CLASS/FILE, or FOLDER/train/CLASS/FILE and FOLDER/test/….")],
    name: Annotated[str, typer.Option(help="What suites will call it.")],
    points: Annotated[int, typer.Option(min=2, help="Points per cloud.")] = 1024,
    test_fraction: Annotated[float, typer.Option(help="Share of every class to test on.")] = 0.25,
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    up: Annotated[Literal["z", "y"], typer.Option(help="The vertical axis.")] = "z",
    normalise: Annotated[
        bool, typer.Option("--normalise/--no-normalise", help="Centre each cloud and scale it to radius 1.")
    ] = True,
    licence: Annotated[str, typer.Option(help="Terms of the data, kept with it.")] = "not stated",
    force: Annotated[bool, typer.Option("--force", help="Replace an imported dataset of that name.")] = False,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Make a dataset of your own shapes: .ply .off .obj .xyz .npy .h5, a folder per class."""
    from rich.progress import Progress

    from harness.data.importing import import_folder
    from harness.models.weights import data_root

    console = make_console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        card = import_folder(
            folder,
            name=name,
            root=data_root(),
            points=points,
            test_fraction=test_fraction,
            seed=seed,
            up=up,
            normalise=normalise,
            licence=licence,
            force=force,
            progress=lambda done, files: bar.update(task, completed=done, total=files),
        )
    if as_json:
        print_json(card.model_dump(mode="json"))
    else:
        _tell_import(card)


def _tell_import(card: Card) -> None:
    """What an import came to: classes, refused files by reason, what to do next."""
    from harness.data.importing import first_suite

    console = make_console()
    table = Table(title=f"{card.name}: {card.points} points, {card.up} up", title_justify="left")
    table.add_column("class")
    for column in ("read", "refused", "train", "test"):
        table.add_column(column, justify="right")
    for kind in card.classes:
        own = card.counts[kind]
        table.add_row(escape(kind), *(str(count) for count in (own.read, own.refused, own.train, own.test)))
    refused = len(card.refused)
    table.add_section()
    table.add_row("", "", str(refused), str(card.train_items), str(card.test_items))
    console.print(table)
    notes = (
        (card.ignored, "files of other kinds, ignored"),
        (card.duplicates, "copies of another shape of their class"),
        (card.shared, "test clouds that lie in train as well, so that accuracy will look better than it is"),
    )
    for count, words in notes:
        if count:
            typer.echo(f"{words}: {count}")
    reasons: dict[str, list[str]] = {}
    for entry in card.refused:
        reasons.setdefault(entry.reason, []).append(entry.file)
    for reason, files in list(reasons.items())[:REASONS]:
        more = f" and {len(files) - FILES} more" if len(files) > FILES else ""
        typer.echo(f"refused: {reason}: {', '.join(files[:FILES])}{more}")
    if len(reasons) > REASONS:
        typer.echo(f"refused for {len(reasons) - REASONS} more reasons; --json and the card list every file")
    typer.echo(f"\nNext: save this as a file and `harness run` it (docs/suite.md)\n\n{first_suite(card)}")
