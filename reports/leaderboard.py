"""The leaderboard of a suite: one frozen structure that every format writes down.

Rows are methods x backbones, cells are datasets. Everything is ordered by content (best mean first, then
names), so that neither the order of trials nor of files changes a byte. A trial without a result is
missing, a failed one is counted by its status; nothing is imputed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from harness.headline import ACCURACY, Headline, by_key
from reports.columns import ASIDES, COLUMNS, Aside, Column
from reports.comparison import Comparison, Repeat, RowKey, Standing
from reports.statistics import Interval, Summary, mean

if TYPE_CHECKING:
    from reports.versus import Versus


@dataclass(frozen=True)
class Cost:
    """A number in the unit of result.json, put together over trials; where it is null, the reason."""

    key: str
    value: float | None
    reason: str | None


@dataclass(frozen=True)
class SeedResult:
    """One finished trial: its headline number as a fraction, correct of total test items."""

    seed: int
    fold: int | None
    """Of a dataset that comes in folds."""
    score: float
    correct: int | None
    total: int | None

    @property
    def name(self) -> str:
        """`0`, or `0 fold 3`."""
        return repeat_name(self.seed, self.fold)


def leads(summary: Summary | None, standing: Standing | None) -> bool:
    """Best, or not separated from the best; one seed says too little for either."""
    return summary is not None and summary.n > 1 and standing in ("best", "level")


def capitalise(words: str) -> str:
    """The first letter as a capital, the others as they are."""
    return words[:1].upper() + words[1:]


def repeat_name(seed: int, fold: int | None) -> str:
    """A seed, and the fold where there is one: `0`, `0 fold 3`."""
    return f"{seed}" if fold is None else f"{seed} fold {fold}"


def by_repeat(values: Iterable[tuple[int, int | None, float]]) -> dict[Repeat, float]:
    """(seed, fold, value) by what a mean is over: seeds, or folds, each of these the mean over its seeds."""
    found: dict[Repeat, list[float]] = {}
    for seed, fold, value in values:
        found.setdefault(Repeat("seed", seed) if fold is None else Repeat("fold", fold), []).append(value)
    return {repeat: mean(values) for repeat, values in found.items()}


@dataclass(frozen=True)
class Score:
    """A number beside the headline over the trials that have it; `votes` are the passes of a vote."""

    key: str
    summary: Summary
    votes: tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """What was published of a cell's method, encoder and dataset: a fraction, or a range where sources disagree."""

    metric: str
    """The field of result.json's `metrics` that it is."""
    low: float
    high: float
    sources: tuple[str, ...]
    same_protocol: bool
    """Whether its augmentation and votes are known to be ours; if not, no difference is taken."""
    against: str | None
    """The field that the difference was taken from."""
    difference: float | None
    """Ours minus the published value, or minus the nearer end of the range; 0 inside of it."""


@dataclass(frozen=True)
class Cell:
    """A method on a dataset; `protocol` is a letter where a dataset has several, `trials` how many were asked."""

    dataset: str
    metric: str
    """Field of result.json's `metrics` that is the headline here."""
    summary: Summary | None
    class_mean: Summary | None
    """The same with every class, or category, counting alike."""
    categories: tuple[tuple[str, Summary | None], ...]
    """The headline by category, of tasks that have it, in the order of the dataset."""
    seeds: tuple[SeedResult, ...]
    failures: tuple[tuple[str, int], ...]
    missing: int
    trials: int
    protocol: str | None
    standing: Standing | None
    costs: tuple[Cost, ...]
    over_seeds: Summary | None = None
    """Of a dataset with folds, where there are several seeds: their means over the folds that all of them have."""
    asides: tuple[Score, ...] = ()
    """In the order of `ASIDES`; those that no trial has are left out."""
    bootstrap: Interval | None = None
    """Of the mean over seeds (or folds), beside the interval of `summary`."""
    published: tuple[Published, ...] = ()

    @property
    def published_here(self) -> tuple[Published, ...]:
        """What stands in the cell itself: of our protocol where there is any, else of an unknown one."""
        known = tuple(found for found in self.published if found.same_protocol)
        return known or self.published

    def aside(self, key: str) -> Score | None:
        """The score beside the headline of that name, where there is one."""
        return next((score for score in self.asides if score.key == key), None)

    @property
    def leads(self) -> bool:
        """Whether it is the best of its protocol or not separated from it, by more than one seed: bold."""
        return leads(self.summary, self.standing)

    @property
    def gaps(self) -> str:
        """What is not there, in words: `2 oom, 1 missing`."""
        parts = [f"{number} {status}" for status, number in self.failures]
        return ", ".join(parts + ([f"{self.missing} missing"] if self.missing else []))

    @cached_property
    def scores(self) -> dict[Repeat, float]:
        """Headline number (fraction) by seed; of a dataset with folds by fold, each the mean over its seeds."""
        return by_repeat((seed.seed, seed.fold, seed.score) for seed in self.seeds)

    @property
    def headline(self) -> Headline:
        """What the trials are judged by."""
        return by_key(self.metric)

    def cost(self, key: str) -> Cost:
        """The cost of that path: `time.step`."""
        return next(cost for cost in self.costs if cost.key == key)


