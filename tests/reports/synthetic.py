"""Synthetic suites: 7 methods x 2 datasets x 3 seeds and two references, as folders of a store."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from harness.atomic import write_atomically
from harness.result import Memory, Metrics, Parameters, Record, Result, Storage, Time
from harness.store import Entry, Store, SuiteResults

METHODS = {  # trainable parameters, mean accuracy on each dataset
    "full": (588_636, 0.775, 0.497),
    "linear_probe": (118_540, 0.742, 0.452),
    "vpt": (122_572, 0.764, 0.498),
    "adapter": (132_460, 0.812, 0.531),
    "lora": (131_020, 0.781, 0.505),
    "dapt": (134_396, 0.806, 0.514),
    "point_peft": (147_724, 0.789, 0.522),
}
DATASETS = {"sweethome12": 139, "sweethome12_scanlike": 139}
SEEDS = (0, 1, 2)
ENVIRONMENT = {
    "harness": "0.1.0",
    "python": "3.11.2",
    "torch": "2.13.0+cpu",
    "accelerate": "1.13.0",
    "ray": "2.55.0",
    "platform": "Linux-6.1-x86_64",
    "cpu": "AMD EPYC 9B14",
    "cpus": 2,
    "threads": 1,
    "gpu": None,
    "precision": "fp32",
    "git": "4f2d1c9",
}
REASONS = {
    name: "no GPU in this trial"
    for name in (f"memory.{part}" for part in ("train_peak", "train_reserved", "device", "eval_peak", "total_peak"))
}


def spec_of(method: str, dataset: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A specification as harness.trial writes it; changes such as train_augment="none" name section and key."""
    spec: dict[str, Any] = {
        "format": 1,
        "dataset": {"name": dataset, "version": 1},
        "data": {"points": 512, "sampling": "random"},
        "method": {"name": method, "version": 1, "settings": {}},
        "backbone": {"name": "point_mae", "version": 1, "settings": {"weights": "point_mae_tiny"}},
        "train": {"epochs": 18, "batch_size": 16, "learning_rate": 2e-3, "augment": "scale_translate"},
        "protocol": {"selection": "last", "validation_fraction": 0.0, "vote": 0, "frozen_batchnorm": "batch"},
        "seed": seed,
        "resources": {"precision": "fp32", "processes": 1, "strategy": "ddp"},
    }
    if dataset == "sweethome12_scanlike":
        spec["train"]["augment"] = "rotate"
    for name, value in changes.items():
        section, _, key = name.partition("_")
        spec[section][key] = value
    return spec


def result_of(
    identity: str, spec: dict[str, Any], *, accuracy: float, trainable: int, rng: np.random.Generator
) -> Result:
    total = DATASETS[spec["dataset"]["name"]]
    correct = round(accuracy * total)
    return Result(
        id=identity,
        spec=spec,
        status="done",
        metrics=Metrics(
            accuracy=correct / total,
            class_accuracy=correct / total - 0.03,
            correct=correct,
            total=total,
            loss=0.9,
        ),
        parameters=Parameters(
            added=max(0, trainable - 118_732) if trainable < 500_000 else 0,
            unfrozen=192 if trainable < 500_000 else 470_096,
            head=118_540,
            trainable=trainable,
            total=588_636 + (max(0, trainable - 118_732) if trainable < 500_000 else 0),
        ),
        memory=Memory(host_peak=int(rng.normal(505e6, 6e6))),
        time=Time(step=float(rng.normal(0.02, 0.002)), throughput=float(rng.normal(800, 60)), total=12.0),
        storage=Storage(adapter=trainable * 4 + 1200),
        environment=copy.deepcopy(ENVIRONMENT),
        reasons=dict(REASONS),
        attempts=[{"status": "done"}],
    )


def baseline_of(identity: str, dataset: str, accuracy: float) -> Result:
    total = DATASETS[dataset]
    correct = round(accuracy * total)
    spec = {
        "format": 1,
        "dataset": {"name": dataset, "version": 1},
        "data": {"points": 512},
        "baseline": "nearest",
    }
    return Result(
        id=identity,
        spec=spec,
        status="done",
        metrics=Metrics(accuracy=correct / total, correct=correct, total=total),
        environment=copy.deepcopy(ENVIRONMENT),
        reasons={"parameters": "a baseline trains nothing", "storage": "a baseline trains nothing"},
    )


def identity_of(method: str, dataset: str, seed: int) -> str:
    return hashlib.sha256(f"{method} {dataset} {seed}".encode()).hexdigest()[:16]


