"""Results folders of several machines as one suite, for a report: nothing is copied, nothing is written.

A trial is known by its identity and counts once, whoever ran it. Where folders disagree on what it came to, that is
said, and the folder that was named first is believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UserError
from harness.result import Result
from harness.store import Entry, Store, SuiteResults

NAMED = 5
"""Contradictions that are told one by one."""


INPUTS = ("data", "dataset", "weights")
"""Digests that two runs of one trial share; what it trained may differ in its last bits from machine to machine."""


@dataclass(frozen=True)
class _Copy:
    """A trial as one folder has it."""

    number: int
    """Of the folder, from 1 on."""
    output: Path
    entry: Entry

    @property
    def rank(self) -> int:
        """Done before failed before unfinished before nothing at all."""
        result = self.entry.result
        return 3 if result is None else 2 if result.unfinished else 0 if result.status == "done" else 1


def distinct(outputs: Sequence[Path]) -> list[Path]:
    """Results folders as they were named, each once."""
    return list({output.resolve(): output for output in reversed(outputs)}.values())[::-1]


def only_suite(outputs: Sequence[Path]) -> str:
    """The suite that all of these folders hold, if there is but one in all of them. Raises UserError otherwise."""
    held = [list(Store(output).suites()) for output in outputs]
    found = sorted(set().union(*held))
    if len(found) == 1:
        return found[0]
    where = ", ".join(map(str, outputs))
    if not found:
        raise UserError(f"{where}: no suite ran into this folder yet; `harness run SUITE --output {outputs[0]}`")
    raise UserError(f"{where}: several suites ran there, name one: {', '.join(found)}")


def merged(outputs: Sequence[Path], suite: str) -> SuiteResults:
    """The suite's trials of all folders. Raises UserError that names every folder without the suite, or damaged."""
    loaded, problems = [], []
    for output in outputs:
        try:
            loaded.append(Store(output).load(suite))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    copies: dict[str, list[_Copy]] = {}
    for number, (output, results) in enumerate(zip(outputs, loaded, strict=True), start=1):
        for entry in {entry.id: entry for entry in results.entries}.values():
            copies.setdefault(entry.id, []).append(_Copy(number, output, entry))
    believed = {identity: min(found, key=lambda copy: copy.rank) for identity, found in copies.items()}
    digests = list(dict.fromkeys(results.digest for results in loaded))
    return SuiteResults(
        name=loaded[0].name,
        description=next((results.description for results in loaded if results.description), ""),
        digest=" and ".join(digests),
        entries=tuple(copy.entry for copy in believed.values()),
        output=outputs[0],
        homes={identity: copy.output for identity, copy in believed.items()},
        notices=tuple(_notices(loaded, copies, believed, digests)),
    )


def _notices(
    loaded: Sequence[SuiteResults],
    copies: Mapping[str, Sequence[_Copy]],
    believed: Mapping[str, _Copy],
    digests: Sequence[str],
) -> Iterator[str]:
    """What a reader must know of the merger."""
    counts = ", ".join(
        f"{sum(entry.result is not None for entry in results.entries)} of folder {number}"
        for number, results in enumerate(loaded, start=1)
    )
    both = sum(sum(copy.entry.result is not None for copy in found) > 1 for found in copies.values())
    shared = f"; {both} of them {'was' if both == 1 else 'were'} run in several and counted once" if both else ""
    yield f"Put together from {len(loaded)} results folders: results of {counts}{shared}."
    if len(digests) > 1:
        yield f"The folders hold different versions of the suite ({', '.join(digests)}); trials of all are listed."
    mended = sum(believed[name].rank == 0 and any(copy.rank == 1 for copy in found) for name, found in copies.items())
    if mended:
        yield f"Trials that failed in one folder and are done in another: {mended}; those that are done are counted."
    told = [words for name, found in copies.items() if (words := _contradiction(believed[name], found))]
    yield from told[:NAMED]
    if len(told) > NAMED:
        yield f"{len(told) - NAMED} more trials came out differently in different folders."


def _contradiction(believed: _Copy, found: Sequence[_Copy]) -> str:
    """In which folders a trial came out otherwise than believed; empty where there is none."""
    first = believed.entry.result
    others = [copy for copy in found if copy.rank == 0 and copy is not believed]
    if first is None or first.status != "done":
        return ""
    against = [
        copy for copy in others if copy.entry.result is not None and _outcome(copy.entry.result) != _outcome(first)
    ]
    if not against:
        return ""
    told = ", ".join(
        f"{_said(copy.entry.result, first)} in folder {copy.number}" for copy in against if copy.entry.result
    )
    return (
        f"{believed.entry.name} came out differently: {_said(first, None)} in folder {believed.number}, {told}; "
        f"folder {believed.number} is counted."
    )


def _outcome(result: Result) -> tuple[object, ...]:
    """What must agree for two runs to be the same trial run twice."""
    return (result.score, result.metrics.correct, result.metrics.total, [result.digests.get(key) for key in INPUTS])


def _said(result: Result, first: Result | None) -> str:
    """A score in percent; beside an equal one, which digests differ from those of the first."""
    if first is not None and result.score == first.score:
        keys = [key for key in INPUTS if result.digests.get(key) != first.digests.get(key)]
        return f"the same with another digest of {', '.join(keys)}" if keys else "the same with other counts"
    return "no score" if result.score is None else f"{result.headline.title} {100 * result.score:.2f} %"