@dataclass(frozen=True)
class Row:
    """A method on a backbone. References are shown and never ranked."""

    key: RowKey
    method: str
    backbone: str
    reference: bool
    section: int
    """Rows of one section followed the same protocol on every dataset; 0 holds the most common ones."""
    cells: tuple[Cell, ...]
    overall: Summary | None
    standing: Standing | None
    costs: tuple[Cost, ...]
    recipe: str
    notes: tuple[str, ...]
    pareto: bool = False
    """Whether no row of its section is as good in everything that `Leaderboard.pareto_by` names, and better in one."""

    def cost(self, key: str) -> Cost:
        """The cost of that path: `time.step`."""
        return next(cost for cost in self.costs if cost.key == key)


@dataclass(frozen=True)
class Trouble:
    """Trials that gave no number: seeds of one method and dataset with one status (`missing`: no result)."""

    method: str
    backbone: str
    dataset: str
    seeds: tuple[str, ...]
    status: str
    error: str


@dataclass(frozen=True)
class Counts:
    """Trials of the suite, references included."""

    trials: int
    done: int
    failed: int
    missing: int


@dataclass(frozen=True)
class CategoryTable:
    """The headline of every method on one dataset, by category."""

    dataset: str
    title: str
    categories: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Summary | None, ...]], ...]
    """Label of a method, and its summary in each category."""


@dataclass(frozen=True)
class Leaderboard:
    """All that a report says about a suite."""

    name: str
    description: str
    digest: str
    counts: Counts
    datasets: tuple[str, ...]
    several_backbones: bool
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    notices: tuple[str, ...]
    """What stands in the way of comparing: different protocols, hardware, missing trials."""
    findings: tuple[str, ...]
    """What the intervals separate, and what they do not."""
    how_to_read: str
    caveats: tuple[str, ...]
    troubles: tuple[Trouble, ...]
    protocol: tuple[str, ...]
    environment: tuple[tuple[str, tuple[str, ...]], ...]
    versus: Versus | None = None
    """Every method against one of them; None where there is none to compare with."""
    pareto_by: tuple[str, ...] = ()
    """In words, what rows are marked by; empty where nothing is."""

    def label(self, row: Row | RowKey) -> str:
        """A row's name in running text; the backbone only where there are several."""
        variant = row.key.variant if isinstance(row, Row) else row.variant
        name = f"{row.method} ({variant + 1})" if variant else row.method
        return f"{name} on {row.backbone}" if self.several_backbones else name

    def columns(self) -> tuple[Column, ...]:
        """The cost columns to show: the usual ones, and others where a row has a value."""
        filled = {cost.key for row in self.rows for cost in row.costs if cost.value is not None}
        return tuple(c for c in COLUMNS if c.shown == "always" or (c.shown == "filled" and c.key in filled))

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """What the trials on each dataset are judged by, in the order of `datasets`."""
        cells = [cell for row in self.rows for cell in row.cells]
        scored = {cell.dataset: cell.headline for cell in cells if cell.summary is not None or not cell.headline.scored}
        return tuple(scored.get(dataset, ACCURACY) for dataset in self.datasets)

    @property
    def measure(self) -> Headline | None:
        """What all trials are judged by; None where datasets differ in that."""
        found = set(self.headlines)
        return found.pop() if len(found) == 1 else None

    @property
    def measure_title(self) -> str:
        """As a heading: `Accuracy`."""
        return capitalise(self.measure.title) if self.measure is not None else "Score"

    @property
    def by_category(self) -> tuple[CategoryTable, ...]:
        """Tables of the headline by category, of datasets that have it."""
        found = []
        for index, dataset in enumerate(self.datasets):
            rows = [(row, dict(row.cells[index].categories)) for row in self.rows if row.cells[index].categories]
            names = tuple(dict.fromkeys(name for _, numbers in rows for name in numbers))
            if rows:
                lines = tuple((self.label(row), tuple(numbers.get(name) for name in names)) for row, numbers in rows)
                found.append(CategoryTable(dataset, self.headlines[index].title, names, lines))
        return tuple(found)

    def asides(self) -> tuple[Aside, ...]:
        """The numbers beside the headline that any trial has."""
        found = {score.key for row in self.rows for cell in row.cells for score in cell.asides}
        return tuple(aside for aside in ASIDES if aside.key in found)

    def empty_columns(self) -> tuple[tuple[Column, str], ...]:
        """Shown columns in which no row has a value, with the reason."""
        found = []
        for column in self.columns():
            costs = [row.cost(column.key) for row in self.rows]
            if costs and all(cost.value is None for cost in costs):
                reasons = {row.cost(column.key).reason or "" for row in self.rows if not row.reference}
                found.append((column, "; ".join(sorted(reasons))))
        return tuple(found)
