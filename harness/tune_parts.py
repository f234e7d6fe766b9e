"""What Ray Tune asks for: who is next, and whom to tell. Imported late, as it imports ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from ray.tune.search import Searcher

from harness.store import Store
from harness.trial import Trial

if TYPE_CHECKING:
    from harness.schedule import Observer


class PlannedOrder(Searcher):
    """Hands out indices 0, 1, 2, …: with reused actors Tune's own order is arbitrary."""

    def __init__(self, count: int) -> None:
        super().__init__(metric="done", mode="max")
        self.count, self.next = count, 0

    def suggest(self, trial_id: str) -> Any:
        """The next index, or that there is none."""
        if self.next == self.count:
            return Searcher.FINISHED
        self.next += 1
        return {"index": self.next - 1}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Nothing to learn from."""


class Watch(Callback):
    """Passes Tune's events on to an observer."""

    def __init__(self, plan: Sequence[Trial], *, observer: Observer, store: Store) -> None:
        self.plan, self.observer, self.store = plan, observer, store

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to be able to restore; nothing here is ever restored."""
        return {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A slot took a trial."""
        self.observer.started(self.plan[trial.config["index"]])

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial left its slot."""
        chosen = self.plan[trial.config["index"]]
        self.observer.finished(chosen, self.store.trial(chosen.identity).result())

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial's actor died."""
        self.on_trial_complete(iteration, trials, trial)
