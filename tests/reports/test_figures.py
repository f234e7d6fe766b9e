"""Figures: what is there to draw is drawn, the same bytes each time, with nothing from outside in them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.store import Store, SuiteResults
from reports.build import leaderboard
from reports.classes import by_class, class_names
from reports.curves import Band, band, bands, read_curves
from reports.figures import drawn, scores, style, write
from tests.reports.synthetic import synthetic, write_folder

HOSTILE = "<script>alert(1)</script> $\\frac{1}{0}$ \x07"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SuiteResults:
    """Three methods with curves and predictions, one of them with a hostile name."""
    kept = [e for e in synthetic().entries if e.method in ("lora", "full", "dapt") and not e.reference]
    entries = tuple(replace(e, method=HOSTILE if e.method == "dapt" else e.method) for e in kept)
    output = tmp_path_factory.mktemp("figures")
    store = write_folder(SuiteResults("small", "", "0" * 16, entries), output)
    label = np.arange(139, dtype=np.int16) % 3
    for entry in entries:
        assert entry.result is not None and entry.result.metrics.correct is not None
        wrong = 139 - entry.result.metrics.correct
        prediction = label.copy()
        prediction[:wrong] = (prediction[:wrong] + 1) % 3
        path = store.trial(entry.id).path
        np.savez(path / "predictions.npz", prediction=prediction, label=label)
        lines = [f'{{"epoch": {e}, "train/loss": {2 / (e + 1 + entry.seed)}}}\n' for e in range(20)]
        (path / "metrics.jsonl").write_text("".join(lines))
    return store.load("small")


def test_a_figure_is_the_same_bytes_each_time_and_text_is_text(folder: SuiteResults) -> None:
    board = leaderboard(folder)
    found = []
    for _ in range(2):
        with style.applied():
            figure = scores.seeds(board)
            assert figure is not None
            found.append(style.saved(figure, "svg"))
    assert found[0] == found[1] and b"<script" not in found[0] and b"&lt;script&gt;" in found[0]
    ElementTree.fromstring(found[0])


@pytest.mark.slow
def test_everything_is_drawn_once_and_the_same_each_time(folder: SuiteResults, tmp_path: Path) -> None:
    write(folder, tmp_path / "one")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    wanted = {"score_against_parameters", "score_against_memory", "score_against_step_time", "memory_breakdown"}
    wanted |= {"seeds", "ranks", "curves_train_loss", "classes_1", "classes_2", "confusion_1", "confusion_2"}
    assert names == {f"{name}.{kind}" for name in wanted for kind in ("svg", "pdf")}
    for path in (tmp_path / "one").glob("*.svg"):
        text = path.read_text()
        ElementTree.fromstring(text)
        assert "<script" not in text and str(tmp_path) not in text
    assert all(path.read_bytes().startswith(b"%PDF") for path in (tmp_path / "one").glob("*.pdf"))
    with style.applied():
        again = {name: style.saved(figure, "svg") for name, figure in drawn(folder) if name in ("seeds", "ranks")}
    assert all(content == (tmp_path / "one" / f"{name}.svg").read_bytes() for name, content in again.items())


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    folder = tmp_path / "figures"
    folder.mkdir()
    for name in ("seeds.svg", "mine.pdf", "seeds.png"):
        (folder / name).write_text("earlier")
    write(SuiteResults("empty", "", "0" * 16, ()), folder)
    assert {path.name for path in folder.iterdir()} == {"mine.pdf", "seeds.png"}


def test_nothing_to_draw_is_nothing(tmp_path: Path) -> None:
    write(SuiteResults("empty", "", "0" * 16, ()), tmp_path / "figures")
    assert list((tmp_path / "figures").iterdir()) == []


def test_methods_look_alike_in_all_figures_and_differ_without_colour(suite: SuiteResults) -> None:
    looks = list(style.looks(leaderboard(suite)).values())
    assert len({look.marker for look in looks}) == len(looks)
    assert len({(look.colour, look.dash) for look in looks}) == len(looks)


def test_a_band_is_over_the_epochs_that_all_seeds_have() -> None:
    found = band([[(0, 1.0), (1, 0.5), (2, 0.2)], [(0, 2.0), (1, 0.7)]])
    assert found == Band((0, 1), (1.5, 0.6), (1.0, 0.5), (2.0, 0.7), 2)
    assert band([]) is None and band([[(0, 1.0)], [(1, 1.0)]]) is None


def test_curves_are_thinned_and_damage_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"epoch": {e}, "train/loss": {e}}}\n' for e in range(1_000)))
    curve = read_curves(path)["train/loss"]
    assert len(curve) == 60 and curve[0] == (0, 0.0) and curve[-1] == (999, 999.0)
    path.write_text('{"epoch": 0, "train/loss": NaN}\n[[[\n{"epoch": "x"}\n7\n{"epoch": 1, "train/loss": 0.5}\n')
    assert read_curves(path) == {"train/loss": [(1, 0.5)]}
    assert read_curves(tmp_path / "none") == {}


def test_bands_and_classes_of_a_suite(folder: SuiteResults) -> None:
    found = bands(folder)["train/loss"]
    assert {key.method for key, _ in found} == {"lora", "full", HOSTILE} and all(b.seeds == 3 for b in found.values())
    tables = by_class(folder)
    assert [table.dataset for table in tables] == ["sweethome12", "sweethome12_scanlike"]
    assert tables[0].names == ("chair", "table", "appliance"), "as the dataset is declared here"
    for table in tables:
        index = leaderboard(folder).datasets.index(table.dataset)
        for row in leaderboard(folder).rows:
            counts, summary = table.confusion[row.key], row.cells[index].summary
            assert counts.sum() == 3 * 139 and summary is not None
            assert np.diag(counts).sum() / counts.sum() == pytest.approx(summary.mean)


def test_classes_are_named_by_an_adapters_card_then_by_the_dataset_then_by_number(folder: SuiteResults) -> None:
    assert folder.output is not None
    card = folder.output / "trials" / folder.entries[0].id / "adapter" / "adapter_config.json"
    card.parent.mkdir()
    card.write_text('{"harness": {"classes": ["apple", "pear", "plum"]}}')
    again = Store(folder.output).load("small")
    assert class_names(again, folder.entries[0].dataset, 3) == ("apple", "pear", "plum")
    assert class_names(again, folder.entries[0].dataset, 4)[0] == "class 0", "too few names are no names"
    card.write_text('{"harness": {"classes": [1, 2, 3]}, "classes": ["a", "b", "c"]}')
    again = Store(folder.output).load("small")
    assert class_names(again, folder.entries[0].dataset, 2) == ("chair", "table")
    assert class_names(again, "of another machine", 2) == ("class 0", "class 1")
    card.unlink()
