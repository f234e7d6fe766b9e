"""Where numbers come from: the protocol each trial followed, versions, hardware, and what must not be mixed.

Read from the specification and the environment that each result carries; what is not there is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.result import Result
from reports.columns import count, listed

Protocol = tuple[tuple[str, str], ...]
"""Settings that make scores comparable, by field path, as text. Equal ones may be ranked together."""

ENVIRONMENT = {
    "harness": "harness",
    "git": "revision",
    "python": "Python",
    "torch": "PyTorch",
    "accelerate": "Accelerate",
    "ray": "Ray",
    "platform": "platform",
    "cpu": "CPU",
    "cpus": "CPU cores",
    "threads": "threads",
    "gpu": "GPU",
    "precision": "precision",
}
VERSIONS = ("harness", "git", "python", "torch", "accelerate", "ray")
HARDWARE = ("cpu", "cpus", "threads", "gpu")
MEANINGS = {
    "data.points": "points per cloud",
    "data.sampling": "point sampling",
    "method.pool": "head inputs (a method's own prompts apart)",
    "train.augment": "training augmentation",
    "protocol.selection": "selection",
    "protocol.validation_fraction": "validation fraction",
    "protocol.validation_seed": "validation seed",
    "protocol.vote": "votes",
    "protocol.frozen_batchnorm": "frozen batch norms",
    "protocol.batchnorm": "batch norms over processes",
    "environment.gpu": "hardware",
    "resources.precision": "precision",
    "resources.processes": "processes",
}
SELECTIONS = {
    "last": "the model of the last epoch is tested, the test split chooses nothing",
    "validation": "the epoch that is best on the validation split is tested, the test split chooses nothing",
    "paper": "the model of the last epoch is tested; the best epoch on the test split is a column of its own",
}


def plain(value: Any) -> str:
    """A value of a specification or environment as short text."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(value[key])}" for key in sorted(value, key=str))
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if type(value) is int:
        return str(value)
    return "none" if value is None else json.dumps(value)


