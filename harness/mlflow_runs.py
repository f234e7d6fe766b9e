"""What of a suite goes where in MLflow: one experiment, a parent run, and a child run per trial.

harness.tracking says when and by whom this is called. Runs are found again by their tags (`harness.suite` on the
parent, `harness.trial` on a child), so writing a suite twice changes nothing. Metrics, parameters and tags go out
in batches; `harness.synced`, the digest of what a run shows, is written last, so a write that broke off is repeated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from harness.result import SECTIONS, Result
from harness.store import Entry
from harness.text import cut, flatten
from harness.trial_folder import TrialFolder

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""No telemetry, no chatter, and a server that is away costs seconds. The user's own settings win."""

PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"
KIND, TRAINING = "mlflow.experimentKind", "custom_model_development"
"""Tells MLflow's pages that these are training runs, not calls of language models."""
SUITE = "harness.suite"
TRIAL = "harness.trial"
SYNCED = "harness.synced"

ENDED = {"running": "RUNNING", "done": "FINISHED", "interrupted": "KILLED"}
"""MLflow's word for a trial's status; FAILED for all others."""
MAX_METRICS, MAX_PAIRS, MAX_PARAM, MAX_TAG, MAX_KEY = 800, 100, 6000, 5000, 250
"""Per call, and characters: within the limits of mlflow/utils/validation.py of all 3.x servers."""
BOTH_AT_ONCE = re.compile("unique constraint|duplicate entry", re.IGNORECASE)
"""How sqlite, PostgreSQL and MySQL say that another made the same row meanwhile."""
ATTEMPTS = 5


class Point(NamedTuple):
    """One number; writing it twice leaves one."""

    key: str
    value: float
    timestamp: int
    """Milliseconds."""
    step: int


@dataclass
class Run:
    """What MLflow holds of a run, as far as we know."""

    id: str
    status: str
    tags: dict[str, str]
    params: set[str]
    metrics: set[str]
    logged: set[Point] = field(default_factory=set)
    """Sent by this process, while the trial runs."""


@dataclass(frozen=True)
class TrialState:
    """What a trial's folder says now: it runs, or it has a result."""

    tags: dict[str, str]
    name: str
    spec: dict[str, Any]
    result: Result | None
    digest: str | None
    """SHA-256 of result.json."""
    started: int
    ended: int
    written: int
    """Milliseconds; the time of result.json keeps the numbers of two attempts in their order."""
    alive: bool = False
    """Whether a process works on it."""

    @property
    def status(self) -> str:
        """The result's status, `running`, or `lost` when the process that worked on it is gone."""
        return self.result.status if self.result is not None else "running" if self.alive else "lost"


def read_trial(folder: TrialFolder, entry: Entry, *, suite_digest: str) -> TrialState | None:
    """What there is to show of a trial; None while it neither runs nor has a result."""
    try:
        raw = (folder.path / "result.json").read_bytes()
        written = (folder.path / "result.json").stat().st_mtime_ns // 1_000_000
    except OSError:
        raw, written = b"", 0
    result = folder.result() if raw else None
    lease = folder.lease()
    if result is None and lease is None:
        return None
    tags = {
        TRIAL: entry.id,
        "method": entry.method,
        "backbone": entry.backbone,
        "dataset": entry.dataset,
        "seed": str(entry.seed),
        "suite_digest": suite_digest,
    }
    if entry.fold is not None:
        tags["fold"] = str(entry.fold)
    if entry.reference:
        tags["reference"] = "true"
    name = entry.name
    if result is None:
        assert lease is not None
        alive = folder.running() is not None
        tags |= {"status": "running" if alive else "lost", "attempt": str(lease.attempt)}
        started = int(lease.started * 1000)
        return TrialState(tags, name, _spec(folder), None, None, started, started, started, alive)
    attempts = result.attempts or [{}]
    tags |= {"status": result.status, "attempt": str(attempts[-1].get("attempt", len(attempts)))}
    tags["error"] = ((result.error or "").strip().splitlines() or [""])[0][:MAX_TAG]
    tags[NOTE] = _note(result)
    digest = hashlib.sha256(raw).hexdigest()
    started = _milliseconds(attempts[0].get("started"), written)
    ended = _milliseconds(attempts[-1].get("ended"), written)
    if 0 <= written - ended < 2000:  # `ended` has whole seconds, the file's own time is finer
        ended = written
    return TrialState(tags, name, result.spec, result, digest, started, ended, written)