def synthetic(*, seeds: tuple[int, ...] = SEEDS, description: str = "Seven methods on furniture") -> SuiteResults:
    """A whole suite, all done: equal for equal arguments."""
    rng = np.random.default_rng(7)
    entries = []
    for index, dataset in enumerate(DATASETS):
        for method, (trainable, *means) in METHODS.items():
            for seed in seeds:
                identity = identity_of(method, dataset, seed)
                accuracy = means[index] + float(rng.normal(0, 0.016 + 0.01 * index))
                spec = spec_of(method, dataset, seed)
                result = result_of(identity, spec, accuracy=accuracy, trainable=trainable, rng=rng)
                entries.append(Entry(identity, method, "point_mae", dataset, seed, False, result))
        identity = identity_of("nearest_neighbour", dataset, 0)
        result = baseline_of(identity, dataset, (0.653, 0.299)[index])
        entries.append(Entry(identity, "nearest_neighbour", "point_mae", dataset, 0, True, result))
        for seed in seeds:
            identity = identity_of("random_probe", dataset, seed)
            spec = spec_of("linear_probe", dataset, seed)
            spec["backbone"]["settings"]["weights"] = "random"
            accuracy = (0.67, 0.36)[index] + float(rng.normal(0, 0.02))
            result = result_of(identity, spec, accuracy=accuracy, trainable=118_540, rng=rng)
            entries.append(Entry(identity, "random_probe", "point_mae", dataset, seed, True, result))
    return SuiteResults("quickstart", description, "9c1f2e3d4b5a6978", tuple(entries))


def changed(results: SuiteResults, change: Callable[[Entry], Result | None]) -> SuiteResults:
    """The suite with every entry's result replaced by what `change` makes of it."""
    entries = tuple(
        Entry(e.id, e.method, e.backbone, e.dataset, e.seed, e.reference, change(e)) for e in results.entries
    )
    return SuiteResults(results.name, results.description, results.digest, entries)


def altered(result: Result, **parts: dict[str, Any]) -> Result:
    """A copy of a result with some fields of some parts changed: altered(r, metrics={"accuracy": 0.5})."""
    copies: dict[str, Any] = {}
    for name, values in parts.items():
        part: Record = getattr(result, name)
        copies[name] = part.model_copy(update=values)
    return result.model_copy(update=copies)


def with_asides(results: SuiteResults) -> SuiteResults:
    """The suite with the papers' numbers beside the headline: best on test for all methods, ten votes for two."""

    def beside(entry: Entry) -> Result | None:
        if entry.result is None or entry.reference:
            return entry.result
        accuracy = entry.result.metrics.accuracy or 0.0
        spec = copy.deepcopy(entry.result.spec)
        spec["protocol"] |= {"selection": "paper", "vote": 10}
        vote = accuracy + 0.05 if entry.method in ("lora", "dapt") else None
        metrics = {"accuracy_best_on_test": accuracy + 0.1, "accuracy_vote": vote}
        return altered(entry.result, metrics=metrics).model_copy(update={"spec": spec})

    return changed(results, beside)


def write_folder(results: SuiteResults, output: Path, *, order: list[int] | None = None) -> Store:
    """The suite as a store's folder, its files written in a given order."""
    store = Store(output)
    store.prepare()
    index = [
        {
            "id": e.id,
            "method": e.method,
            "backbone": e.backbone,
            "dataset": e.dataset,
            "seed": e.seed,
            "reference": e.reference,
        }
        for e in results.entries
    ]
    chosen = order if order is not None else list(range(len(index)))
    store.write_suite(
        name=results.name,
        description=results.description,
        digest=results.digest,
        text=json.dumps({"name": results.name}),
        trials=[index[i] for i in chosen],
    )
    for i in chosen:
        entry = results.entries[i]
        if entry.result is not None:
            folder = store.trial(entry.id)
            write_atomically(folder.path / "spec.json", json.dumps(entry.result.spec))
            write_atomically(folder.path / "result.json", entry.result.model_dump_json())
    return store


def segmented(results: SuiteResults, dataset: str) -> SuiteResults:
    """The suite without its references, and with mIoUs of three categories in place of accuracies on one dataset."""

    def segment(entry: Entry) -> Result | None:
        if entry.result is None or entry.dataset != dataset:
            return entry.result
        score = entry.result.metrics.accuracy or 0.0
        categories = {"Airplane": score - 0.03, "Chair": score + 0.05, "Mug": score - 0.1}
        metrics = Metrics(
            instance_miou=score,
            class_miou=sum(categories.values()) / 3,
            point_accuracy=score + 0.1,
            category_miou=categories,
            instance_miou_best_on_test=score + 0.01,
            total=DATASETS[dataset],
        )
        return entry.result.model_copy(update={"task": "part segmentation", "metrics": metrics})

    found = changed(results, segment)
    return SuiteResults(found.name, found.description, found.digest, tuple(e for e in found.entries if not e.reference))
