"""Two sides beside each other: what changed between them, and whether the difference of their numbers is real.

Trials pair by the suites' labels: method, backbone, dataset, seed, fold. Numbers are of the trials that are done on
both sides; failures and trials of one side alone are told, never filled in. All statistics are those of the reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.errors import UserError
from harness.store import Entry, SuiteResults
from reports import evidence, provenance
from reports.build import leaderboard, rows_of
from reports.cells import score
from reports.changes import Change, changes
from reports.columns import COLUMNS, listed
from reports.comparison import RowKey
from reports.details import printable
from reports.items import Predictions, Run
from reports.leaderboard import Leaderboard, Row, Trouble
from reports.sides import Side
from reports.statistics import Interval, Summary
from reports.troubles import troubles
from reports.versus import Against, AgainstAll, about, differences, of_one_number

MARKS = ("A ", "B ")
"""In front of the labels of each side, while both stand in one leaderboard."""

Place = tuple[str, str, str, int, int | None, int]
"""Method, backbone, dataset, seed, fold; and a number where a suite has several trials of these."""


@dataclass(frozen=True)
class Account:
    """One side: how its trials ended."""

    title: str
    suite: str
    digest: str
    trials: int
    done: int
    troubles: tuple[Trouble, ...]
    alone: tuple[str, ...]
    """Names of the trials that the other side does not have."""


@dataclass(frozen=True)
class Pair:
    """A method on a dataset on both sides, over the seeds that are done on both."""

    method: str
    backbone: str
    dataset: str
    first: Summary | None
    second: Summary | None
    against: Against | None
    """The second minus the first; None where there is no number on both sides, or not the same."""
    protocol: tuple[str, ...]
    """Settings of the protocol in which the sides differ."""
    verdict: str


@dataclass(frozen=True)
class Cost:
    """A cost of a method on both sides, over the trials that are done on both, in the unit of result.json."""

    method: str
    backbone: str
    key: str
    first: float | None
    second: float | None
    ratio: float | None
    """The second over the first."""


@dataclass(frozen=True)
class Contrast:
    """All that can be said of two sides."""

    first: Account
    second: Account
    common: int
    """Trials that both sides have."""
    paired: int
    """Of these, done on both sides."""
    same: int
    """Of these, one and the same: equal identity, score and digests."""
    changes: tuple[Change, ...]
    pairs: tuple[Pair, ...]
    overall: tuple[AgainstAll, ...]
    """Methods over all datasets, the second side minus the first."""
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]


def contrast(first: Side, second: Side) -> Contrast:
    """Compare two sides. Raises UserError when they have no trial in common."""
    places = (_by_place(first.results), _by_place(second.results))
    common = [place for place in places[0] if place in places[1]]
    if not common:
        raise UserError(_nothing_in_common(first, second))
    usable = [place for place in common if _done_alike(places[0][place], places[1][place])]
    paired = [(places[0][place], places[1][place]) for place in usable]
    board = leaderboard(_together(paired))
    rows = [
        (b, a) for b in board.rows if b.method.startswith(MARKS[1]) for a in board.rows if a.key == _opposite(b.key)
    ]
    each, overall = differences(rows, board.datasets, _items(first, second, paired), comparable=of_one_number)
    protocols = _protocols(paired)
    return Contrast(
        first=_account(first, places[0], places[1]),
        second=_account(second, places[1], places[0]),
        common=len(common),
        paired=len(paired),
        same=sum(_same(a, b) for a, b in paired),
        changes=changes(first.results, second.results, paired),
        pairs=tuple(_pairs(board, rows, each, protocols)),
        overall=tuple(replace(one, method=_plain(one.method), yardstick=_plain(one.yardstick)) for one in overall),
        costs=tuple(_costs(rows)),
        notes=tuple(_notes(each, overall, protocols, paired)),
    )


def _by_place(results: SuiteResults) -> dict[Place, Entry]:
    """Trials by what they pair by, references left out."""
    found: dict[Place, Entry] = {}
    grouped = rows_of(entry for entry in results.entries if not entry.reference)
    for key, entries in grouped.items():
        for entry in entries:
            found[key.method, key.backbone, entry.dataset, entry.seed, entry.fold, key.variant] = entry
    return found


def _nothing_in_common(first: Side, second: Side) -> str:
    lines = [f"{first.title} and {second.title} have no trial in common (method, backbone, dataset, seed):"]
    for side in (first, second):
        entries = [entry for entry in side.results.entries if not entry.reference]
        kinds = [sorted({getattr(entry, kind) for entry in entries}) for kind in ("method", "backbone", "dataset")]
        told = printable("; ".join(", ".join(names) for names in kinds))
        lines.append(f"- {side.title}: {told or 'no trials'}")
    return "\n".join(lines)


def _done_alike(first: Entry, second: Entry) -> bool:
    """Whether both are done, with a score or both without because they are for costs alone."""
    scored = [score(entry) is not None for entry in (first, second)]
    return all(scored) or all(entry.result is not None and entry.result.for_costs for entry in (first, second))


def _together(paired: Sequence[tuple[Entry, Entry]]) -> SuiteResults:
    """Both sides as one suite, labels apart by their marks."""
    entries = (
        replace(entry, method=f"{mark}{entry.method}")
        for pair in paired
        for mark, entry in zip(MARKS, pair, strict=True)
    )
    return SuiteResults("", "", "", tuple(entries))


def _plain(key: RowKey) -> RowKey:
    return key._replace(method=key.method[len(MARKS[0]) :])


def _opposite(key: RowKey) -> RowKey:
    return key._replace(method=MARKS[0] + _plain(key).method)


def _items(
    first: Side, second: Side, paired: Sequence[tuple[Entry, Entry]]
) -> dict[tuple[RowKey, str], Mapping[Run, Predictions]]:
    """Predictions of every marked row on every dataset, each read where its side lies."""
    found: dict[tuple[RowKey, str], Mapping[Run, Predictions]] = {}
    for number, (mark, side) in enumerate(zip(MARKS, (first, second), strict=True)):
        known = evidence.predictions(side.results)
        for key, entries in rows_of(pair[number] for pair in paired).items():
            for dataset in {entry.dataset for entry in entries}:
                own = [entry for entry in entries if entry.dataset == dataset]
                found[key._replace(method=mark + key.method), dataset] = evidence.by_run(own, known)
    return found


def _protocols(paired: Sequence[tuple[Entry, Entry]]) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """By method, backbone and dataset, in which settings of the protocol the sides differ."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for first, second in paired:
        if first.result is not None and second.result is not None:
            both = [provenance.protocol_of(first.result), provenance.protocol_of(second.result)]
            found.setdefault((first.method, first.backbone, first.dataset), set()).update(provenance.differing(both))
    return {place: tuple(sorted(fields)) for place, fields in found.items()}


