"""`harness compare` in words: tables and sentences of plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.text import cut
from reports.changes import Change
from reports.columns import BY_KEY, NOTHING, count, listed, mean_and_sd, points
from reports.contrast import Contrast, Cost, Pair
from reports.leaderboard import Trouble
from reports.statistics import Summary
from reports.tables import Table, item_span, mcnemar_text, p_text, signed_span, span

NAMED = 6
"""Trials of one side alone that are named."""
LONGEST = 60
"""Characters of a value that changed."""
VALUES = 3
"""Pairs of values that are listed of one setting."""


def opening(found: Contrast) -> Iterator[str]:
    """What is compared, and on which trials."""
    for letter, side in (("A", found.first), ("B", found.second)):
        suite = "" if side.title == side.suite else f"suite {side.suite} ({side.digest}), "
        yield f"{letter}: {side.title}: {suite}{side.done} of {count(side.trials, 'trial')} done"
    same = f"; {found.same} of them one and the same result" if found.same else ""
    yield f"Compared: {count(found.paired, 'trial')} done on both sides, of {found.common} in both lists{same}."


def apart(found: Contrast) -> Iterator[str]:
    """What is not compared: trials of one side, and those that failed."""
    for letter, side in (("A", found.first), ("B", found.second)):
        if side.alone:
            named = ", ".join(side.alone[:NAMED])
            more = f" and {len(side.alone) - NAMED} more" if len(side.alone) > NAMED else ""
            yield f"Only in {letter}: {named}{more}"
    for letter, side in (("A", found.first), ("B", found.second)):
        yield from (f"{letter}: {_trouble(trouble)}" for trouble in side.troubles)


def _trouble(trouble: Trouble) -> str:
    seeds = f"seed{'s' if len(trouble.seeds) > 1 else ''} {listed(list(trouble.seeds))}"
    error = f": {trouble.error}" if trouble.error else ""
    return f"{trouble.status}, {trouble.method} on {trouble.dataset} ({trouble.backbone}), {seeds}{error}"


def changed(found: Contrast) -> Table:
    """What is not the same on both sides."""
    rows = []
    for kind, name in dict.fromkeys((change.kind, change.name) for change in found.changes):
        own = [change for change in found.changes if (change.kind, change.name) == (kind, name)]
        rows += [(kind, name, cut(c.first, LONGEST), cut(c.second, LONGEST), _pairs(c)) for c in own[:VALUES]]
        if len(own) > VALUES:
            rows.append((kind, name, "…", "…", f"{len(own) - VALUES} more"))
    return Table("What changed", ("", "What", "A", "B", "Pairs"), tuple(rows), 4)


def _pairs(change: Change) -> str:
    return "all" if change.pairs is None else str(change.pairs)


def numbers(found: Contrast) -> Table:
    """Every method on every dataset: both means, their difference, and what stands against noise."""
    several = len({pair.backbone for pair in found.pairs}) > 1
    scored = [pair for pair in found.pairs if pair.first is not None or pair.second is not None]
    any_p = any(pair.against is not None and pair.against.p_holm is not None for pair in scored)
    header = ["A, %", "B, %", "B − A", "n", "95 % over seeds", "95 % over items", "McNemar p"]
    rows = [(*_names(pair, several), *_numbers(pair), *([_p(pair)] if any_p else [])) for pair in scored]
    names = ("Method", "Dataset", "Verdict")
    return Table("Differences", (*names, *header, *(["p (Holm)"] if any_p else [])), tuple(rows), len(names))


def _names(pair: Pair, several: bool) -> tuple[str, ...]:
    label = f"{pair.method} on {pair.backbone}" if several else pair.method
    return (f"{label} ≠" if pair.protocol else label, pair.dataset, pair.verdict)


def _numbers(pair: Pair) -> tuple[str, ...]:
    both = (_mean(pair.first), _mean(pair.second))
    if pair.against is None:
        return (*both, *[NOTHING] * 5)
    difference, items = pair.against.difference, pair.against.items
    spans = (signed_span(difference.interval), item_span(items), mcnemar_text(items))
    return (*both, points(difference.mean), str(difference.n), *spans)


def _mean(summary: Summary | None) -> str:
    return NOTHING if summary is None else mean_and_sd(summary)


def _p(pair: Pair) -> str:
    return p_text(pair.against.p_holm) if pair.against is not None else NOTHING


def overall(found: Contrast) -> Table:
    """Methods over all datasets."""
    rows = []
    for one in found.overall:
        better = NOTHING
        if one.improvement is not None:
            interval = one.improvement.interval
            better = f"{100 * one.improvement.value:.0f}" + (f" ({span(interval)})" if interval is not None else "")
        outcomes = f"{one.wins} / {one.ties} / {one.losses}"
        means = (points(one.difference), signed_span(one.interval), f"{one.datasets} ({one.pairs})")
        rows.append((one.method.method, *means, better, outcomes))
    header = ("Method", "B − A", "95 % (bootstrap)", "Datasets (pairs)", "B beats A, %", "Win / tie / loss")
    return Table("Over all datasets", header, tuple(rows), 1)


def costs(found: Contrast) -> Table:
    """Costs that differ."""
    several = len({cost.backbone for cost in found.costs}) > 1
    rows = []
    for cost in found.costs:
        if cost.first != cost.second:
            column = BY_KEY[cost.key]
            title = f"{column.title}{f', {column.unit}' if column.unit else ''}"
            label = f"{cost.method} on {cost.backbone}" if several else cost.method
            rows.append((label, title, column.show(cost.first), column.show(cost.second), _ratio(cost)))
    return Table("Costs that differ", ("Method", "Cost", "A", "B", "B / A"), tuple(rows), 2)


def _ratio(cost: Cost) -> str:
    return NOTHING if cost.ratio is None else f"{cost.ratio:.3g}×"


def equal_costs(found: Contrast) -> Sequence[str]:
    """Titles of costs that are the same on both sides for every method."""
    differ = {cost.key for cost in found.costs if cost.first != cost.second}
    return [BY_KEY[key].title for key in dict.fromkeys(cost.key for cost in found.costs) if key not in differ]