def connect(uri: str) -> Any:
    """An MlflowClient. Raises sqlite3.Error at once for a file that is no database: MLflow would try for minutes."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if uri.startswith("sqlite:"):
        from sqlalchemy.engine import make_url

        path = Path(make_url(uri).database or ":memory:")
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def open_experiment(client: Any, name: str, *, artifacts: Path | None) -> str:
    """The id of the suite's experiment, made or brought back when need be. `artifacts` None: the server decides.

    Runs that start at once on several machines may all find none: the server lets one of them make it.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        place = artifacts.as_uri() if artifacts else None
        try:
            return str(client.create_experiment(name, artifact_location=place, tags={KIND: TRAINING}))
        except MlflowException:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
    if KIND not in experiment.tags:
        _settled(client.set_experiment_tag, experiment.experiment_id, KIND, TRAINING)
    return str(experiment.experiment_id)


def _settled(call: Callable[..., Any], *given: Any, **named: Any) -> None:
    """The call, again where another machine's got in between.

    Two that write the same tag of one run at once both find none, and the server's database lets one of them make it.
    What was written is then there to be written over; a call of ours may be repeated.
    """
    from mlflow.exceptions import MlflowException

    for attempt in range(ATTEMPTS):
        try:
            call(*given, **named)
            return
        except MlflowException as error:
            if attempt + 1 == ATTEMPTS or not BOTH_AT_ONCE.search(str(error)):
                raise
            time.sleep(random.uniform(0, 0.2))


def find_runs(client: Any, experiment: str) -> dict[str, Run]:
    """The runs we made, by trial identity, and the parent by `harness.suite`. Later duplicates are deleted."""
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    runs: dict[str, Run] = {}
    for run in sorted(found, key=lambda run: (run.info.start_time, run.info.run_id)):
        tags = run.data.tags
        key = tags.get(TRIAL) or (SUITE if SUITE in tags else None)
        if key in runs:
            client.delete_run(run.info.run_id)
        elif key is not None:
            known = set(run.data.params), set(run.data.metrics)
            runs[key] = Run(run.info.run_id, run.info.status, dict(tags), *known)
    return runs


def write_trial(
    client: Any, run: Run, state: TrialState, folder: TrialFolder, *, parent: str, files: bool = True
) -> bool:
    """Bring a child run up to date; returns whether anything had to be done. `files`: attach them too."""
    result = state.result
    digest = _digest(str(state.digest), files=files)
    tags = {key: value for key, value in state.tags.items() if value or key in run.tags}
    tags[PARENT] = parent
    ended = ENDED.get(state.status, "FAILED")
    if result is not None and run.tags.get(SYNCED) in (digest, state.digest) and run.status == ended:
        return _log(client, run, tags=tags)
    changed = False
    if result is None and run.status != ended:
        client.update_run(run.id, status=ended)
        run.status, changed = ended, True
    points = _epochs(folder.metrics(), timestamp=state.started)
    if result is not None:
        points += _final(result, run, timestamp=state.written)
    params = _params(client, run, state.spec, files=files)
    changed = _log(client, run, points=points, params=params, tags=tags) or changed
    if result is None:
        return changed
    for name in ("result.json", "spec.json", "predictions.npz", "log.txt") if files else ():
        if (folder.path / name).is_file():
            client.log_artifact(run.id, str(folder.path / name))
    if files and (folder.path / "adapter").is_dir():
        client.log_artifacts(run.id, str(folder.path / "adapter"), "adapter")
    _end(client, run, ended, state.ended, digest=digest)
    return True


def _digest(digest: str, *, files: bool) -> str:
    """What `harness.synced` says: a run without its files is not the same as one with them."""
    return digest if files else f"{digest} without files"


def write_parent(
    client: Any, run: Run, *, tags: dict[str, str], status: str, ended: int, folder: Path, files: bool = True
) -> bool:
    """Bring the suite's run up to date, with its reports once it is over; returns whether anything had to be done.

    `files`: attach the reports too; the leaderboard is the run's description in any case.
    """
    if status == "RUNNING":
        changed = _log(client, run, tags=tags)
        if run.status != status:
            client.update_run(run.id, status=status)
            run.status, changed = status, True
        return changed
    reports = sorted(path for path in (folder / "report").rglob("*") if path.is_file())
    found = [path for path in (*reports, folder / "suite.yaml") if path.is_file()]
    content = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in found]
    told = [path for name in ("summary.md", "leaderboard.md") if (path := folder / "report" / name) in reports]
    if told:
        tags = tags | {NOTE: _shortened(told[0].read_text())}
    whole = hashlib.sha256(json.dumps([status, ended, tags, content]).encode()).hexdigest()
    digest = _digest(whole, files=files)
    if run.tags.get(SYNCED) in (digest, whole) and run.status == status:
        return False
    _log(client, run, tags=tags)
    if reports and files:
        client.log_artifacts(run.id, str(folder / "report"), "report")
    if folder / "suite.yaml" in found and files:
        client.log_artifact(run.id, str(folder / "suite.yaml"))
    _end(client, run, status, ended, digest=digest)
    return True


