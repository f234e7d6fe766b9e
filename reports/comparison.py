"""Which methods the data separate, and which they do not: paired by seed, never across protocols.

Data order, augmentation and splits of a seed are the same for all methods, so methods are compared on
common seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, NamedTuple

from reports.columns import listed, percent
from reports.statistics import PAIRS_FOR_P, PairedDifference, paired, smallest_p

OVERALL = "overall"
MOST_NAMES = 8
"""A sentence names so many methods; of more, the best and how many others there are."""
Standing = Literal["best", "level", "separated", "not compared"]
"""Against the best mean of the same protocol: itself, not separated, separated, or too few common seeds."""


class RowKey(NamedTuple):
    """The suite's labels of a row. `variant` tells equal labels apart (a baseline at several points)."""

    method: str
    backbone: str
    variant: int = 0


class Repeat(NamedTuple):
    """One of the repetitions that a mean is over: a seed, or a fold of a few-shot dataset."""

    unit: Literal["seed", "fold"]
    number: int


Scores = Mapping[RowKey, Mapping[Repeat, float]]
"""Accuracy (fraction) by repetition, of the methods that may be compared: one dataset, one protocol."""


@dataclass(frozen=True)
class Comparison:
    """The paired difference first - second on one dataset, or on the average of all."""

    dataset: str
    first: RowKey
    second: RowKey
    difference: PairedDifference


def compare(dataset: str, scores: Scores) -> list[Comparison]:
    """Every pair of methods that share a seed (or fold), in the order of their names."""
    found = []
    for first, second in combinations(sorted(scores), 2):
        difference = paired(scores[first], scores[second])
        if difference is not None:
            found.append(Comparison(dataset, first, second, difference))
    return found


def standings(
    means: Mapping[RowKey, float], scores: Scores, comparisons: Iterable[Comparison]
) -> dict[RowKey, Standing]:
    """Where each method stands against the best mean. Equal means: the first by name is called best.

    A method with one seed is best only where none has more: nothing can be separated from a single score.
    """
    if not means:
        return {}
    several = [row for row in means if len(scores[row]) > 1]
    best = min(several or means, key=lambda row: (-means[row], row))
    found: dict[RowKey, Standing] = dict.fromkeys(means, "not compared")
    found[best] = "best"
    for comparison in comparisons:
        if best in (comparison.first, comparison.second) and comparison.difference.n > 1:
            other = comparison.second if comparison.first == best else comparison.first
            found[other] = "separated" if comparison.difference.separated else "level"
    return found


def finding(
    where: str,
    *,
    means: Mapping[RowKey, float],
    standing: Mapping[RowKey, Standing],
    comparisons: Sequence[Comparison],
    scores: Scores,
    labels: Mapping[RowKey, str],
) -> str:
    """One sentence on what the intervals separate from the best mean, and what they do not."""
    if not means:
        return ""
    best = next(row for row in means if standing[row] == "best")
    unit = next((repeat.unit for row in scores.values() for repeat in row), "seed")
    among = f" of at least two {unit}s" if means[best] < max(means.values()) else ""
    opening = f"{where} the best mean{among} is that of {labels[best]} ({percent(means[best])} %)"
    if len(means) == 1:
        return f"{opening}, the only one of its protocol with a result."
    pairs = {
        (c.second if c.first == best else c.first): c.difference for c in comparisons if best in (c.first, c.second)
    }
    order = sorted(means, key=lambda row: (-means[row], row))
    level = [row for row in order if standing[row] == "level"]
    flat = [row for row in level if pairs[row].sd == 0 and pairs[row].mean != 0]
    level = [row for row in level if row not in flat]
    separated = [row for row in order if standing[row] == "separated"]
    alone = [row for row in order if standing[row] == "not compared"]
    clauses = []
    if level:
        clauses.append(
            f"{_are(level, labels)} not separated from it "
            f"(95 % intervals of the paired differences include zero, {_repeats(level, pairs, unit)})"
        )
    if separated:
        clauses.append(
            f"{_are(separated, labels)} separated from it "
            f"(95 % paired intervals exclude zero, {_repeats(separated, pairs, unit)})"
        )
    if flat:
        clauses.append(
            f"{_are(flat, labels)} not called separated: the difference is the same on every {unit} "
            f"({_repeats(flat, pairs, unit)}), so there is no spread to judge by"
        )
    if alone:
        clauses.append(f"{_are(alone, labels)} not compared with it: fewer than two common {unit}s")
    return f"{opening}; {'; '.join(clauses)}."


def about_p_values(comparisons: Sequence[Comparison]) -> str:
    """Which p-values there are, or why there are none."""
    pairs = [comparison.difference.n for comparison in comparisons]
    if not pairs:
        return ""
    few = max((n for n in pairs if n < PAIRS_FOR_P), default=None)
    sentences = []
    if few is not None:
        sentences.append(
            f"No p-value is given for fewer than {PAIRS_FOR_P} pairs: with n = {few} the smallest two-sided p of "
            f"an exact paired test is {smallest_p(few):.3g}, so no difference, however large, could fall below 0.05."
        )
    if max(pairs) >= PAIRS_FOR_P:
        sentences.append("p-values are of two-sided Wilcoxon signed-rank tests over the pairs.")
    return " ".join(sentences)


def _are(rows: Sequence[RowKey], labels: Mapping[RowKey, str]) -> str:
    names = [labels[row] for row in rows]
    if len(names) > MOST_NAMES:
        names = [*names[: MOST_NAMES - 2], f"{len(names) - MOST_NAMES + 2} others"]
    return f"{listed(names)} {'is' if len(rows) == 1 else 'are'}"


def _repeats(rows: Sequence[RowKey], pairs: Mapping[RowKey, PairedDifference], unit: str) -> str:
    numbers = sorted({pairs[row].n for row in rows})
    span = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"n = {span} {unit}s"
