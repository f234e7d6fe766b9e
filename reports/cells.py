"""One cell of the leaderboard: what the trials of one method on one dataset came to, and what they cost."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from harness.headline import ACCURACY, Headline
from harness.result import Result
from harness.store import Entry
from reports import published
from reports.columns import ASIDES, COLUMNS, VOTES, Column
from reports.leaderboard import Cell, Cost, Score, SeedResult, by_repeat
from reports.provenance import section
from reports.resampling import bootstrap_mean
from reports.statistics import Summary, mean, median, summarise


def lacking(result: Result) -> str:
    """The status of a finished trial without its headline number: `no accuracy`."""
    return f"no {result.headline.title}"


def headline_on(dataset: str, trials: Iterable[Entry]) -> Headline:
    """What the finished trials on a dataset are judged by; accuracy when there are none."""
    results = [trial.result for trial in trials if trial.dataset == dataset and trial.result is not None]
    return next((result.headline for result in results if result.status == "done"), ACCURACY)


def score(entry: Entry) -> float | None:
    """A finished trial's headline number (fraction); None for any other."""
    if entry.result is None or entry.result.status != "done":
        return None
    value = entry.result.score
    return value if value is not None and math.isfinite(value) else None


def build_cell(dataset: str, trials: Sequence[Entry], *, protocol: str | None) -> Cell:
    """The trials of one method on one dataset."""
    seeds: list[SeedResult] = []
    means: list[tuple[int, int | None, float]] = []
    categories: dict[str, list[tuple[int, int | None, float]]] = {}
    headline = headline_on(dataset, trials)
    failures: Counter[str] = Counter()
    missing = 0
    for entry in trials:
        value, result = score(entry), entry.result
        if result is None:
            missing += 1
        elif result.for_costs:
            continue
        elif value is None:
            failures[lacking(result) if result.status == "done" else result.status] += 1
        else:
            metrics = result.metrics
            seeds.append(SeedResult(entry.seed, entry.fold, value, metrics.correct, metrics.total))
            mean_of_classes = getattr(metrics, headline.mean_key)
            if mean_of_classes is not None and math.isfinite(mean_of_classes):
                means.append((entry.seed, entry.fold, mean_of_classes))
            found = getattr(metrics, headline.by_category) if headline.by_category is not None else None
            for name, number in (found or {}).items():
                categories.setdefault(name, []).append((entry.seed, entry.fold, number))
    counts = None
    if len(seeds) == 1 and seeds[0].correct is not None and seeds[0].total is not None:
        counts = (seeds[0].correct, seeds[0].total)
    scores = list(by_repeat((s.seed, s.fold, s.score) for s in seeds).values())
    summary, asides = summarise(scores, counts), _asides(trials)
    done = [entry.result for entry in trials if entry.result is not None and score(entry) is not None]
    return Cell(
        dataset=dataset,
        metric=headline.key,
        summary=summary,
        class_mean=summarise(list(by_repeat(means).values())),
        categories=tuple((name, summarise(list(by_repeat(found).values()))) for name, found in categories.items()),
        seeds=tuple(seeds),
        failures=tuple(sorted(failures.items())),
        missing=missing,
        trials=len(trials),
        protocol=protocol,
        standing=None,
        costs=build_costs(trials),
        over_seeds=_over_seeds(seeds),
        asides=asides,
        bootstrap=bootstrap_mean(scores),
        published=published.beside(done, headline, summary, asides),
    )


def _over_seeds(seeds: Sequence[SeedResult]) -> Summary | None:
    """How the mean over folds varies between seeds, on the folds that all seeds have; None without folds or for one."""
    by_seed: dict[int, dict[int, float]] = {}
    for seed in seeds:
        if seed.fold is not None:
            by_seed.setdefault(seed.seed, {})[seed.fold] = seed.score
    common = set.intersection(*map(set, by_seed.values())) if len(by_seed) > 1 else set()
    return summarise([mean([folds[fold] for fold in common]) for folds in by_seed.values()]) if common else None


def _asides(trials: Sequence[Entry]) -> tuple[Score, ...]:
    """The numbers beside the headline, over the trials that have a headline."""
    done = [(entry, entry.result) for entry in trials if entry.result is not None and score(entry) is not None]
    found = []
    for key in (aside.key for aside in ASIDES):
        having = [(e, result) for e, result in done if getattr(result.metrics, key) is not None]
        votes = {section(r.spec, "protocol").get("vote") for _, r in having} if key in VOTES else set()
        values = by_repeat((entry.seed, entry.fold, getattr(result.metrics, key)) for entry, result in having)
        summary = summarise(list(values.values()))
        if summary is not None:
            found.append(Score(key, summary, tuple(sorted(v for v in votes if isinstance(v, int)))))
    return tuple(found)


ALONE = ("time.", "memory.", "compute.energy")
"""Costs that others on the same GPU change, by the beginning of their field."""


def build_costs(trials: Sequence[Entry]) -> tuple[Cost, ...]:
    """Every cost over the finished trials, in the unit of result.json; null with its reason."""
    done = [entry.result for entry in trials if entry.result is not None and entry.result.status == "done"]
    return tuple(_cost(column, done) for column in COLUMNS)


def _cost(column: Column, done: Sequence[Result]) -> Cost:
    comparable = _comparable(column, done)
    if done and not comparable:
        return Cost(column.key, None, "the GPU was shared with others: not comparable")
    found = (_value(result, column.key) for result in comparable)
    values = [value for value in found if value is not None and math.isfinite(value)]
    if values:
        return Cost(column.key, max(values) if column.over_trials == "max" else median(values), None)
    if not done:
        return Cost(column.key, None, "no trial has finished")
    section = column.key.partition(".")[0]
    reasons = {result.reasons.get(column.key, result.reasons.get(section, "")) for result in done} - {""}
    return Cost(column.key, None, "; ".join(sorted(reasons)) or "not recorded")


def _comparable(column: Column, done: Sequence[Result]) -> Sequence[Result]:
    """Those that had their GPU alone, where that matters; what is predicted is the same either way."""
    if column.key == "memory.estimated" or not column.key.startswith(ALONE):
        return done
    return [result for result in done if not result.on_a_shared_gpu]


def _value(result: Result, key: str) -> float | None:
    if key == "parameters.percent":
        trainable, total = result.parameters.trainable, result.parameters.total
        return 100 * trainable / total if trainable is not None and total else None
    section, _, field = key.partition(".")
    value: float | None = getattr(getattr(result, section), field)
    return value
