"""`harness run`: a suite from file to leaderboard. Finished trials are kept, the others run, reports are written."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from harness import registry
from harness.children import in_children
from harness.cluster import Cluster, join
from harness.data.dataset import Declaration
from harness.errors import UserError
from harness.models.weights import data_root, find_weights
from harness.prediction import Progress
from harness.reporting import write_reports
from harness.result import Result
from harness.schedule import Job, Observer, bundle, gpus_here, planned_order, run_jobs
from harness.shared import marked
from harness.sharing import gpu_memory, may_share, shares
from harness.store import Store
from harness.suite import Suite
from harness.tasks import task_of
from harness.trial import Trial

CHECK_ABOVE = 20
"""Suites of more trials than this get a dry step of every combination first."""


@dataclass
class Summary:
    """What a run came to."""

    suite: str
    done: int
    failed: dict[str, str] = field(default_factory=dict)
    """Trial name -> status and first line of the error."""
    interrupted: bool = False
    reports: list[Path] = field(default_factory=list)
    unwritten: list[str] = field(default_factory=list)
    """Reports that could not be written, and why."""
    tracking: str | None = None
    """Why MLflow does not hold this run, when it does not."""
    problem: str | None = None
    """Why the run stopped early: the results folder took no more."""

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some trials failed or results could not be written, 130 interrupted."""
        return 130 if self.interrupted else 1 if self.failed or self.problem or self.unwritten else 0


def what_is_missing(trials: Sequence[Trial]) -> list[str]:
    """One sentence for each dataset and each set of weights that is not where it should be."""
    root = data_root()
    datasets = {trial.dataset.name: trial.dataset for trial in trials}
    weights = {t.backbone.weights for t in trials if t.backbone.weights != "random"}
    found = [dataset.missing(root) for dataset in datasets.values()]
    found += [find_weights(name).missing() for name in sorted(weights)]
    return [message for message in found if message]


def check_gpus(trials: Sequence[Trial]) -> None:
    """Refuse trials that ask for GPUs that this machine does not have: they would wait for ever. Raises UserError."""
    here = gpus_here()
    wanted = int(max((bundle(trial, gpus=here).get("GPU", 0.0) for trial in trials), default=0.0))
    if wanted > here:
        raise UserError(
            f"resources: trials ask for {wanted} GPU and this machine has {here or 'none'}; run them where there are "
            "some, or on the processor: --set resources.gpus_per_process=0"
        )


def with_shares(jobs: Sequence[Job], *, cluster: Cluster | None, progress: Progress) -> list[Job]:
    """Jobs with the part of a GPU that each may have: all of it after it was crowded out, or where sizes are unknown.

    What is not known yet is predicted, in seconds for each combination.
    """
    gpus = cluster.gpus if cluster is not None else gpus_here()
    small = [job.trial for job in jobs if may_share(job.trial, gpus=gpus) and not job.crowded]
    memory = gpu_memory(cluster) if small else None
    if memory is None:
        return list(jobs)
    parts = shares(small, memory=memory, progress=progress)
    return [replace(job, share=parts.get(job.trial.identity, 1.0)) for job in jobs]


def join_cluster(address: str, trials: Sequence[Trial], store: Store) -> Cluster:
    """The cluster that is to run trials, when all its nodes can. Raises UserError."""
    root = data_root().resolve()
    with marked(store.output) as mark:
        question = {
            "folders": {"results": str(store.output.resolve()), "data": str(root)},
            "mark": str(mark.path),
            "content": mark.content,
            "data": str(root),
            "datasets": sorted({trial.dataset.name for trial in trials}),
            "weights": sorted({t.backbone.weights for t in trials if t.backbone.weights != "random"}),
        }
        return join(address, question)


def remember_suite(suite: Suite, store: Store, *, chosen: Sequence[Trial], command: Sequence[str]) -> None:
    """Write the suite, the list of its trials, and what this run is asked for, into the output folder.

    Raises UserError when that cannot be done.
    """
    try:
        store.write_suite(
            name=suite.name,
            description=suite.description,
            digest=suite.digest,
            text=suite.text,
            trials=[trial.row() for trial in suite.trials],
            command=command,
            chosen=[trial.identity for trial in chosen],
        )
    except OSError as error:
        raise UserError(f"{store.output}: results cannot be written there ({error.strerror or error})") from None


def to_run(trials: Sequence[Trial], store: Store, *, retry: Sequence[str] = ()) -> list[Job]:
    """Trials without a result, with one that says to go on, with a status in `retry`, or with a stale one."""
    at_hand = DigestsAtHand()
    left = []
    for trial in trials:
        folder = store.trial(trial.identity)
        stamp, result = folder.stamp(), folder.result()
        if result is None or result.unfinished:
            left.append(Job(trial, attempts=folder.attempts(), crowded=result is not None and result.crowded))
        elif result.status in retry or (result.status == "done" and at_hand.differ(trial, result)):
            left.append(Job(trial, replaces=stamp, attempts=folder.attempts()))
    return left


