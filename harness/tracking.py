"""MLflow, a mirror of the store: `sync` replays a suite's results, a mirror process does the same while a run goes.

The results on disk are the truth. Whatever happens to MLflow, no trial waits for it or fails by it, and `sync` mends
the mirror later. One process at a time writes (a lock beside the database); what it writes is in harness.mlflow_runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.mlflow_runs import (
    PARENT,
    QUIET,
    SUITE,
    Run,
    TrialState,
    connect,
    find_runs,
    open_experiment,
    read_trial,
    write_parent,
    write_trial,
)
from harness.store import Store

POLL_SECONDS = 2.0
"""How often the mirror process looks at the store."""
HEAD_START = 10.0
"""Seconds that a run has for itself before the mirror imports MLflow."""
AWAY_SECONDS = 15.0
"""How long it leaves a server alone that did not answer."""
LOCK_SECONDS = 30.0
PR_SET_PDEATHSIG = 1
log = logging.getLogger("harness.tracking")


@dataclass(frozen=True)
class Synced:
    """What MLflow holds of a suite now."""

    uri: str
    experiment: str
    trials: int
    """Child runs that show a trial: all that run or have a result."""
    updated: int
    """Trials that something was written of: new results, and those that run."""
    done: int
    failed: int
    running: int

    def __str__(self) -> str:
        counts = f"{self.done} done, {self.failed} failed, {self.running} running; {self.updated} written now"
        return f"MLflow at {self.uri} shows {self.trials} trials of '{self.experiment}': {counts}"


def tracking_uri(store: Store) -> str:
    """Where MLflow is: MLFLOW_TRACKING_URI, or a database in the output folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{store.output.resolve() / 'mlflow.db'}"


def sync(*, store: Store, suite: str, uri: str | None = None, files: bool = True) -> Synced:
    """Make MLflow show what the store holds of a suite. A second call changes nothing.

    `files`: attach adapters, predictions, logs and reports; without them MLflow gets numbers, parameters and tags.
    Raises UserError when the suite never ran here, MLflow cannot be reached, its database is another version's, or
    another process keeps writing.
    """
    return Replay(store=store, suite=suite, uri=uri or tracking_uri(store), files=files).update(final=True)


def start_mirror(store: Store, suite: str, *, uri: str | None = None, files: bool = True) -> Mirror:
    """Start a process that syncs a suite every few seconds, until `finish`, or until this process dies.

    Call it from the main thread: on Linux the process also dies with the thread that started it. Never raises for
    what is wrong with MLflow; `finish` tells.
    """
    output = store.output.resolve()
    path = store.suite_folder(suite) / "mlflow.log"
    command = [
        sys.executable,
        "-m",
        "harness.tracking",
        str(output),
        suite,
        str(os.getpid()),
        "files" if files else "bare",
    ]
    environment = QUIET | os.environ | {"MLFLOW_TRACKING_URI": uri or tracking_uri(store)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                start_new_session=True,
                text=True,
            )
    except OSError as error:
        return Mirror(None, path, f"the MLflow mirror could not be started: {error}")
    return Mirror(process, path, "")


