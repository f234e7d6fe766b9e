"""Ray Tune places trials on slots; everything else about a trial is its own process's business.

Tune is only the scheduler: trials go out in planned order (longest first), each into a placement group of its own,
actors are reused (the training happens in a forked child, so an actor keeps nothing of a trial), and what Tune
itself writes goes to a temporary folder. Results are read from the store.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from harness.launch import launch, record_failure
from harness.models.weights import data_root
from harness.store import Result, Store, TrialFolder
from harness.trial import Trial

MAX_LOST = 2
"""How often a trial whose process or actor vanished is tried again."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the old output can be silenced
}


class Observer(Protocol):
    """Told of trials as they start and end; called from the driver's thread."""

    def started(self, trial: Trial) -> None:
        """A slot took the trial."""

    def finished(self, trial: Trial, result: Result | None) -> None:
        """The trial left its slot; None when it left no result."""


@dataclass
class Outcome:
    """What a run came to."""

    results: dict[str, Result] = field(default_factory=dict)
    interrupted: bool = False


def gpus_here() -> int:
    """GPUs that torch can use on this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def bundle(trial: Trial, *, gpus: int) -> dict[str, float]:
    """What a trial reserves: one bundle, as its processes live on one node."""
    wanted = trial.resources.gpus_per_process
    per_process = min(1, gpus) if wanted is None else wanted
    processes = trial.resources.processes
    found = {"CPU": float(trial.resources.cpus_per_process * processes)}
    return found | ({"GPU": float(per_process * processes)} if per_process else {})


def planned_order(trials: Sequence[Trial], seconds_per_step: dict[str, float]) -> list[Trial]:
    """Longest first, by the dry steps' times where there are any, else by clouds to be seen."""

    def cost(trial: Trial) -> float:
        if trial.baseline is not None:
            return 0.0
        return trial.train.epochs * trial.dataset.train_items * seconds_per_step.get(trial.identity, 1.0)

    return sorted(trials, key=cost, reverse=True)


def run_trials(
    trials: Sequence[Trial],
    *,
    store: Store,
    observer: Observer,
    max_concurrent: int | None = None,
    git: str | None = None,
) -> Outcome:
    """Run trials, in the order given, on all of this machine; returns when all have a result or on Ctrl-C."""
    outcome = Outcome()
    if not trials:
        return outcome
    os.environ.update(QUIET | {key: os.environ[key] for key in QUIET if key in os.environ})
    gpus = gpus_here()
    slots = max_concurrent or max(1, (os.cpu_count() or 1) // min(t.resources.cpus_per_process for t in trials))
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(slots + 1))
    import ray

    try:
        ray.init(
            num_cpus=max(os.cpu_count() or 1, max(t.resources.cpus_per_process for t in trials)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            object_store_memory=100_000_000,
        )
        left = list(trials)
        for _ in range(MAX_LOST + 1):
            _round(left, store=store, observer=observer, slots=slots, gpus=gpus, git=git)
            left = [trial for trial in left if store.trial(trial.identity).result() is None]
            if not left:
                break
        for trial in left:
            _record_lost(trial, store.trial(trial.identity), "the worker that ran it vanished, three times")
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        ray.shutdown()
    if outcome.interrupted:
        _record_interrupted(trials, store)
    for trial in trials:
        result = store.trial(trial.identity).result()
        if result is not None:
            outcome.results[trial.identity] = result
    return outcome


def _round(
    trials: Sequence[Trial], *, store: Store, observer: Observer, slots: int, gpus: int, git: str | None
) -> None:
    """One pass of Tune over trials. A trial whose actor dies leaves no result."""
    from ray import tune

    from harness.tune_parts import PlannedOrder, Watch

    for name in ("ray.tune", "ray.train", "ray.air", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)

    plan = list(trials)
    bundles = [bundle(trial, gpus=gpus) for trial in plan]
    work = tune.with_parameters(_work, trials=plan, output=store.output.resolve(), data=data_root().resolve(), git=git)
    work = tune.with_resources(work, lambda config: tune.PlacementGroupFactory([bundles[config["index"]]]))
    with tempfile.TemporaryDirectory(prefix="harness-tune-") as scratch:
        tuner = tune.Tuner(
            work,
            tune_config=tune.TuneConfig(
                search_alg=PlannedOrder(len(plan)),
                num_samples=len(plan),
                max_concurrent_trials=slots,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                callbacks=[Watch(plan, observer=observer, store=store)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        tuner.fit()


def _work(config: dict[str, Any], *, trials: Sequence[Trial], output: Path, data: Path, git: str | None) -> None:
    """In the actor: one trial in a fresh process; again when that process is lost.

    Paths are absolute: Tune gives actors a working folder of their own.
    """
    from ray import tune

    trial = trials[config["index"]]
    folder = Store(output).trial(trial.identity)
    gpus = (
        os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if tune.get_context().get_trial_resources().bundles[0].get("GPU")
        else ""
    )
    for attempt in range(1, MAX_LOST + 2):
        result = launch(trial, folder, attempt=attempt, data=data, gpus=gpus, git=git)
        if result.status != "lost":
            break
    tune.report({"done": 1})


def _record_lost(trial: Trial, folder: TrialFolder, error: str) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record_failure(trial, folder, status="lost", error=error, started=now, attempt=MAX_LOST + 1, earlier=[])


def _record_interrupted(trials: Sequence[Trial], store: Store) -> None:
    """Trials that ran when Ctrl-C came: their children die with their actors; wait for that, then say so."""
    for trial in trials:
        folder = store.trial(trial.identity)
        mark = folder.running()
        if mark is None or folder.result() is not None:
            continue
        for _ in range(50):
            if not _alive(int(mark.get("pid", -1))):
                break
            time.sleep(0.1)
        started = datetime.fromtimestamp(float(mark.get("started", 0)), UTC).isoformat(timespec="seconds")
        record_failure(
            trial,
            folder,
            status="interrupted",
            error="interrupted by Ctrl-C; the next run starts it again",
            started=started,
            attempt=int(mark.get("attempt", 1)),
            earlier=[],
        )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False
    return pid > 0