def section(spec: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section of a specification; empty when it has none."""
    found = spec.get(name)
    return found if isinstance(found, dict) else {}


def protocol_of(result: Result) -> Protocol:
    """What must agree before two scores are ranked: data, augmentation, protocol, head inputs, precision, hardware.

    Without what the task does not depend on. Of the head's inputs, prompts do not count: only the method that makes
    them can hand them on. Precision is the one that was computed with, whatever `auto` came to.
    """
    spec, ignored = result.spec, result.headline.ignores
    data, train = section(spec, "data"), section(spec, "train")
    found = {f"data.{key}": data[key] for key in ("points", "sampling") if key in data}
    found |= {f"train.{key}": train[key] for key in ("augment",) if key in train}
    found |= {f"protocol.{key}": value for key, value in section(spec, "protocol").items()}
    pool = section(section(spec, "method"), "settings").get("pool")
    if isinstance(pool, list | tuple):
        found["method.pool"] = sorted(plain(part) for part in pool if not plain(part).startswith("prompt_"))
    resources = section(spec, "resources")
    found |= {f"resources.{key}": resources[key] for key in ("precision",) if key in resources}
    if resources.get("precision") == "auto":
        found["resources.precision"] = result.environment.get("precision", "auto")
    if resources.get("processes", 1) != 1:  # batch norms and dropout see other rows
        found["resources.processes"] = resources["processes"]
    if "gpu" in result.environment:
        found["environment.gpu"] = hardware(result)
    return tuple((key, plain(found[key])) for key in sorted(found.keys() - set(ignored)))


def hardware(result: Result) -> str:
    """The class of machine: the GPU's name, or CPU."""
    gpu = result.environment.get("gpu")
    return "CPU" if gpu is None else plain(gpu)


def describe(protocol: Protocol, *, only: Iterable[str] | None = None) -> str:
    """`points per cloud 512, training augmentation rotate`; `only` picks field paths."""
    chosen = set(only) if only is not None else None
    picked = [(key, value) for key, value in protocol if chosen is None or key in chosen]
    return ", ".join(f"{MEANINGS.get(key, key)} {value}" for key, value in picked) or "no protocol recorded"


def differing(protocols: Sequence[Protocol]) -> list[str]:
    """Field paths in which protocols differ."""
    keys = sorted({key for protocol in protocols for key, _ in protocol})
    return [key for key in keys if len({dict(protocol).get(key) for protocol in protocols}) > 1]


def protocol_sentence(dataset_names: Sequence[str], protocol: Protocol) -> str:
    """How the numbers of some datasets came about."""
    values = dict(protocol)
    selection = values.get("protocol.selection", "")
    rest = [key for key, _ in protocol if key != "protocol.selection"]
    if not protocol:
        return f"{listed(list(dataset_names))}: no protocol recorded."
    chosen = f"selection {selection}; " if selection else ""
    if selection in SELECTIONS:
        chosen = f"{SELECTIONS[selection]}; "
    return f"{listed(list(dataset_names))}: {chosen}{describe(protocol, only=rest)}."


def recipe(spec: Mapping[str, Any]) -> str:
    """What may differ between methods in one ranking: epochs, batch size, learning rate, weights."""
    if "baseline" in spec:
        return f"baseline {plain(spec['baseline'])}, trains nothing"
    train = section(spec, "train")
    weights = section(section(spec, "backbone"), "settings").get("weights")
    parts = [count(train["epochs"], "epoch")] if isinstance(train.get("epochs"), int) else []
    parts += [f"batch {plain(train['batch_size'])}"] if "batch_size" in train else []
    parts += [f"schedule {plain(train['schedule'])}"] if train.get("schedule", "cosine") != "cosine" else []
    rate = train.get("learning_rate")
    parts += [f"learning rate {rate:g}"] if isinstance(rate, int | float) else []
    parts += [f"weights {plain(weights)}"] if weights is not None else []
    parts += ["activation checkpointing"] if checkpointed(spec) else []
    return ", ".join(parts)


def checkpointed(spec: Mapping[str, Any]) -> bool:
    """Whether blocks ran twice to save memory."""
    return bool(section(spec, "resources").get("activation_checkpointing"))


def environment(results: Iterable[Result]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Versions and hardware of all trials: (what, every distinct value)."""
    found: dict[str, set[str]] = {key: set() for key in ENVIRONMENT}
    for result in results:
        for key in ENVIRONMENT:
            if result.environment.get(key) is not None or (key == "gpu" and key in result.environment):
                found[key].add(plain(result.environment[key]))
    return tuple((ENVIRONMENT[key], tuple(sorted(values))) for key, values in found.items() if values)


def notices(results: Sequence[Result]) -> list[str]:
    """What a reader must know before comparing: mixed hardware, versions or data."""
    found = []
    seen = dict(environment(results))
    mixed = [ENVIRONMENT[key] for key in HARDWARE if len(seen.get(ENVIRONMENT[key], ())) > 1]
    if mixed:
        found.append(f"Trials ran on different hardware ({listed(mixed)}): times and memory do not compare.")
    shared = sum(result.on_a_shared_gpu for result in results)
    if shared:
        found.append(f"{count(shared, 'trial')} ran on a GPU with others: their times and memory are left out.")
    trained = [result.spec for result in results if "baseline" not in result.spec]
    again = sum(map(checkpointed, trained))
    if 0 < again < len(trained):
        found.append(f"{count(again, 'trial')} had activation checkpointing, which changes memory and time.")
    mixed = [ENVIRONMENT[key] for key in VERSIONS if len(seen.get(ENVIRONMENT[key], ())) > 1]
    if mixed:
        found.append(f"Trials ran with different versions ({listed(mixed)}); all are listed below.")
    contents: dict[str, set[str]] = {}
    for result in results:
        name = plain(section(result.spec, "dataset").get("name", ""))
        for key in ("data", "dataset"):
            if key in result.digests:
                contents.setdefault(name, set()).add(result.digests[key])
    for name in sorted(contents):
        if len(contents[name]) > 1:
            found.append(f"The content of {name} was not the same in all trials (digests differ): run them again.")
    return found
