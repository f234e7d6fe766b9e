"""The two sides of `harness compare`: results folders, suites in them, or methods of one suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import UserError, did_you_mean
from harness.store import Store, SuiteResults


@dataclass(frozen=True)
class Side:
    """What is compared: a suite's results, or a method's with a label on its trials that both sides share."""

    title: str
    results: SuiteResults
    method: str | None = None
    """The method whose trials have that label."""


@dataclass(frozen=True)
class _Place:
    """A suite in a results folder; None where the folder alone was named."""

    asked: str
    folder: Path
    suite: str | None


def sides(first: str, second: str, *, output: Path, suite: str | None) -> tuple[Side, Side]:
    """What two names mean: FOLDER, FOLDER:SUITE, a suite of `output`, or two methods of its suite.

    Raises UserError for a name that is none of these, for a folder of several suites, and for the same thing twice.
    """
    if suite is not None:
        return _methods(first, second, output, suite)
    found = [_place(name, output) for name in (first, second)]
    places = [place for place in found if place is not None]
    if len(places) == 2:
        return _suites(places[0], places[1])
    here = list(Store(output).suites())
    if not places and len(here) == 1:
        return _methods(first, second, output, here[0])
    unknown = [name for name, place in zip((first, second), found, strict=True) if place is None]
    raise UserError("\n".join(_explained(name, output, here) for name in unknown))


def _explained(name: str, output: Path, here: Sequence[str]) -> str:
    folder = next((path for path in (Path(name), Path(name.rpartition(":")[0] or name)) if path.is_dir()), None)
    if folder is not None:
        return f"{name}: is a folder, but no suite ran into it; name the --output of a `harness run`"
    wanted = "FOLDER, FOLDER:SUITE, or a suite"
    if not here:
        return f"{name}: no results are found there; name {wanted} of {output} (which holds none)"
    methods = " (two methods: --suite SUITE)" if len(here) > 1 else ""
    return f"{name}: no results are found there; name {wanted} of {output}; {did_you_mean(name, here)}{methods}"


def _place(name: str, output: Path) -> _Place | None:
    """Where the results of that name lie; None where nothing is called so."""
    path, (folder, _, suite) = Path(name), name.rpartition(":")
    if any(Store(path).suites()):
        return _Place(name, path, None)
    if (path / "suite.json").is_file():
        return _Place(name, path.resolve().parent, path.resolve().name)
    if folder and any(Store(Path(folder)).suites()):
        return _Place(name, Path(folder), suite)
    return _Place(name, output, name) if name in Store(output).suites() else None


def _suites(first: _Place, second: _Place) -> tuple[Side, Side]:
    held = [[p.suite] if p.suite is not None else list(Store(p.folder).suites()) for p in (first, second)]
    apart = first.folder.resolve() != second.folder.resolve()
    problems = [
        f"{place.asked}: several suites ran there; name one of them: "
        + ", ".join(f"{place.asked}:{suite}" for suite in own)
        for place, own, other in zip((first, second), held, reversed(held), strict=True)
        if len(own) > 1 and not (apart and len(other) == 1 and other[0] in own)
    ]
    if problems:
        raise UserError("\n".join(problems))
    names = [own[0] if len(own) == 1 else other[0] for own, other in zip(held, reversed(held), strict=True)]
    if (first.folder.resolve(), names[0]) == (second.folder.resolve(), names[1]):
        raise UserError(f"{first.asked} and {second.asked} are the same results; name two, or two methods of a suite")
    left, right = (
        Side(place.asked, Store(place.folder).load(str(name)))
        for place, name in zip((first, second), names, strict=True)
    )
    return left, right


def _methods(first: str, second: str, output: Path, suite: str) -> tuple[Side, Side]:
    """Both with one label on their trials, so that they pair."""
    results = Store(output).load(suite)
    known = {entry.method for entry in results.entries if not entry.reference}
    if problems := [
        f"{output}: suite '{suite}' has no method '{name}'; {did_you_mean(name, known)}"
        for name in dict.fromkeys((first, second))
        if name not in known
    ]:
        raise UserError("\n".join(problems))
    if first == second:
        raise UserError(f"{first} and {second} are the same method; name two")
    label = f"{second} − {first}"

    def of(method: str) -> Side:
        entries = (replace(e, method=label) for e in results.entries if e.method == method and not e.reference)
        return Side(method, replace(results, entries=tuple(entries)), method)

    return of(first), of(second)
