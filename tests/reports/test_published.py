"""Published numbers: the file itself, and which of its values may stand beside a cell of ours."""

from __future__ import annotations

import csv
from dataclasses import replace
from typing import Any

import pytest

from harness.store import Entry, SuiteResults
from reports import latex, markdown
from reports.build import leaderboard
from reports.leaderboard import Published
from reports.published import FILE, METRICS, values
from reports.statistics import possible
from reports.tables import published_text
from tests.reports.synthetic import altered, spec_of, synthetic

TEST_ITEMS = {"scanobjectnn_obj_bg": 581, "scanobjectnn_obj_only": 581, "scanobjectnn_pb_t50_rs": 2882}


def board_of(dataset: str, method: str = "full", *, vote: bool = False, best: bool = False, **changes: Any):  # type: ignore[no-untyped-def]
    """A leaderboard of one method with an encoder of the published size, accuracy 0.85."""
    entries: list[Entry] = []
    for entry in synthetic().entries:
        if (entry.method, entry.dataset) != (method, "sweethome12"):
            continue
        assert entry.result is not None
        spec = spec_of(method, dataset, entry.seed, backbone_settings={"preset": "base", "weights": "w"})
        spec["train"]["augment"] = "scale_translate"
        for name, value in changes.items():
            section, _, key = name.partition("_")
            spec[section][key] = value
        metrics = {"accuracy": 0.85, "correct": 850, "total": 1000}
        metrics |= {"accuracy_vote": 0.86} if vote else {}
        metrics |= {"accuracy_best_on_test": 0.855} if best else {}
        result = altered(entry.result, metrics=metrics, parameters={"total": 22_000_000})
        entries.append(replace(entry, dataset=dataset, result=result.model_copy(update={"spec": spec})))
    return leaderboard(SuiteResults("published", "", "0" * 16, tuple(entries)))


def published(*arguments: Any, **changes: Any) -> tuple[Published, ...]:
    found: tuple[Published, ...] = board_of(*arguments, **changes).rows[0].cells[0].published
    return found


def test_every_line_says_where_it_was_read() -> None:
    with FILE.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) > 300
    for line in lines:
        assert line["evidence"].startswith("verified") and line["source"] and 0 < float(line["percent"]) <= 100
        assert line["metric"] in METRICS or line["metric"] == "class_miou"


def test_printed_accuracies_can_occur_on_their_test_sets() -> None:
    """A slip of the pen falls off the grid of k / N; two-decimal values only."""
    with FILE.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["dataset"] in TEST_ITEMS and "." in line["percent"]]
    single = [line for line in lines if len(line["percent"].partition(".")[2]) == 2]
    assert len(single) > 100
    off = {line["percent"] for line in single if not possible(line["percent"], TEST_ITEMS[line["dataset"]])}
    assert off == {"92.26", "88.21", "85.64", "93.11"}, "printed so in their sources, and checked there"


def test_a_value_of_the_same_protocol_has_a_difference_and_its_sources() -> None:
    [found] = [p for p in published("scanobjectnn_pb_t50_rs") if p.same_protocol]
    assert (found.low, found.high, found.against) == (0.8518, 0.8518, "accuracy")
    assert found.difference == pytest.approx(0.85 - 0.8518)
    assert any(source.startswith("pointgst_readme") for source in found.sources)


def test_best_on_test_is_what_stands_beside_it_where_there_is_one() -> None:
    [found] = [p for p in published("scanobjectnn_pb_t50_rs", best=True) if p.same_protocol]
    assert found.against == "accuracy_best_on_test" and found.difference == pytest.approx(0.855 - 0.8518)


def test_other_augmentation_is_not_shown() -> None:
    assert not [p for p in published("scanobjectnn_pb_t50_rs", train_augment="none") if p.same_protocol]


def test_an_unknown_protocol_is_shown_as_such_and_has_no_difference() -> None:
    found = published("modelnet40")
    assert found and all(not p.same_protocol and p.difference is None for p in found)
    assert published_text(found[0]).endswith("(protocol unknown)")


def test_disputed_values_are_a_range_and_the_difference_is_to_its_nearer_end() -> None:
    unknown = [p for p in published("modelnet40", "point_peft") if p.metric == "accuracy"]
    assert unknown and unknown[0].low == pytest.approx(0.933) and unknown[0].high == pytest.approx(0.942)
    assert published_text(unknown[0]).startswith("93.3–94.2")


def test_voted_values_stand_beside_votes_only() -> None:
    assert not any(p.metric == "accuracy_vote" for p in published("modelnet40"))
    assert any(p.metric == "accuracy_vote" for p in published("modelnet40", vote=True))


@pytest.mark.parametrize(
    "settings", [{"preset": "tiny", "weights": "w"}, {"preset": "base", "weights": "random"}, {"weights": "w"}]
)
def test_other_encoders_have_no_published_number(settings: dict[str, str]) -> None:
    assert published("scanobjectnn_pb_t50_rs", backbone_settings=settings) == ()
    assert published("sweethome12") == ()


def test_formats_show_them() -> None:
    board = board_of("scanobjectnn_pb_t50_rs", best=True)
    text = markdown.render(board)
    assert "## Beside published numbers" in text and "| 85.18 | 85.5 | best on test | &#43;0.3 |" in text
    assert r"\textcolor{gray}" in latex.render(board) and "85.18 (+0.3)" in latex.render(board)


def test_all_values_are_fractions_of_methods_that_have_a_name() -> None:
    assert all(v.method and v.backbone and v.metric in METRICS.values() for v in values())
