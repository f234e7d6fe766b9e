"""One row per trial, for spreadsheets and data frames: CSV and Parquet with the same columns. Units as stored."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from harness.atomic import write_atomically
from harness.reporter import Reporter
from harness.result import Compute, Memory, Metrics, Parameters, Result, Storage, Time
from harness.store import Entry, SuiteResults
from reports.provenance import plain, section
from reports.tidy import csv_value

PARTS: Mapping[str, type[BaseModel]] = {
    "metrics": Metrics,
    "parameters": Parameters,
    "memory": Memory,
    "time": Time,
    "compute": Compute,
    "storage": Storage,
}
LABELS = ("id", "suite", "method", "backbone", "dataset", "seed", "fold", "reference", "status", "task")
SETTINGS = {
    "epochs": ("train", "epochs"),
    "batch_size": ("train", "batch_size"),
    "learning_rate": ("train", "learning_rate"),
    "augment": ("train", "augment"),
    "points": ("data", "points"),
    "selection": ("protocol", "selection"),
    "vote": ("protocol", "vote"),
    "activation_checkpointing": ("resources", "activation_checkpointing"),
}
MACHINE = ("gpu", "cpu", "precision", "torch", "harness", "git")
LONGEST = 2_000
"""Characters of an error; the trial's folder has all of it."""
WHOLE = ("seed", "fold", "epochs", "batch_size", "points", "vote", "attempts")


def fields() -> dict[str, type]:
    """Every column and the kind of its values, in order."""
    found: dict[str, type] = dict.fromkeys(LABELS, str) | {"reference": bool}
    for part, model in PARTS.items():
        for name, field in model.model_fields.items():
            kinds = set(get_args(field.annotation)) - {type(None)}
            if kinds <= {int, float}:
                found[f"{part}.{name}"] = int if kinds == {int} else float
    found |= dict.fromkeys(SETTINGS, str) | {"learning_rate": float}
    found |= dict.fromkeys(MACHINE, str) | {"attempts": int, "error": str}
    return found | dict.fromkeys(WHOLE, int)


def rows(results: SuiteResults) -> list[dict[str, Any]]:
    """A dictionary per trial, all with the same keys; None where there is no value."""
    kinds = fields()
    return [_row(results.name, entry, kinds) for entry in sorted(results.entries, key=_order)]


def _order(entry: Entry) -> tuple[object, ...]:
    return (entry.method, entry.backbone, entry.dataset, entry.seed, entry.fold or 0, entry.id)


def _row(suite: str, entry: Entry, kinds: Mapping[str, type]) -> dict[str, Any]:
    result = entry.result
    row: dict[str, Any] = dict.fromkeys(kinds)
    row |= {name: getattr(entry, name) for name in ("id", "method", "backbone", "dataset", "seed", "fold", "reference")}
    row |= {"suite": suite, "status": "missing" if result is None else result.status}
    return row | (_measured(result, kinds) if result is not None else {})


def _measured(result: Result, kinds: Mapping[str, type]) -> dict[str, Any]:
    found: dict[str, Any] = {"task": result.task, "attempts": len(result.attempts)}
    for part in PARTS:
        values = vars(getattr(result, part))
        found |= {key: value for name, value in values.items() if (key := f"{part}.{name}") in kinds}
    for name, (place, key) in SETTINGS.items():
        found[name] = _as(section(result.spec, place).get(key), kinds[name])
    known = {name: result.environment[name] for name in MACHINE if result.environment.get(name) is not None}
    found |= {name: plain(value) for name, value in known.items()}
    return found | {"error": result.error[:LONGEST] if result.error is not None else None}


def _as(value: Any, kind: type) -> Any:
    """The value as that kind; None for what is none of it, which a file of another machine may hold."""
    if kind is str:
        return None if value is None else plain(value)
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return kind(value) if known and (kind is float or value == int(value)) else None


def write_csv(results: SuiteResults, path: Path) -> None:
    """One CSV file; text that a spreadsheet would run gets an apostrophe in front."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields())
    writer.writerows([csv_value(value) for value in row.values()] for row in rows(results))
    write_atomically(path, text.getvalue())


def write_parquet(results: SuiteResults, path: Path) -> None:
    """One Parquet file with typed columns."""
    import pyarrow
    from pyarrow import parquet

    types = {str: pyarrow.string(), bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in fields().items()])
    content = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows(results), schema=schema), content, compression="zstd")
    write_atomically(path, content.getvalue())


CSV = Reporter(write_csv, "trials.csv")
PARQUET = Reporter(write_parquet, "trials.parquet")
"""The entry points."""
