"""What changed between two sides: settings, protocol, versions, hardware. Of the trials that are done on both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.result import Result
from harness.store import Entry, SuiteResults
from harness.text import flatten
from reports.provenance import (
    ENVIRONMENT,
    MEANINGS,
    VERSIONS,
    Protocol,
    differing,
    environment,
    plain,
    protocol_of,
)

Kind = Literal["protocol", "setting", "content", "version", "hardware"]
NOTHING = "not there"
CONTENTS = ("data", "weights")
"""Digests of files; that of what was trained differs where anything does."""
LEFT_OUT = ("seed", "fold", "method.name", "dataset.name", "dataset.fold")
"""What trials pair by, and so known."""


@dataclass(frozen=True)
class Change:
    """One thing that is not the same on both sides."""

    kind: Kind
    name: str
    first: str
    second: str
    pairs: int | None
    """Pairs of trials in which it is so; None for what is told of a whole side."""


def changes(first: SuiteResults, second: SuiteResults, paired: Sequence[tuple[Entry, Entry]]) -> tuple[Change, ...]:
    """Settings pair by pair, the most frequent first; versions and hardware of all results of a side."""
    results = [(a.result, b.result) for a, b in paired if a.result is not None and b.result is not None]
    return (*_protocols(results), *_settings(results), *_contents(results), *_environments(first, second))


def _protocols(results: Sequence[tuple[Result, Result]]) -> Iterator[Change]:
    found: Counter[tuple[str, str, str]] = Counter()
    for a, b in results:
        mine, others = protocol_of(a), protocol_of(b)
        for field in differing([mine, others]):
            found[MEANINGS.get(field, field), _value(mine, field), _value(others, field)] += 1
    yield from (Change("protocol", *what, number) for what, number in found.most_common())


def _value(protocol: Protocol, field: str) -> str:
    return dict(protocol).get(field, NOTHING)


def _settings(results: Sequence[tuple[Result, Result]]) -> Iterator[Change]:
    """Of the specifications, without what the protocol says."""
    found: Counter[tuple[str, str, str]] = Counter()
    for a, b in results:
        mine, others = flatten(a.spec, show=plain), flatten(b.spec, show=plain)
        told = {*LEFT_OUT, *differing([protocol_of(a), protocol_of(b)])}
        for path in sorted({*mine, *others} - told):
            if mine.get(path) != others.get(path):
                found[path, mine.get(path, NOTHING), others.get(path, NOTHING)] += 1
    yield from (Change("setting", *what, number) for what, number in found.most_common())


def _contents(results: Sequence[tuple[Result, Result]]) -> Iterator[Change]:
    """Of the files that were read: the first digits of their digests."""
    found: Counter[tuple[str, str, str]] = Counter()
    for a, b in results:
        for key in CONTENTS:
            mine, others = a.digests.get(key), b.digests.get(key)
            if mine != others:
                found[key, (mine or NOTHING)[:12], (others or NOTHING)[:12]] += 1
    yield from (Change("content", *what, number) for what, number in found.most_common())


def _environments(first: SuiteResults, second: SuiteResults) -> Iterator[Change]:
    mine, others = (
        dict(environment(entry.result for entry in side.entries if entry.result is not None))
        for side in (first, second)
    )
    for key, name in ENVIRONMENT.items() if mine and others else ():
        values = ["; ".join(side.get(name, ())) or NOTHING for side in (mine, others)]
        if values[0] != values[1]:
            yield Change("version" if key in VERSIONS else "hardware", name, values[0], values[1], None)
