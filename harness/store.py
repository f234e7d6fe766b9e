"""Results on disk: the only truth. One folder per trial, one result.json written last and atomically.

    OUTPUT/trials/ID/    what one trial leaves (harness/trial_folder.py)
    OUTPUT/SUITE/        suite.yaml, suite.json (which trials, by which labels), report/

A trial's folder is named by its identity, so suites that share a trial share its result.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.atomic import read_json, write_atomically
from harness.errors import UserError
from harness.result import Result
from harness.trial_folder import TrialFolder


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


@dataclass(frozen=True)
class SuiteResults:
    """All that a report needs: a suite and the results of its trials, in the suite's order."""

    name: str
    description: str
    digest: str
    entries: tuple[Entry, ...]


class Store:
    """An output folder."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def prepare(self) -> None:
        """Make the folder; raises UserError when it cannot be written."""
        try:
            (self.output / "trials").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.output):
                pass
        except OSError as error:
            raise UserError(
                f"{self.output}: results cannot be written there ({error.strerror}); choose another --output"
            ) from None

    def trial(self, identity: str) -> TrialFolder:
        """The folder of a trial."""
        return TrialFolder(self.output / "trials" / identity)

    def suite_folder(self, name: str) -> Path:
        """Where a suite keeps its copy and its reports."""
        return self.output / name

    def write_suite(
        self, *, name: str, description: str, digest: str, text: str, trials: Iterable[dict[str, Any]]
    ) -> None:
        """Keep the suite and the list of its trials: {id, method, backbone, dataset, seed, reference}."""
        folder = self.suite_folder(name)
        write_atomically(folder / "suite.yaml", text)
        index = {
            "format": 1,
            "name": name,
            "description": description,
            "digest": digest,
            "trials": list(trials),
        }
        write_atomically(folder / "suite.json", json.dumps(index, indent=1))

    def suites(self) -> Iterator[str]:
        """Names of the suites that ran here."""
        for path in sorted(self.output.glob("*/suite.json")):
            yield path.parent.name

    def load(self, name: str) -> SuiteResults:
        """A suite's results. Raises UserError when it never ran here."""
        index = read_json(self.suite_folder(name) / "suite.json")
        if not isinstance(index, dict):
            known = ", ".join(self.suites()) or "none yet"
            raise UserError(f"{self.output}: holds no results of a suite '{name}' (found: {known})")
        entries = tuple(Entry(**entry, result=self.trial(entry["id"]).result()) for entry in index["trials"])
        return SuiteResults(index["name"], index["description"], index["digest"], entries)
