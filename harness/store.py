"""Results on disk: the only truth. One folder per trial, one result.json written last and atomically.

    OUTPUT/trials/ID/    what one trial leaves (harness/trial_folder.py)
    OUTPUT/SUITE/        suite.yaml, suite.json (which trials, by which labels), report/

A trial's folder is named by its identity, so suites that share a trial share its result.
"""

from __future__ import annotations

import contextlib
import gc
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.atomic import read_json, write_atomically
from harness.errors import UserError
from harness.holder import Holder, myself
from harness.result import Result, trial_name
from harness.trial_folder import TrialFolder, read_result

LISTED = 5
"""Trials that an error names."""


@dataclass(frozen=True)
class Entry:
    """One trial of a suite, by the suite's labels, with its result when there is one."""

    id: str
    method: str
    backbone: str
    dataset: str
    seed: int
    reference: bool
    result: Result | None
    fold: int | None = None

    @property
    def name(self) -> str:
        """For people: `lora point_mae sweethome12 seed 0`."""
        return trial_name(self.method, self.backbone, self.dataset, seed=self.seed, fold=self.fold)


@dataclass(frozen=True)
class SuiteResults:
    """All that a report needs: a suite and the results of its trials, in the suite's order."""

    name: str
    description: str
    digest: str
    entries: tuple[Entry, ...]
    command: tuple[str, ...] = ()
    """Arguments of the `harness run` that ran it last, less its selections."""
    chosen: frozenset[str] = frozenset()
    """Trials that this run was asked for."""
    driver: Holder | None = None
    """The process of this run, alive or not."""
    output: Path | None = field(default=None, compare=False, repr=False)
    """The results folder, where trials left their curves, predictions and logs; None: there are the results alone."""
    yardstick: str | None = None
    """The method that others are compared with, by the suite's label; None leaves the choice to the report."""
    homes: Mapping[str, Path] = field(default_factory=dict, compare=False, repr=False)
    """The results folders of trials that do not lie in `output`, by identity."""
    notices: tuple[str, ...] = ()
    """What whoever put the results together has to say to a reader."""
    site: bool = False
    """Whether reports go to a public site: they lead back to its index, and logs stay at home."""
    worked_out: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)
    """What one report works out of the results and the next one need not again."""

    def folder(self, entry: Entry) -> TrialFolder | None:
        """What a trial left, where the results folder is at hand."""
        home = self.homes.get(entry.id, self.output)
        return TrialFolder(home / "trials" / entry.id) if home is not None else None


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Without the garbage collector, which looks again and again through results that all stay: a third of the time.

    Afterwards it passes over them, also in processes that are forked, where its looks would copy them.
    """
    was = gc.isenabled()
    gc.unfreeze()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()


class Store:
    """An output folder."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self._trials = output / "trials"

    def prepare(self) -> None:
        """Make the folder; raises UserError when it cannot be written."""
        try:
            self._trials.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.output):
                pass
        except OSError as error:
            raise UserError(
                f"{self.output}: results cannot be written there ({error.strerror}); choose another --output"
            ) from None

    def trial(self, identity: str) -> TrialFolder:
        """The folder of a trial."""
        return TrialFolder(self._trials / identity)

    def suite_folder(self, name: str) -> Path:
        """Where a suite keeps its copy and its reports."""
        return self.output / name

    def write_suite(
        self,
        *,
        name: str,
        description: str,
        digest: str,
        text: str,
        trials: Iterable[dict[str, Any]],
        command: Sequence[str] = (),
        chosen: Sequence[str] = (),
    ) -> None:
        """Keep the suite and the list of its trials: {id, method, backbone, dataset, seed, fold, reference}.

        `command` are the arguments of the run, less its selections; `chosen` the trials that these leave. This
        process is remembered as the run's.
        """
        folder = self.suite_folder(name)
        write_atomically(folder / "suite.yaml", text)
        index = {
            "format": 1,
            "name": name,
            "description": description,
            "digest": digest,
            "command": list(command),
            "chosen": list(chosen),
            "driver": myself(),
            "trials": list(trials),
        }
        write_atomically(folder / "suite.json", json.dumps(index, indent=1))

    def find(self, prefix: str) -> TrialFolder:
        """The folder of the trial whose identity begins so. Raises UserError for none or several."""
        home = self._trials
        if not home.is_dir():
            raise UserError(f"{home}: no such folder; --output (`output=`) names where the trial's suite ran")
        known = sorted(path.name for path in home.iterdir() if path.is_dir())
        found = [name for name in known if name.startswith(prefix)]
        if prefix in found or len(found) == 1:
            return self.trial(prefix if prefix in found else found[0])
        if found:
            lines = [f"{home}: '{prefix}' begins {len(found)} trials; add digits", *self._listed(found)]
        else:
            close = get_close_matches(prefix, [*known, *(name[: len(prefix)] for name in known)], n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            lines = [f"{home}: no trial '{prefix}'{hint}", *self._listed(known)]
        raise UserError("\n".join(lines))

    def _listed(self, names: Sequence[str]) -> list[str]:
        """Some trials, a line each."""
        lines = []
        for name in names[:LISTED]:
            result = self.trial(name).result()
            spec = result.spec if result is not None else {}
            words = [spec.get(key, {}).get("name", "") for key in ("method", "backbone", "dataset")]
            seed = f"seed {spec['seed']}" if "seed" in spec else ""
            status = result.status if result is not None else "no result"
            lines.append(" ".join(filter(None, ["-", name, spec.get("baseline"), *words, seed, f"({status})"])))
        return [*lines, *([f"- and {len(names) - LISTED} more"] if len(names) > LISTED else [])]

    def entry(self, identity: str) -> Entry | None:
        """A trial by the labels of a suite here that lists it; no other result is read."""
        for suite in self.suites():
            index = read_json(self.suite_folder(suite) / "suite.json")
            with contextlib.suppress(KeyError, TypeError):  # a damaged index lists nothing
                for row in index["trials"]:
                    if row["id"] == identity:
                        return Entry(**row, result=self.trial(identity).result())
        return None

    def suites(self) -> Iterator[str]:
        """Names of the suites that ran here."""
        for path in sorted(self.output.glob("*/suite.json")):
            yield path.parent.name

    def stamp(self, suite: str) -> tuple[object, ...]:
        """Another one whenever the suite's list or a result has changed; reads no result."""
        path = self.suite_folder(suite) / "suite.json"
        index = read_json(path)
        listed = index.get("trials") if isinstance(index, dict) else None
        names = [entry.get("id") for entry in listed or () if isinstance(entry, dict)]
        files = [path, *(self.output / "trials" / str(name) / "result.json" for name in names)]
        return tuple(_seen(file) for file in files)

    def load(self, name: str) -> SuiteResults:
        """A suite's results. Raises UserError when it never ran here."""
        index = read_json(self.suite_folder(name) / "suite.json")
        if not isinstance(index, dict):
            known = ", ".join(self.suites()) or "none yet"
            raise UserError(f"{self.output}: holds no results of a suite '{name}' (found: {known})")
        try:
            with _no_collection():
                entries = tuple(
                    Entry(**entry, result=read_result(f"{self._trials}/{entry['id']}", entry["id"]))
                    for entry in index["trials"]
                )
            return SuiteResults(
                name=index["name"],
                description=index["description"],
                digest=index["digest"],
                entries=entries,
                command=tuple(index.get("command", ())),
                chosen=frozenset(index.get("chosen", ())),
                driver=Holder.model_validate(index["driver"]) if "driver" in index else None,
                output=self.output,
            )
        except (KeyError, TypeError, ValidationError):
            path = self.suite_folder(name) / "suite.json"
            raise UserError(f"{path}: is damaged; `harness run` of the suite writes it anew") from None


def _seen(file: Path) -> tuple[int, int, int] | None:
    """Number, time of change and bytes of a file; None when there is none."""
    try:
        found = file.stat()
    except (OSError, ValueError):
        return None
    return (found.st_ino, found.st_mtime_ns, found.st_size)
