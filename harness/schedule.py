"""Ray Tune places trials on slots; everything else about a trial is its own process's business.

Tune is only the scheduler: trials go out in planned order (longest first), each into a placement group of its own,
actors are reused (the training happens in a forked child, so an actor keeps nothing of a trial), and what Tune
itself writes goes to a temporary folder. Results are read from the store.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TextIO

from harness.cleaning import scratch_prefix, sweep_scratch
from harness.cluster import QUIET_RAY, Cluster
from harness.errors import UserError
from harness.launch import MAX_LOST, Errand
from harness.models.weights import data_root
from harness.result import Result, Status
from harness.shared import Mark, marked
from harness.stopping import stop_on_signals
from harness.store import Store
from harness.trial import Trial
from harness.trial_folder import CannotWrite, TrialFolder
from harness.worker import start_keeper, start_launchers, work

POLL_SECONDS = 0.5
"""How often a run looks after trials that another one works on."""

DYING_SECONDS = 5.0
"""How long a stopped run waits for its trials' processes to be gone."""

QUIET = QUIET_RAY | {
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

    def finished(self, trial: Trial, result: Result) -> None:
        """The trial has its result."""

    def postponed(self, trial: Trial, why: str) -> None:
        """The trial left its slot without a result; it gets another turn."""

    def stopping(self) -> None:
        """Ctrl-C or SIGTERM came. Called from another thread."""


@dataclass(frozen=True)
class Job:
    """A trial that is to run, and what lay in its folder when that was decided."""

    trial: Trial
    replaces: str | None = None
    """Stamp of a final result that is to be replaced (`--retry`, stale data)."""
    attempts: int = 0
    """Attempts before this run."""
    share: float = 1.0
    """The part of a GPU that it gets (harness.sharing)."""
    crowded: bool = False
    """Whether an earlier run found a part of a GPU too small for it."""

    @cached_property
    def errand(self) -> Errand:
        """The job as workers get it."""
        return Errand.of(self.trial, replaces=self.replaces, attempts=self.attempts, share=self.share)

    def close(self, folder: TrialFolder, status: Status, error: str) -> Result | None:
        """Write the trial's result where its processes are gone and left none (harness.trial_folder)."""
        task, replaces = self.trial.dataset.task, self.replaces
        return folder.close(self.trial.spec(), task=task, status=status, error=error, replaces=replaces)


@dataclass
class Outcome:
    """What a run came to."""

    interrupted: bool = False
    problem: str | None = None
    """Why it had to stop, when the results folder took no more."""
    leaving: threading.Thread | None = None
    """Shuts Ray down; to be joined when everything else is done."""


class Halt:
    """Says to hand out no more trials, and why. Lives in the driver; what Tune pickles of it is forgotten."""

    def __init__(self) -> None:
        self.problem: str | None = None


def gpus_here() -> int:
    """GPUs that torch can use on this machine."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def bundle(trial: Trial, *, gpus: int, share: float = 1.0) -> dict[str, float]:
    """What a trial reserves: one bundle, as its processes live on one node. `share` is the part of a GPU for each."""
    wanted = trial.resources.gpus_per_process if trial.baseline is None else 0
    per_process = share * (min(1, gpus) if wanted is None else wanted)
    found = {"CPU": float(trial.resources.cpus_per_process * trial.processes)}
    return found | ({"GPU": float(per_process * trial.processes)} if per_process else {})


def slots_of(bundles: Sequence[dict[str, float]], cluster: Cluster) -> int:
    """How many trials a cluster can run at once. Raises UserError for resources that no node of it has."""
    kinds = [dict(kind) for kind in {tuple(sorted(bundle.items())) for bundle in bundles}]
    most = 0
    for kind in kinds:
        if not (count := cluster.slots(kind)):
            wanted = ", ".join(f"{amount:g} {name}" for name, amount in sorted(kind.items()))
            nodes = "; ".join(f"{node.host}: {node.cpus:g} CPU, {node.gpus:g} GPU" for node in cluster.nodes)
            raise UserError(
                f"a trial needs {wanted} on one node, and no node has as much ({nodes}); change `resources`"
            )
        most = max(most, count)
    return most


def planned_order(jobs: Sequence[Job], seconds_per_step: dict[str, float]) -> list[Job]:
    """Longest first, by the dry steps' times where there are any, else by clouds to be seen."""

    def cost(job: Job) -> float:
        trial = job.trial
        if trial.baseline is not None:
            return 0.0
        return trial.train.passes * trial.dataset.train_items * seconds_per_step.get(trial.identity, 1.0)

    return sorted(jobs, key=cost, reverse=True)


def run_jobs(
    jobs: Sequence[Job],
    *,
    begin: Callable[[], Sequence[Job]],
    store: Store,
    observer: Observer,
    max_concurrent: int | None = None,
    git: str | None = None,
    cluster: Cluster | None = None,
) -> Outcome:
    """Run trials on all of this machine, or on a cluster; returns when all have a result, or on Ctrl-C.

    `begin` is called once Ray is up, and gives the jobs in the order to hand them out; what it raises ends the run.
    Trials that another run works on are left to it and waited for.
    """
    outcome = Outcome()
    os.environ.update(QUIET | {key: os.environ[key] for key in QUIET if key in os.environ})
    sweep_scratch()
    gpus = cluster.gpus if cluster is not None else gpus_here()
    bundles = [bundle(job.trial, gpus=gpus, share=job.share) for job in jobs]
    threads = [int(reserved["CPU"]) for reserved in bundles]
    fitting = slots_of(bundles, cluster) if cluster is not None else max(1, (os.cpu_count() or 1) // min(threads))
    slots = max_concurrent or fitting
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(slots + 1))
    import ray  # noqa: F401 – before the thread that imports more of it

    threading.Thread(target=import_module, args=("harness.tune_parts",), daemon=True).start()  # a second of imports
    launchers: list[Any] = []
    with stop_on_signals(observer.stopping) as take_signals, _chatter_to(store.output / "ray.log"):
        try:
            _connect(cluster, cpus=max(os.cpu_count() or 1, *threads))
            take_signals()  # Ray has taken SIGTERM
            launchers += start_launchers(0)  # their fork servers get ready meanwhile
            with contextlib.ExitStack() as until_the_end:
                mark = until_the_end.enter_context(marked(store.output)) if cluster is not None else None
                launchers += [start_keeper()] if cluster is not None else []
                _rounds(begin(), launchers, store=store, observer=observer, slots=slots, gpus=gpus, git=git, mark=mark)
        except KeyboardInterrupt:
            outcome.interrupted = True
        except CannotWrite as problem:
            outcome.problem = str(problem)
        finally:
            launchers.clear()
            outcome.leaving = _leave()
            if sys.exc_info()[0] is not None:  # its traceback holds parts of Ray
                outcome.leaving.join()
        if outcome.interrupted or outcome.problem:
            outcome.leaving.join()
            with contextlib.suppress(CannotWrite):
                _close_interrupted(jobs, store, why=outcome.problem or "interrupted")
    return outcome


def _connect(cluster: Cluster | None, *, cpus: int) -> None:
    """Start Ray on this machine, or join a cluster that has just answered. Raises UserError when it is gone again."""
    import ray

    common = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    if cluster is None:
        here = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 100_000_000}
        ray.init(address="local", **here, **common)
        return
    try:
        ray.init(address=cluster.address, **common)
    except (ConnectionError, RuntimeError, OSError) as error:
        raise UserError(f"--address {cluster.address}: the cluster was there and is gone again ({error})") from None


