"""What Ray Tune asks for: who is next, and whom to tell. Imported late, as it imports ray."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.search import Searcher

from harness.store import Store

if TYPE_CHECKING:
    from harness.schedule import Halt, Job, Observer


class PlannedOrder(Searcher):
    """Hands out indices 0, 1, 2, … until the run has to stop: with reused actors Tune's own order is arbitrary."""

    def __init__(self, count: int, *, halt: Halt) -> None:
        super().__init__(metric="done", mode="max")
        self.count, self.next, self.halt = count, 0, halt

    def suggest(self, trial_id: str) -> Any:
        """The next index, or that there is none."""
        if self.next == self.count or self.halt.problem:
            return Searcher.FINISHED
        self.next += 1
        return {"index": self.next - 1}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing to learn from."""


class Watch(Callback):
    """Passes Tune's events on to an observer."""

    def __init__(self, plan: Sequence[Job], *, halt: Halt, observer: Observer, store: Store) -> None:
        self.plan, self.halt, self.observer, self.store = plan, halt, observer, store

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to be able to restore; nothing here is ever restored."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A slot took a trial."""
        self.observer.started(self.plan[trial.config["index"]].trial)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        """A trial left its slot and says whether its results could be written."""
        self.halt.problem = result.get("problem") or self.halt.problem

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial left its slot."""
        job = self.plan[trial.config["index"]]
        folder = self.store.trial(job.trial.identity)
        result, lease = job.errand.settled(folder), folder.running()
        if result is not None and result.crowded:
            self.observer.postponed(job.trial, "it needs more than its part of a GPU, and gets a whole one")
        elif result is not None:
            self.observer.finished(job.trial, result)
        elif lease is not None:
            self.observer.postponed(job.trial, f"process {lease.pid} on {lease.host} works on it")
        else:
            self.observer.postponed(job.trial, self.halt.problem or "its worker vanished; see `harness logs`")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial's actor died, or failed outside the trial's own process: keep what Tune knows in the trial's log."""
        folder = self.store.trial(self.plan[trial.config["index"]].trial.identity)
        error = trial.get_error()
        with contextlib.suppress(OSError):
            folder.path.mkdir(parents=True, exist_ok=True)
            with (folder.path / "log.txt").open("a") as file:
                file.write(f"--- the worker that ran this trial ended{f': {error}' if error else ''}\n")
        self.on_trial_complete(iteration, trials, trial)