def _same(first: Entry, second: Entry) -> bool:
    a, b = first.result, second.result
    return a is not None and b is not None and (a.id, a.score, a.digests) == (b.id, b.score, b.digests)


def _account(side: Side, own: Mapping[Place, Entry], other: Mapping[Place, Entry]) -> Account:
    named = {place: replace(entry, method=side.method or entry.method) for place, entry in own.items()}
    datasets = sorted({entry.dataset for entry in own.values()})
    return Account(
        title=side.title,
        suite=side.results.name,
        digest=side.results.digest,
        trials=len(own),
        done=sum(entry.result is not None and entry.result.status == "done" for entry in own.values()),
        troubles=troubles(rows_of(named.values()), datasets),
        alone=tuple(entry.name for place, entry in named.items() if place not in other),
    )


def _pairs(
    board: Leaderboard,
    rows: Sequence[tuple[Row, Row]],
    each: Sequence[Against],
    protocols: Mapping[tuple[str, str, str], tuple[str, ...]],
) -> Iterator[Pair]:
    by_place = {(one.method, one.dataset): one for one in each}
    for index, dataset in enumerate(board.datasets):
        for second, first in rows:
            a, b = first.cells[index], second.cells[index]
            if not (a.trials or b.trials):
                continue
            against = by_place.get((second.key, dataset))
            method = _plain(second.key).method
            yield Pair(
                method=method,
                backbone=second.backbone,
                dataset=dataset,
                first=a.summary,
                second=b.summary,
                against=replace(against, method=_plain(against.method), yardstick=_plain(against.yardstick))
                if against is not None
                else None,
                protocol=protocols.get((method, second.backbone, dataset), ()),
                verdict=verdict(against)
                if against is not None
                else f"not compared: {a.headline.title}, {b.headline.title}",
            )


def verdict(against: Against) -> str:
    """Against which noise a difference stands: other seeds, other test items, both, or neither."""
    difference, items = against.difference, against.items
    if difference.mean == 0 and not difference.sd:
        return "no difference"
    over = ["seeds"] if difference.separated else []
    over += ["test items"] if items is not None and _excludes_zero(items.interval) else []
    if over:
        return f"differs over {listed(over)}"
    if difference.n > 1 and difference.sd == 0:
        return "the same on every seed: no spread to judge by"
    return "not shown" if difference.n > 1 else "not shown (one seed)"


def _excludes_zero(interval: Interval | None) -> bool:
    return interval is not None and (interval.low > 0 or interval.high < 0)


def _costs(rows: Sequence[tuple[Row, Row]]) -> Iterator[Cost]:
    for second, first in sorted(rows, key=lambda pair: pair[0].key):
        for column in COLUMNS:
            a, b = first.cost(column.key).value, second.cost(column.key).value
            if a is not None or b is not None:
                ratio = b / a if a and b is not None else None
                yield Cost(_plain(second.key).method, second.backbone, column.key, a, b, ratio)


def _notes(
    each: Sequence[Against],
    overall: Sequence[AgainstAll],
    protocols: Mapping[tuple[str, str, str], tuple[str, ...]],
    paired: Sequence[tuple[Entry, Entry]],
) -> Iterator[str]:
    """What stands in the way of the numbers, and what they rest on."""
    fields = sorted({field for differing in protocols.values() for field in differing})
    if fields:
        names = listed([provenance.MEANINGS.get(field, field) for field in fields])
        yield f"≠ The sides follow different protocols ({names}): a difference is of all that changed, not of a method."
    contents: Counter[str] = Counter()
    for a, b in paired:
        if (
            a.result is not None
            and b.result is not None
            and a.result.digests.get("data") != b.result.digests.get("data")
        ):
            contents[a.dataset] += 1
    for dataset, number in sorted(contents.items()):
        yield f"The content of {dataset} is not the same on both sides (digests differ in {number} pairs)."
    if any(one.difference.n == 1 for one in each):
        yield "One common seed has no spread: nothing is said of other training runs."
    yield from about(each, overall)