def _leave() -> threading.Thread:
    """Shut Ray down in the background. The caller holds nothing of Ray any more.

    While Ray shuts down, a reference to one of its objects that goes in another thread ends the whole process. So what
    is garbage goes before, and what is not is kept from the garbage collector until Ray has gone.
    """
    import ray

    def shut_down() -> None:
        try:
            ray.shutdown()
        finally:
            gc.unfreeze()

    gc.collect()
    gc.freeze()
    thread = threading.Thread(target=shut_down)
    thread.start()
    return thread


@contextlib.contextmanager
def _chatter_to(path: Path) -> Iterator[None]:
    """Send what Ray prints into the driver's stdout, which belongs to our own output, to a file."""
    try:
        sink: TextIO = path.open("a")
    except OSError:
        sink = Path(os.devnull).open("a")  # noqa: SIM115
    try:
        with sink, contextlib.redirect_stdout(sink):
            yield
    finally:
        with contextlib.suppress(OSError):
            if not path.stat().st_size:
                path.unlink()


def _rounds(jobs: Sequence[Job], launchers: list[Any], *, store: Store, observer: Observer, **slots: Any) -> None:
    """Rounds of Tune until every trial has a result: what vanished gets another turn, others' trials are waited for.

    `launchers` are those of the first round; all are kept to the end, as one may outlive its round.
    """
    generation = 0
    vanished: Counter[str] = Counter()
    left = list(jobs)
    while left:
        free = [job for job in left if store.trial(job.trial.identity).running() is None]
        if free:
            halt = Halt()
            if generation:
                launchers += start_launchers(generation)
            _round(free, halt, generation, store=store, observer=observer, **slots)
            generation += 1
            if halt.problem:
                raise CannotWrite(halt.problem)
        else:
            time.sleep(POLL_SECONDS)
        waiting = []
        for job in left:
            folder = store.trial(job.trial.identity)
            result = job.errand.settled(folder)
            if result is not None and result.crowded:
                waiting.append(replace(job, share=1.0))
                continue
            if result is None and job in free and folder.running() is None:
                vanished[job.trial.identity] += 1
                begun = folder.attempts() - job.attempts
                if max(vanished[job.trial.identity], begun) > MAX_LOST:
                    error = "the worker that ran it vanished, every time"
                    result = job.close(folder, "lost", error)
                    if result is not None:
                        observer.finished(job.trial, result)
            elif result is not None and job not in free:
                observer.finished(job.trial, result)
            if result is None:
                waiting.append(job)
        left = waiting