def _end(client: Any, run: Run, status: str, ended: int, *, digest: str) -> None:
    client.set_terminated(run.id, status=status, end_time=ended)
    _settled(client.set_tag, run.id, SYNCED, digest)
    run.status = status
    run.tags[SYNCED] = digest
    run.logged.clear()


def _log(
    client: Any,
    run: Run,
    *,
    points: Iterable[Point] = (),
    params: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
) -> bool:
    """Send what the run does not have, in as few calls as the limits allow; returns whether there was any."""
    from mlflow.entities import Metric, Param, RunTag

    fresh = [point for point in points if point not in run.logged]
    new_params = [(key, value) for key, value in (params or {}).items() if key not in run.params]
    new_tags = [(key, value) for key, value in (tags or {}).items() if run.tags.get(key) != value]
    sizes = ((fresh, MAX_METRICS), (new_params, MAX_PAIRS), (new_tags, MAX_PAIRS))
    calls = max(math.ceil(len(items) / size) for items, size in sizes)
    for call in range(calls):
        numbers = slice(call * MAX_METRICS, (call + 1) * MAX_METRICS)
        pairs = slice(call * MAX_PAIRS, (call + 1) * MAX_PAIRS)
        _settled(
            client.log_batch,
            run.id,
            metrics=[Metric(*point) for point in fresh[numbers]],
            params=[Param(*pair) for pair in new_params[pairs]],
            tags=[RunTag(*pair) for pair in new_tags[pairs]],
        )
    run.logged.update(fresh)
    run.metrics.update(point.key for point in fresh)
    run.params.update(key for key, _ in new_params)
    run.tags.update(new_tags)
    return calls > 0


def _key(name: str) -> str:
    return re.sub(r"[^/\w.\- ]", "_", name)[:MAX_KEY]


def _number(value: Any) -> bool:
    """Whether MLflow can hold it: no null, no text, no truth value, no NaN, no infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _epochs(rows: Iterable[dict[str, Any]], *, timestamp: int) -> list[Point]:
    """metrics.jsonl as points: step = epoch, time = the row's own, or else `timestamp`."""
    points = []
    for row in rows:
        if not _number(row.get("epoch")):
            continue
        when = int(row["time"] * 1000) if _number(row.get("time")) else timestamp
        numbers = ((key, value) for key, value in row.items() if key not in ("epoch", "time") and _number(value))
        points += [Point(_key(key), float(value), when, int(row["epoch"])) for key, value in numbers]
    return points


def _final(result: Result, run: Run, *, timestamp: int) -> list[Point]:
    """The result's numbers as section/name. One that an earlier attempt had and this one has not becomes NaN."""
    points = []
    for section in SECTIONS:
        for name, value in getattr(result, section).model_dump().items():
            key = f"{section}/{name}"
            if _number(value):
                points.append(Point(key, float(value), timestamp, 0))
            elif key in run.metrics:
                points.append(Point(key, math.nan, timestamp, 0))
    return points


def _params(client: Any, run: Run, spec: dict[str, Any], *, files: bool) -> dict[str, str]:
    """The specification with dotted keys; a value too long for MLflow is attached, or cut without files."""
    params = {_key(name): value for name, value in flatten(spec).items()}
    for key, value in params.items():
        if len(value) > MAX_PARAM:
            params[key] = f"attached: params/{key}.txt" if files else cut(value, MAX_PARAM)
            if files and key not in run.params:
                client.log_text(run.id, value, f"params/{key}.txt")
    return params


def _note(result: Result) -> str:
    """A trial's description: its score, and how to see more of it."""
    headline, metrics = result.headline, result.metrics
    counted = f" ({metrics.correct} of {metrics.total})" if headline.counted else ""
    score = f", {headline.title} **{100 * result.score:.2f} %**{counted}" if result.score is not None else ""
    return f"{result.status}{score}\n\n    harness show trial {result.id} --html trial.html"


def _shortened(text: str) -> str:
    """At most MAX_TAG characters, cut between lines."""
    if len(text) <= MAX_TAG:
        return text
    more = "\n\n… (all of it: report/leaderboard.md among the artifacts)"
    return text[: MAX_TAG - len(more)].rpartition("\n")[0] + more


def _spec(folder: TrialFolder) -> dict[str, Any]:
    try:
        spec = json.loads((folder.path / "spec.json").read_text())
    except (OSError, ValueError):
        return {}
    return spec if isinstance(spec, dict) else {}


def _milliseconds(moment: Any, otherwise: int) -> int:
    """An ISO date as milliseconds since 1970."""
    try:
        return int(datetime.fromisoformat(moment).timestamp() * 1000)
    except (TypeError, ValueError):
        return otherwise
