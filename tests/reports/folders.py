"""Result folders as trials leave them: results, curves, predictions and logs of the synthetic suites."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from harness.data.sweethome import SWEETHOME12
from harness.result import Metrics, Result
from harness.store import SuiteResults
from tests.reports.synthetic import changed, synthetic, write_folder

CLASSES = tuple(f"class_{k}" for k in range(12))
HOSTILE = "</script><img src=x onerror=alert(1)>\u2028{{7*7}} &amp; \"'"


def with_files(results: SuiteResults, output: Path, *, epochs: int = 20, log: str = "epoch 2\n") -> SuiteResults:
    """The suite as a folder with curves, predictions and logs, read back."""
    store = write_folder(results, output)
    for entry in results.entries:
        path, result = store.trial(entry.id).path, entry.result
        if result is None:
            continue
        (path / "log.txt").write_text(log)
        lines = [f'{{"epoch": {e}, "train/loss": {2.4 / (e + 1 + 0.1 * entry.seed):.6f}}}\n' for e in range(epochs)]
        (path / "metrics.jsonl").write_text("".join(lines))
        if result.metrics.correct is None or result.metrics.total is None:
            continue
        label = np.arange(result.metrics.total, dtype=np.int16) % len(CLASSES)
        draw = np.random.default_rng(entry.seed)
        wrong = draw.permutation(result.metrics.total)[: result.metrics.total - result.metrics.correct]
        prediction = label.copy()
        prediction[wrong] = (prediction[wrong] + draw.integers(1, 12, len(wrong))) % len(CLASSES)
        np.savez(path / "predictions.npz", prediction=prediction, label=label)
    return store.load(results.name)


def broken() -> SuiteResults:
    """The synthetic suite with a method that ran out of memory and one trial that is missing."""

    def breaking(entry):  # type: ignore[no-untyped-def]
        if (entry.method, entry.seed) == ("vpt", 2):
            return None
        if entry.method == "full" and entry.dataset == "sweethome12":
            return Result(id=entry.id, spec=entry.result.spec, status="oom", error="CUDA out of memory")
        return entry.result

    return changed(synthetic(), breaking)


def hostile() -> SuiteResults:
    """Hostile text in every field that comes from outside."""
    entries = []
    for entry in broken().entries:
        result = entry.result
        if result is not None:
            error = HOSTILE * 500 if result.status != "done" else None
            machine = result.environment | {"cpu": HOSTILE, HOSTILE: HOSTILE}
            spec = result.spec | {HOSTILE: HOSTILE}
            result = result.model_copy(
                update={"environment": machine, "error": error, "spec": spec, "digests": {HOSTILE: HOSTILE}}
            )
        names = {"method": f"{HOSTILE}{entry.method}", "backbone": HOSTILE, "dataset": f"{HOSTILE}{entry.dataset}"}
        entries.append(replace(entry, result=result, **names))
    return SuiteResults("hostile", HOSTILE, HOSTILE, tuple(entries))


def large(trials: int) -> SuiteResults:
    """So many trials: seven methods on one dataset with many seeds."""
    plain = [e for e in synthetic(seeds=(0,)).entries if e.dataset == "sweethome12" and not e.reference]
    entries = []
    for number in range(trials):
        entry, seed = plain[number % len(plain)], number // len(plain)
        assert entry.result is not None
        identity = f"{number:016x}"
        result = entry.result.model_copy(update={"id": identity, "spec": entry.result.spec | {"seed": seed}})
        entries.append(replace(entry, id=identity, seed=seed, result=result))
    return SuiteResults("large", "", "0" * 16, tuple(entries))


def with_clouds(output: Path, *, confident: bool = True, methods: tuple[str, ...] = ("lora", "dapt")) -> SuiteResults:
    """A small suite on sweethome12's own test labels, each trial with 30 wrong items, read back from its folder."""
    label = SWEETHOME12.load("test", output).labels.astype(np.int16)
    wrong, total = 30, len(label)
    metrics = Metrics(accuracy=1 - wrong / total, correct=total - wrong, total=total)
    kept = [e for e in synthetic(seeds=(0,)).entries if e.method in methods and e.dataset == "sweethome12"]
    entries = [
        replace(e, result=e.result.model_copy(update={"metrics": metrics})) for e in kept if e.result is not None
    ]
    store = write_folder(SuiteResults("real", "", "0" * 16, tuple(entries)), output)
    for number, entry in enumerate(entries):
        path, prediction = store.trial(entry.id).path, label.copy()
        prediction[number : number + wrong] = (prediction[number : number + wrong] + 1) % 12
        sure = {"confidence": np.linspace(0.2, 0.9, total).astype(np.float16)} if confident else {}
        np.savez(path / "predictions.npz", prediction=prediction, label=label, **sure)
        lines = [f'{{"epoch": {e}, "train/loss": {2.4 / (e + 1):.6f}, "train/rate": 0.1}}\n' for e in range(20)]
        (path / "metrics.jsonl").write_text("".join(lines))
    return store.load("real")
