"""Published numbers beside ours: only where the protocol is known to be the same, and as unknown where it is not.

`published.csv` holds values that were read in their source (column `evidence` says where), in percent. A value is put
beside a cell when method, encoder in its published size, dataset, augmentation and votes agree. Where the source does
not say its augmentation or votes, the value is shown as of unknown protocol, and no difference is taken. All of them
are the best of all epochs on the test split, of one run: the fair number of ours beside them is best on test.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from harness.headline import Headline
from harness.result import Result
from reports.leaderboard import Published, Score
from reports.provenance import section
from reports.statistics import Summary

FILE = Path(__file__).with_name("published.csv")
AUGMENTATIONS = {"scale_translate": "scale_translate", "rotation": "rotate"}
"""As the file spells them -> as suites do."""
SMALLEST = 10_000_000
"""Parameters of the smallest model that the file speaks of, less a margin: blocks may have been left out by hand."""
METRICS = {"overall_accuracy": "accuracy", "overall_accuracy_voted": "accuracy_vote", "instance_miou": "instance_miou"}
"""As the file spells them -> fields of result.json's `metrics`."""


@dataclass(frozen=True)
class Value:
    """A line of the file."""

    method: str
    backbone: str
    dataset: str
    metric: str
    percent: float
    augmentation: str
    vote: Literal["yes", "no", "unknown"]
    source: str
    table: str


@cache
def values() -> tuple[Value, ...]:
    """All lines of metrics that we have, too."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Value(
                method=line["method"],
                backbone=line["backbone"],
                dataset=line["dataset"],
                metric=METRICS[line["metric"]],
                percent=float(line["percent"]),
                augmentation=AUGMENTATIONS.get(line["augmentation"], "unknown"),
                vote="yes" if line["vote"] == "yes" else "no" if line["vote"] == "no" else "unknown",
                source=line["source"],
                table=line["table"],
            )
            for line in csv.DictReader(file)
            if line["metric"] in METRICS
        )


def beside(
    results: Sequence[Result], headline: Headline, summary: Summary | None, asides: Sequence[Score]
) -> tuple[Published, ...]:
    """What was published of the method on the dataset, for a cell of these finished trials."""
    places = {_place(result) for result in results}
    if len(places) != 1 or (place := places.pop()) is None or summary is None:
        return ()
    method, backbone, dataset, augmentation = place
    known = [v for v in values() if (v.method, v.backbone, v.dataset) == (method, backbone, dataset)]
    ours = {score.key: score.summary.mean for score in asides}
    plain = [v for v in known if v.metric == headline.key]
    voted = [v for v in known if v.metric == headline.vote] if headline.vote in ours else []
    best = ours.get(headline.best_on_test)
    mean, against = (summary.mean, headline.key) if best is None else (best, headline.best_on_test)
    vote = headline.vote
    groups = [
        _together([v for v in plain if v.augmentation == augmentation and v.vote == "no"], mean, against, headline.key),
        _together(
            [v for v in voted if v.augmentation == augmentation], ours.get(headline.vote), headline.vote, headline.vote
        ),
        _together([v for v in plain if _unknown(v, augmentation)], None, None, headline.key),
        _together([v for v in voted if v.augmentation == "unknown"], None, None, vote),
    ]
    return tuple(group for group in groups if group is not None)


def _unknown(value: Value, augmentation: str) -> bool:
    """Whether the source leaves open what would have to agree, and nothing that it says disagrees."""
    open_ = "unknown" in (value.augmentation, value.vote)
    return open_ and value.augmentation in ("unknown", augmentation) and value.vote != "yes"


def _together(found: Iterable[Value], ours: float | None, against: str | None, metric: str) -> Published | None:
    """Values of one protocol as one: a range where sources disagree."""
    found = sorted(found, key=lambda v: (v.percent, v.source))
    if not found:
        return None
    low, high = (round(v.percent / 100, 6) for v in (found[0], found[-1]))
    difference = None
    if ours is not None:
        difference = ours - low if ours < low else ours - high if ours > high else 0.0
    sources = tuple(dict.fromkeys(f"{v.source}, {v.table}" for v in found))
    return Published(metric, low, high, sources, against is not None, against, difference)


def _place(result: Result) -> tuple[str, str, str, str] | None:
    """Method, encoder, dataset and augmentation of a trial; None for an encoder of another size or random weights."""
    spec = result.spec
    method, backbone = section(spec, "method").get("name"), section(spec, "backbone")
    settings = section(backbone, "settings")
    if settings.get("preset") != "base" or settings.get("weights") in (None, "random"):
        return None
    if (result.parameters.total or 0) < SMALLEST:
        return None
    dataset, augment = section(spec, "dataset").get("name"), section(spec, "train").get("augment")
    words = (method, backbone.get("name"), dataset, augment)
    if not all(isinstance(word, str) for word in words):
        return None
    return (str(method), str(backbone.get("name")), str(dataset), str(augment))
