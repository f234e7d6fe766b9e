"""Trials without a number: which, and what they said, the same ones together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.result import Result
from harness.store import Entry
from reports.cells import lacking, score
from reports.comparison import RowKey
from reports.leaderboard import Trouble, repeat_name

ERROR_LENGTH = 300


def troubles(grouped: Mapping[RowKey, Sequence[Entry]], datasets: Sequence[str]) -> tuple[Trouble, ...]:
    """Trials without a number, those of one method and dataset with the same status and message together."""
    found: dict[tuple[RowKey, str, str, str], list[tuple[int, int | None]]] = {}
    for key, trials in sorted(grouped.items()):
        for trial in trials:
            if score(trial) is None and not (trial.result is not None and trial.result.for_costs):
                found.setdefault((key, trial.dataset, *_trouble(trial.result)), []).append((trial.seed, trial.fold))
    return tuple(
        Trouble(
            key.method, key.backbone, dataset, tuple(repeat_name(*repeat) for repeat in sorted(seeds)), status, message
        )
        for (key, dataset, status, message), seeds in found.items()
    )


def _trouble(result: Result | None) -> tuple[str, str]:
    """Status and message of a trial without a number."""
    if result is None:
        return "missing", ""
    if result.status == "done":
        return lacking(result), result.reasons.get(f"metrics.{result.headline.key}", "")
    return result.status, _message(result.error or "")


def _message(error: str) -> str:
    """An error on one line; of a traceback, its last line."""
    lines = [line for line in error.splitlines() if line.strip()]
    if lines and lines[0].startswith("Traceback"):
        lines = lines[-1:]
    text = " ".join(" ".join(lines).split())
    return text if len(text) <= ERROR_LENGTH else f"{text[: ERROR_LENGTH - 1]}…"