class Mirror:
    """The mirror process, seen from the run."""

    def __init__(self, process: subprocess.Popen[str] | None, log: Path, reason: str) -> None:
        self.process = process
        self.log = log
        self.reason = reason

    def finish(self, timeout: float = 30.0) -> Synced | str:
        """Have it sync a last time and end. Returns why MLflow does not hold the run when it does not.

        Never raises, and takes little longer than `timeout` seconds. Once is enough.
        """
        if self.process is None:
            return self.reason
        mend = f"`harness sync {self.log.parent.name}` replays the results (log: {self.log})"
        try:
            answer, _ = self.process.communicate("finish\n", timeout=timeout)
            found = json.loads(answer or "{}")
        except subprocess.TimeoutExpired:
            self._kill()
            found = {"reason": f"MLflow did not take the last results within {timeout:g} s; {mend}"}
        except (OSError, ValueError) as error:
            self._kill()
            found = {"reason": f"the MLflow mirror broke down: {error}; {mend}"}
        ended = f"the MLflow mirror ended with exit code {self.process.returncode}; {mend}"
        self.process, self.reason = None, "the MLflow mirror has been finished before"
        return Synced(**found["synced"]) if "synced" in found else str(found.get("reason", ended))

    def _kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Replay:
    """One suite of the store and what MLflow is known to hold of it, so that an update costs only what changed."""

    def __init__(self, *, store: Store, suite: str, uri: str, files: bool = True) -> None:
        self.store = Store(store.output.resolve())
        self.uri = uri
        self.files = files
        self.suite = store.load(suite)
        self.client: Any = None
        self.experiment = ""
        self.runs: dict[str, Run] = {}
        self.seen: dict[str, tuple[Any, ...]] = {}
        self.states: dict[str, TrialState] = {}

    def update(self, *, final: bool) -> Synced:
        """Write what changed since the last update. `final`: the suite's run gets its reports and its end.

        Raises UserError, after which another Replay must be made.
        """
        with _only_writer(self.store), _explained(self.uri, self.suite.name, self.store):
            if self.client is None:
                self.client = connect(self.uri)
                artifacts = None if re.match(r"https?:|databricks", self.uri) else self.store.output / "mlartifacts"
                folder = artifacts / self.suite.name if artifacts else None
                self.experiment = open_experiment(self.client, self.suite.name, artifacts=folder)
            return self._update(final)

    def _update(self, final: bool) -> Synced:
        changed = {}
        for entry in self.suite.entries:
            folder = self.store.trial(entry.id)
            signature = _signature(folder.path)
            if signature == self.seen.get(entry.id):
                continue
            state = read_trial(folder, entry, suite_digest=self.suite.digest)
            if state is not None:
                self.states[entry.id] = state
                changed[entry.id] = signature
        if changed or final or not self.runs:
            self._ensure_runs()
        updated = 0
        for identity, signature in changed.items():
            run, state, parent = self.runs[identity], self.states[identity], self.runs[SUITE].id
            folder = self.store.trial(identity)
            updated += write_trial(self.client, run, state, folder, parent=parent, files=self.files)
            self.seen[identity] = signature
        statuses = [state.status for state in self.states.values()]
        done, running = statuses.count("done"), statuses.count("running")
        failed = len(statuses) - done - running - statuses.count("interrupted")
        if changed or final:
            self._update_parent(statuses, done=done, failed=failed, final=final)
        return Synced(shown_uri(self.uri), self.suite.name, len(statuses), updated, done, failed, running)

    def _ensure_runs(self) -> None:
        """A run for the suite and for every trial that can be shown: looked for before it is made, and after."""
        wanted = {SUITE, *self.states}
        if wanted <= self.runs.keys():
            return
        known = self.runs
        found = find_runs(self.client, self.experiment)
        if missing := wanted - found.keys():
            if SUITE in missing:
                self._create(self.suite.name, {SUITE: self.suite.name}, self._started())
                found = find_runs(self.client, self.experiment)
            parent = {PARENT: found[SUITE].id}
            for identity in (identity for identity in self.states if identity in missing):
                state = self.states[identity]
                tags = {key: value for key, value in state.tags.items() if value}
                self._create(state.name, tags | parent, state.started)
            found = find_runs(self.client, self.experiment)
        self.runs = {key: known[key] if key in known and known[key].id == run.id else run for key, run in found.items()}

    def _create(self, name: str, tags: dict[str, str], started: int) -> None:
        self.client.create_run(self.experiment, start_time=started, tags=tags, run_name=name)

    def _started(self) -> int:
        return min((state.started for state in self.states.values()), default=int(time.time() * 1000))

    def _update_parent(self, statuses: list[str], *, done: int, failed: int, final: bool) -> None:
        trials = len({entry.id for entry in self.suite.entries})
        tags = {
            SUITE: self.suite.name,
            "suite_digest": self.suite.digest,
            "trials": str(trials),
            "done": str(done),
            "failed": str(failed),
        }
        if not final or "running" in statuses:
            status = "RUNNING"
        elif len(statuses) < trials or "interrupted" in statuses:
            status = "KILLED"
        else:
            status = "FINISHED" if done else "FAILED"
        ended = max((state.ended for state in self.states.values()), default=self._started())
        folder = self.store.suite_folder(self.suite.name)
        run = self.runs[SUITE]
        write_parent(self.client, run, tags=tags, status=status, ended=ended, folder=folder, files=self.files)


