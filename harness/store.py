"""Results on disk: the only truth. One folder per trial, one result.json written last and atomically.

    OUTPUT/trials/ID/    spec.json, running.json, metrics.jsonl, predictions.npz, adapter/, log.txt, result.json
    OUTPUT/SUITE/        suite.yaml, suite.json (which trials, by which labels), report/

A trial's folder is named by its identity, so suites that share a trial share its result.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import UserError

RESULT_FORMAT = 1
Status = Literal["done", "failed", "oom", "diverged", "timeout", "lost", "interrupted"]


class Record(BaseModel):
    """A part of a result. Unknown keys of a newer harness are ignored when reading."""

    model_config = ConfigDict(extra="ignore")


class Metrics(Record):
    """Fractions 0 to 1 and counts (docs/protocol.md)."""

    accuracy: float | None = None
    class_accuracy: float | None = None
    correct: int | None = None
    total: int | None = None
    loss: float | None = None
    validation_accuracy: float | None = None
    accuracy_best_on_test: float | None = None
    accuracy_vote: float | None = None


class Parameters(Record):
    """Counts by origin."""

    added: int | None = None
    unfrozen: int | None = None
    head: int | None = None
    trainable: int | None = None
    total: int | None = None


class Memory(Record):
    """Bytes."""

    train_peak: int | None = None
    train_reserved: int | None = None
    device: int | None = None
    eval_peak: int | None = None
    total_peak: int | None = None
    estimated: int | None = None
    host_peak: int | None = None


class Time(Record):
    """Seconds; throughput in samples per second."""

    step: float | None = None
    data: float | None = None
    throughput: float | None = None
    evaluate: float | None = None
    total: float | None = None
    startup: float | None = None


class Compute(Record):
    """FLOPs; joules."""

    flops_forward: int | None = None
    flops_train: int | None = None
    energy: float | None = None


class Storage(Record):
    """Bytes."""

    adapter: int | None = None


class Result(Record):
    """What one trial came to. A failure is a result too. Where a value is null, `reasons` says why."""

    format: Literal[1] = 1
    id: str
    spec: dict[str, Any]
    status: Status
    metrics: Metrics = Metrics()
    parameters: Parameters = Parameters()
    memory: Memory = Memory()
    time: Time = Time()
    compute: Compute = Compute()
    storage: Storage = Storage()
    environment: dict[str, Any] = {}
    digests: dict[str, str] = {}
    """SHA-256 of the data, weights and final trainable state really used."""
    attempts: list[dict[str, Any]] = []
    """One entry per attempt: started, ended, status, error."""
    error: str | None = None
    reasons: dict[str, str] = {}


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part; survives a power cut."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """A JSON file's content, or None when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class TrialFolder:
    """Where one trial keeps its files."""

    path: Path

    @property
    def identity(self) -> str:
        """The trial's identity: the folder's name."""
        return self.path.name

    def result(self) -> Result | None:
        """The result, or None when there is none, or it is damaged or of another trial."""
        raw = read_json(self.path / "result.json")
        try:
            result = Result.model_validate(raw) if isinstance(raw, dict) else None
        except ValidationError:
            return None
        return result if result is not None and result.id == self.identity else None

    def write_result(self, result: Result) -> None:
        """Write result.json, last of all, and take away the running mark."""
        write_atomically(self.path / "result.json", result.model_dump_json(indent=1))
        (self.path / "running.json").unlink(missing_ok=True)

    def begin(self, spec: dict[str, Any]) -> None:
        """Make the folder and write the specification; files of an earlier attempt go."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "predictions.npz", "running.json", "result.json"):
            (self.path / name).unlink(missing_ok=True)
        write_atomically(self.path / "spec.json", json.dumps(spec, indent=1))

    def log_metrics(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl: {"epoch": 0, "train/loss": ..., ...}."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl."""
        rows = []
        try:
            lines = (self.path / "metrics.jsonl").read_text().splitlines()
        except OSError:
            return []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows

    def mark_running(self, mark: dict[str, Any]) -> None:
        """Say who works here: host, pid, start, attempt, epochs done and to do."""
        write_atomically(self.path / "running.json", json.dumps(mark))

    def running(self) -> dict[str, Any] | None:
        """The running mark, if any."""
        mark = read_json(self.path / "running.json")
        return mark if isinstance(mark, dict) else None

    def write_predictions(self, *, prediction: npt.NDArray[np.integer], label: npt.NDArray[np.integer]) -> None:
        """Per-item test predictions, ordered by item index; int16."""
        with tempfile.NamedTemporaryFile(dir=self.path, delete=False) as file:
            np.savez_compressed(file, prediction=prediction.astype(np.int16), label=label.astype(np.int16))
        Path(file.name).replace(self.path / "predictions.npz")


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
