"""The leaderboard for programs: a tidy CSV and the whole structure as JSON. Fractions, bytes and seconds as stored."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from harness.atomic import write_atomically
from harness.headline import ACCURACY, HEADLINES, Headline
from harness.result import SECTIONS, Result
from harness.store import Entry, SuiteResults
from reports.build import leaderboard
from reports.columns import ASIDES, COLUMNS
from reports.comparison import OVERALL, RowKey
from reports.leaderboard import Cell, Leaderboard, Row
from reports.statistics import Summary

FORMAT = 1
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins so for a formula."""


def write_csv(results: SuiteResults, path: Path) -> None:
    """One line per method x backbone x dataset, and one with dataset `overall` per method x backbone."""
    rows = tidy_rows(leaderboard(results))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(_empty_row()), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_value(value) for key, value in row.items()} for row in rows)
    write_atomically(path, text.getvalue())


def write_json(results: SuiteResults, path: Path) -> None:
    """The whole leaderboard, and one entry per trial; numbers that do not exist are null."""
    board = leaderboard(results)
    trials = [_trial(entry) for entry in sorted(results.entries, key=_order)]
    lines = [f'"format": {FORMAT}', f'"leaderboard": {_json(jsonable(board))}']
    lines.append('"trials": [\n' + ",\n".join(map(_json, trials)) + "\n]")
    write_atomically(path, "{\n" + ",\n".join(lines) + "\n}\n")


def _json(value: Any) -> str:
    """On one line, with null in place of numbers that JSON does not know."""
    return to_json(value, inf_nan_mode="null").decode()


def tidy_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """The lines of the CSV, in the order of the leaderboard. Costs of a dataset's line are of its own trials."""
    return [line for row in board.rows for line in (*(_line(board, row, c) for c in row.cells), _line(board, row))]


def _empty_row() -> dict[str, Any]:
    keys = [
        "suite",
        "digest",
        "method",
        "backbone",
        "variant",
        "reference",
        "dataset",
        "protocol",
        "trials",
        "n",
    ]
    keys += ["missing", "failed", "failures", "metric"]
    keys += [f"{ACCURACY.key}_{part}" for part in ("mean", "sd", "low", "high")]
    keys += ["interval", "standing", *(f"{ACCURACY.mean_key}_{part}" for part in ("mean", "sd"))]
    keys += ["seeds", "folds", "correct", "total"]
    keys += [f"{headline.key}_{part}" for headline in HEADLINES.values() for part in ("mean", "sd", "low", "high")]
    keys += [f"{headline.mean_key}_{part}" for headline in HEADLINES.values() for part in ("mean", "sd")]
    keys += [f"{aside.key}_{part}" for aside in ASIDES for part in ("mean", "sd", "n")] + ["votes"]
    keys += [name for column in COLUMNS for name in (column.name, f"{column.name}_reason")]
    return dict.fromkeys([*keys, "recipe", "notes"])


def _line(board: Leaderboard, row: Row, cell: Cell | None = None) -> dict[str, Any]:
    cells = row.cells if cell is None else (cell,)
    failed = [(status, number) for c in cells for status, number in c.failures]
    headline = cell.headline if cell is not None else board.measure
    line = (
        _empty_row()
        | {"n": 0}
        | {
            "suite": board.name,
            "digest": board.digest,
            "method": row.method,
            "backbone": row.backbone,
            "variant": row.key.variant,
            "reference": row.reference,
            "dataset": cell.dataset if cell is not None else OVERALL,
            "protocol": cell.protocol if cell is not None else None,
            "trials": sum(c.trials for c in cells),
            "missing": sum(c.missing for c in cells),
            "failed": sum(number for _, number in failed),
            "failures": " ".join(f"{s}:{sum(n for t, n in failed if t == s)}" for s in sorted({s for s, _ in failed})),
            "metric": headline.key if headline is not None else None,
            "standing": cell.standing if cell is not None else row.standing,
            "recipe": row.recipe,
            "notes": " ".join(row.notes),
        }
    )
    if headline is not None:
        line |= _summary(headline, cell.summary if cell is not None else row.overall)
    if cell is not None:
        line |= {
            f"{cell.headline.mean_key}_mean": cell.class_mean.mean if cell.class_mean is not None else None,
            f"{cell.headline.mean_key}_sd": cell.class_mean.sd if cell.class_mean is not None else None,
            "seeds": " ".join(str(seed.seed) for seed in cell.seeds),
            "folds": " ".join(str(seed.fold) for seed in cell.seeds if seed.fold is not None),
            "correct": " ".join("" if seed.correct is None else str(seed.correct) for seed in cell.seeds),
            "total": " ".join("" if seed.total is None else str(seed.total) for seed in cell.seeds),
        }
        for score in cell.asides:
            numbers = {"mean": score.summary.mean, "sd": score.summary.sd, "n": score.summary.n}
            line |= {f"{score.key}_{part}": value for part, value in numbers.items()}
            line["votes"] = " ".join(map(str, score.votes)) or line["votes"]
    for column, cost in zip(COLUMNS, cell.costs if cell is not None else row.costs, strict=True):
        line |= {column.name: cost.value, f"{column.name}_reason": cost.reason}
    return line


def _summary(headline: Headline, summary: Summary | None) -> dict[str, Any]:
    if summary is None:
        return {"n": 0}
    interval = summary.interval
    return {
        "n": summary.n,
        f"{headline.key}_mean": summary.mean,
        f"{headline.key}_sd": summary.sd,
        f"{headline.key}_low": interval.low if interval is not None else None,
        f"{headline.key}_high": interval.high if interval is not None else None,
        "interval": interval.kind if interval is not None else None,
    }


def csv_value(value: Any) -> str:
    """Numbers in full precision; text that a spreadsheet would run gets an apostrophe in front."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    return f"'{text}" if text.lstrip(" \n").startswith(FORMULA_STARTS) else text


def _order(entry: Entry) -> tuple[object, ...]:
    return (entry.method, entry.backbone, entry.dataset, entry.seed, entry.fold or 0, entry.id)


def _trial(entry: Entry) -> dict[str, Any]:
    """One trial: its labels and, where it has one, its result without the specification."""
    labels = {
        "id": entry.id,
        "method": entry.method,
        "backbone": entry.backbone,
        "dataset": entry.dataset,
        "seed": entry.seed,
        "fold": entry.fold,
        "reference": entry.reference,
        "status": "missing" if entry.result is None else entry.result.status,
    }
    return labels | (_numbers(entry.result) if entry.result is not None else {})


def _numbers(result: Result) -> dict[str, Any]:
    parts = {*SECTIONS, "digests", "error", "reasons"}
    return result.model_dump(mode="python", include=parts) | {"attempts": len(result.attempts)}


def jsonable(value: Any) -> Any:
    """The value in dictionaries and lists, with null in place of numbers that JSON does not know.

    Dataclasses and what names a row become dictionaries of their fields; a dictionary's keys stay as they are.
    """
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is str or kind is int or value is None:
        return value
    if kind is tuple or kind is list:
        return [jsonable(item) for item in value]
    if kind is dict:
        return {key: jsonable(item) for key, item in value.items()}
    if is_dataclass(kind):
        return {field.name: jsonable(getattr(value, field.name)) for field in fields(kind)}
    return value._asdict() if kind is RowKey else value