def _signature(folder: Path) -> tuple[Any, ...]:
    """Changes when there is something new in a trial's folder."""
    found: list[tuple[int, int, int] | None] = []
    for name in ("result.json", "running.json", "metrics.jsonl"):
        try:
            status = (folder / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


@contextlib.contextmanager
def _only_writer(store: Store) -> Iterator[None]:
    """Hold the output folder's MLflow lock; wait for it a while, then raise UserError."""
    path = store.output / "mlflow.lock"
    try:
        file = path.open("a")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    with file:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(f"{path}: another process keeps writing to MLflow; try again later") from None
                time.sleep(0.05)
        yield


@contextlib.contextmanager
def _explained(uri: str, suite: str, store: Store) -> Iterator[None]:
    """Whatever MLflow, its database driver or its artifact store throws, as one message that says what to do."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        safe = f"the results are safe in {store.output}; `harness sync {suite}` replays them once that is mended"
        raise UserError(f"MLflow at {shown_uri(uri)} {unreachable(error, uri)}; {safe}") from error


def shown_uri(uri: str) -> str:
    """A tracking URI without the name and password in it."""
    return re.sub(r"//[^/@]*@", "//", uri)


def unreachable(error: Exception, uri: str) -> str:
    """What MLflow's complaint comes to: a verb and what to do."""
    text = (str(error).strip().splitlines() or [""])[0][:200]
    if "database schema" in text:
        return f"is a database of another MLflow version; `mlflow db upgrade {shown_uri(uri)}` brings it up to date"
    if re.search(r"\b401\b|not authenticated", text):
        return (
            "asks who you are; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN "
            "(docs/mlflow.md)"
        )
    if re.search(r"\b403\b|PERMISSION_DENIED", text):
        return "does not let this user in (error 403); its administrator grants permissions (docs/mlflow.md)"
    if "failed with exception" in text or isinstance(error, ConnectionError | TimeoutError):
        return "does not answer"
    return f"refuses ({type(error).__name__}: {text})"


def main(arguments: list[str]) -> None:
    """The mirror process: OUTPUT SUITE PARENT_PID files|bare; a line or the end of stdin asks for the last sync."""
    output, suite, parent = Store(Path(arguments[0])), arguments[1], int(arguments[2])
    files = arguments[3] == "files"
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(10)  # trials are being timed
    answer = os.dup(1)
    os.dup2(2, 1)
    logging.basicConfig(format="%(asctime)s %(message)s")
    replay: Replay | None = None
    updated, wait, last = 0, HEAD_START, False
    while not last:
        last = bool(select.select([0], [], [], wait)[0])
        if os.getppid() != parent:
            return
        try:
            replay = replay or Replay(store=output, suite=suite, uri=tracking_uri(output), files=files)
            synced = replay.update(final=last)
            updated += synced.updated
            found: dict[str, Any] = {"synced": asdict(replace(synced, updated=updated))}
            wait = POLL_SECONDS
        except UserError as error:
            log.error("%s", error, exc_info=error.__cause__)
            found, replay, wait = {"reason": str(error)}, None, AWAY_SECONDS
    os.write(answer, json.dumps(found).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