class DigestsAtHand:
    """Digests of the data and weights that lie here now, each computed once, to tell results of other files."""

    def __init__(self) -> None:
        self.data = cache(self._data)
        self.weights = cache(lambda name: hashlib.sha256(find_weights(name).path().read_bytes()).hexdigest())

    @staticmethod
    def _data(dataset: Declaration) -> str:
        return task_of(dataset).digest(dataset)

    def differ(self, trial: Trial, result: Result) -> bool:
        """Whether a result is stale: made with other data or weights than those at hand."""
        if result.digests.get("data") != self.data(trial.dataset):
            return True
        weights = trial.backbone.weights
        return trial.baseline is None and weights != "random" and result.digests.get("weights") != self.weights(weights)


def check(trials: Sequence[Trial]) -> dict[str, float]:
    """One dry step of every distinct combination; returns seconds per step by identity. Raises UserError.

    One after the other: steps side by side would time each other.
    """
    from harness.check import combination, dry_step

    distinct = {combination(trial): trial for trial in trials if trial.baseline is None}
    keys, ones = list(distinct), list(distinct.values())
    seconds: dict[tuple[str, ...], float] = {}
    problems = []
    for index, step in in_children(dry_step, ones, preload="harness.check", workers=1):
        trial = ones[index]
        problem = step.problem if step is not None else "its process was killed (out of memory?)"
        if problem:
            problems.append(f"{trial.method_label} on {trial.backbone_label}, {trial.dataset.name}: {problem}")
        seconds[keys[index]] = step.seconds if step is not None else 0.0
    if problems:
        raise UserError("the dry step before the run failed (--no-check skips it):\n" + "\n".join(problems))
    return {t.identity: seconds[combination(t)] for t in trials if t.baseline is None}


def summarise(suite: Suite, trials: Sequence[Trial], store: Store, *, interrupted: bool) -> Summary:
    """Count what there is for the chosen trials."""
    summary = Summary(suite.name, 0, interrupted=interrupted)
    for trial in trials:
        result = store.trial(trial.identity).result()
        if result is not None and result.status == "done":
            summary.done += 1
        elif result is not None and result.status != "interrupted":
            first = (result.error or "").strip().splitlines()
            summary.failed[trial.name] = f"{result.status}: {first[0] if first else ''}"
        elif not interrupted:
            summary.failed[trial.name] = "left no result"
    return summary


def run_suite(
    suite: Suite,
    jobs: Sequence[Job],
    *,
    asked: Sequence[Trial],
    store: Store,
    display: Observer,
    remember: Callable[[], None],
    checking: bool = False,
    max_concurrent: int | None = None,
    track: bool = True,
    artifacts: bool = True,
    cluster: Cluster | None = None,
) -> Summary:
    """Run trials, mirror them into MLflow, write the reports. Data, weights and output are checked before.

    `checking` takes a dry step of every combination while Ray starts. Nothing is written before that is over: then
    `remember` is called. The summary is of all trials that were `asked` for. Raises UserError when a dry step fails.
    """
    from harness.measure.environment import git_revision
    from harness.tracking import HEAD_START, Mirror, start_mirror

    steps = _in_background(lambda: check([job.trial for job in jobs])) if checking else None
    mirror: Mirror | None = None
    begun = False

    def begin() -> list[Job]:
        nonlocal mirror, begun
        seconds = steps.result() if steps is not None else {}
        remember()
        begun = True
        mirror = start_mirror(store, suite.name, files=artifacts) if track else None
        soon = threading.Timer(HEAD_START, _import_reporters)
        soon.daemon = True
        soon.start()
        return planned_order(jobs, seconds)

    try:
        outcome = run_jobs(
            jobs,
            begin=begin,
            store=store,
            observer=display,
            max_concurrent=max_concurrent,
            git=git_revision(),
            cluster=cluster,
        )
        if not begun:
            raise KeyboardInterrupt
        reports, unwritten = write_reports(store, suite.name)
    finally:
        synced = mirror.finish() if mirror is not None else None
    if outcome.leaving is not None:
        outcome.leaving.join()
    summary = summarise(suite, asked, store, interrupted=outcome.interrupted)
    summary.problem = outcome.problem
    summary.reports, summary.unwritten = reports, unwritten
    summary.tracking = synced if isinstance(synced, str) else None
    return summary


def _import_reporters() -> None:
    """While trials run, so that the reports need not wait for it; what is wrong with one is said when it is used."""
    for name in registry.names("reporters"):
        with contextlib.suppress(UserError):
            registry.get("reporters", name)


def _in_background(work: Callable[[], dict[str, float]]) -> Future[dict[str, float]]:
    """Start work in a thread that does not keep the process from ending."""
    future: Future[dict[str, float]] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
