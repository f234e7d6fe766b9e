"""Which trials run: those without a result, unfinished ones, those asked for, and those of other data or weights."""

from pathlib import Path

from harness.run import DigestsAtHand, to_run
from harness.store import Result, Status, Store
from harness.suite import load_suite
from harness.trial import Trial


def finish(store: Store, trial: Trial, status: Status = "done", **digests: str) -> None:
    at_hand = DigestsAtHand()
    right = {"data": at_hand.data(trial.dataset.name)}
    if trial.backbone.weights != "random":
        right["weights"] = at_hand.weights(trial.backbone.weights)
    folder = store.trial(trial.identity)
    folder.begin(trial.spec())
    folder.write_result(Result(id=trial.identity, spec=trial.spec(), status=status, digests=right | digests))


def test_what_is_left_to_run(tmp_path: Path) -> None:
    store = Store(tmp_path)
    trials = load_suite("quickstart").only(["method=lora,nearest_neighbour", "dataset=sweethome12"])
    done, stale, data, baseline = trials
    assert to_run(trials, store) == list(trials)
    finish(store, done)
    finish(store, stale, weights="of other weights")
    finish(store, data, data="of other clouds")
    finish(store, baseline)
    assert to_run(trials, store) == [stale, data]


def test_unfinished_and_failed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second, third = load_suite("quickstart").only(["method=lora", "dataset=sweethome12"])
    finish(store, first, "interrupted")
    finish(store, second, "lost")
    finish(store, third, "failed")
    assert to_run([first, second, third], store) == [first, second]
    assert to_run([first, second, third], store, retry=["failed"]) == [first, second, third]