def _round(
    jobs: Sequence[Job],
    halt: Halt,
    generation: int,
    *,
    store: Store,
    observer: Observer,
    slots: int,
    gpus: int,
    git: str | None,
    mark: Mark | None = None,
) -> None:
    """One pass of Tune over trials. A trial whose actor dies leaves no result."""
    from ray import tune

    from harness.tune_parts import PlannedOrder, Watch

    for name in ("ray.tune", "ray.train", "ray.air", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what ends a worker goes to the trial's log

    plan = list(jobs)
    bundles = [bundle(job.trial, gpus=gpus, share=job.share) for job in plan]
    errands = [job.errand for job in plan]
    output, data = store.output.resolve(), data_root().resolve()
    where = {"generation": generation, "output": output, "data": data, "git": git, "mark": mark}
    trainable = tune.with_parameters(work, errands=errands, **where)
    trainable = tune.with_resources(trainable, lambda config: tune.PlacementGroupFactory([bundles[config["index"]]]))
    with tempfile.TemporaryDirectory(prefix=scratch_prefix()) as scratch:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=PlannedOrder(len(plan), halt=halt),
                num_samples=len(plan),
                max_concurrent_trials=slots,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=scratch,
                verbose=0,
                callbacks=[Watch(plan, halt=halt, observer=observer, store=store)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )
        tuner.fit()


def _close_interrupted(jobs: Sequence[Job], store: Store, *, why: str) -> None:
    """Trials that ran when the run had to stop: their processes die with their actors; wait for that, then say so."""
    folders = {job.trial.identity: store.trial(job.trial.identity) for job in jobs}
    left = [job for job in jobs if folders[job.trial.identity].lease() is not None]
    deadline = time.monotonic() + DYING_SECONDS  # what another run works on lives on, and is left to it
    while left and time.monotonic() < deadline:
        for job in list(left):
            folder = folders[job.trial.identity]
            if folder.running() is None:
                job.close(folder, "interrupted", f"{why}; the next run goes on with it")
                left.remove(job)
        if left:
            time.sleep(0.1)
