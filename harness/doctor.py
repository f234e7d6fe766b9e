"""`harness doctor`: is this machine, or every node of a cluster, fit to run trials, and what is to be mended.

Every finding comes from doing the thing: files are written and locked, two processes add numbers, the server is asked.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import machine
from harness.cluster import Cluster, look
from harness.errors import UserError
from harness.handshake import all_reduce
from harness.models.weights import data_root
from harness.shared import marked
from harness.store import Store

State = Literal["ok", "note", "problem"]
GIB = 2**30
LOW_DISK, NO_DISK = 10 * GIB, GIB
LOW_MEMORY = 4 * GIB
CLOCK_SECONDS = 2.0
"""From what difference on clocks are worth a word; logs of several nodes cannot be read side by side any more."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    state: State
    text: str
    mend: str = ""
    """What to do; empty where nothing is."""
    host: str = ""
    """Empty for this machine."""


def examine(*, output: Path, address: str | None = None) -> Iterator[Finding]:
    """Findings one by one, as they are made. Of a cluster that does not answer there is one that says so."""
    yield from _packages()
    folders = {"results": str(output.resolve()), "data": str(data_root().resolve())}
    here = machine.facts({"folders": folders})
    yield from _machine(here)
    yield from _torch(here)
    yield from _processes(here)
    yield _mlflow(output)
    if address is not None:
        yield from _cluster(address, output, folders)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    yield Finding("Python", "ok", platform.python_version())
    try:
        requirements = [Requirement(text) for text in importlib.metadata.requires(machine.PACKAGE) or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "problem", "the harness is not installed, only found", "pip install it")
        return
    needed = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = []
    for requirement in needed:
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found = "missing"
        if found == "missing" or not requirement.specifier.contains(found, prereleases=True):
            wrong.append(requirement)
            yield Finding("packages", "problem", f"{requirement.name} {found}", f"pip install '{requirement}'")
    if not wrong:
        shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "ray", "mlflow"))
        yield Finding("packages", "ok", f"all {len(needed)} in versions that fit ({shown})")


def _machine(facts: dict[str, Any], host: str = "") -> Iterator[Finding]:
    """Memory and disks of a machine, by its facts."""
    free, total = (facts["memory"][key] for key in ("available", "total"))
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < LOW_MEMORY:
        yield Finding("memory", "note", text, "a trial with its libraries takes about 1 GiB: fewer at a time", host)
    else:
        yield Finding("memory", "ok", text, host=host)
    for label, folder in facts["folders"].items():
        subject = f"{label} folder"
        text = f"{folder['path']}: {folder['free'] / GIB:.1f} GiB free"
        if folder["problem"] and label == "data":
            told = f"{folder['path']}: cannot be written ({folder['problem']}); reading is enough for trials"
            yield Finding(subject, "note", told, "importing data needs a folder to write to (--data)", host)
        elif folder["problem"]:
            told = f"{folder['path']}: cannot be written or locked ({folder['problem']})"
            yield Finding(subject, "problem", told, "choose another --output, or mend its permissions", host)
        elif folder["free"] < NO_DISK:
            yield Finding(subject, "problem", text, "make room: a run stops when the disk is full", host)
        elif folder["free"] < LOW_DISK:
            yield Finding(subject, "note", text, "`harness clean --checkpoints` makes room", host)
        else:
            yield Finding(subject, "ok", text, host=host)
    yield _gpus(facts, host)


def _gpus(facts: dict[str, Any], host: str) -> Finding:
    gpus = facts["gpus"]
    if gpus["devices"]:
        devices = ", ".join(
            f"{d['name']} ({d['free'] / GIB:.0f} of {d['memory'] / GIB:.0f} GiB free)" for d in gpus["devices"]
        )
        busy = [d for d in gpus["devices"] if d["free"] < 0.9 * d["memory"]]
        text = f"{devices}; driver {gpus['driver']}"
        if busy:
            mend = "others use them: times and memory of trials are not comparable while they do"
            return Finding("GPUs", "note", text, mend, host)
        return Finding("GPUs", "ok", text, host=host)
    if "missing" in gpus["problem"]:
        return Finding("GPUs", "problem", gpus["problem"], "pip install nvidia-ml-py", host)
    if Path("/dev/nvidia0").exists() and not host:
        mend = "the driver and its library (libnvidia-ml) must be of one version; a container needs --gpus"
        return Finding("GPUs", "problem", f"there is one, and NVML says: {gpus['problem']}", mend)
    why = f" (NVML: {gpus['problem']})" if gpus["problem"] else ""
    return Finding("GPUs", "note", f"none{why}: trials run on the CPU, columns of GPU memory stay empty", host=host)


def _torch(facts: dict[str, Any]) -> Iterator[Finding]:
    import torch

    built = f"torch {torch.__version__}"
    if not facts["gpus"]["devices"]:
        yield Finding("torch", "ok", f"{built}, on the CPU with {torch.get_num_threads()} threads")
    elif torch.cuda.is_available():
        x = torch.ones(256, 256, device="cuda")
        right = bool((x @ x == 256).all())
        count = torch.cuda.device_count()
        if right:
            yield Finding("torch", "ok", f"{built} computes on {count} GPU{'s' if count > 1 else ''}")
        else:
            yield Finding("torch", "problem", f"{built}: a product of ones is wrong", "the GPU or its driver is broken")
    else:
        why = "is a CPU build" if torch.version.cuda is None else f"needs a driver for CUDA {torch.version.cuda}"
        mend = "install torch for CUDA (pip install torch), or a newer driver; trials would run on the CPU"
        yield Finding("torch", "problem", f"{built} {why} and sees no GPU", mend)


def _processes(facts: dict[str, Any]) -> Iterator[Finding]:
    """Two processes that meet; over NCCL too where there are two GPUs."""
    import torch

    backends = ["gloo"]
    if len(facts["gpus"]["devices"]) > 1 and torch.distributed.is_nccl_available() and torch.cuda.device_count() > 1:
        backends.append("nccl")
    mends = {
        "gloo": "the host's name must lead to an interface of its own (/etc/hosts), or set GLOO_SOCKET_IFNAME=lo",
        "nccl": "NCCL_DEBUG=INFO tells more; containers need --shm-size or --ipc=host; NCCL_P2P_DISABLE=1 is a way out",
    }
    for backend in backends:
        problem, seconds = all_reduce(backend)
        if problem:
            yield Finding(backend, "problem", f"two processes: {problem}", mends[backend])
        else:
            yield Finding(backend, "ok", f"two processes agree ({seconds:.0f} s with their imports)")


def _mlflow(output: Path) -> Finding:
    """Whether MLflow answers; its database in the results folder is made by the first run."""
    from harness.mlflow_runs import connect
    from harness.tracking import shown_uri, tracking_uri, unreachable

    uri = tracking_uri(Store(output))
    if "MLFLOW_TRACKING_URI" not in os.environ and not (output / "mlflow.db").exists():
        return Finding("MLflow", "ok", f"{uri}, made by the first run; MLFLOW_TRACKING_URI names a server")
    try:
        experiments = connect(uri).search_experiments(max_results=100)
    except Exception as error:  # whatever MLflow, its database driver or the network throw
        mend = "start or mend it, set MLFLOW_TRACKING_URI, or run with --no-mlflow; trials do not wait for it"
        return Finding("MLflow", "problem", f"{shown_uri(uri)} {unreachable(error, uri)}", mend)
    return Finding("MLflow", "ok", f"{shown_uri(uri)} answers; {len(experiments)} experiments")


def _cluster(address: str, output: Path, folders: dict[str, str]) -> Iterator[Finding]:
    question = {"folders": folders, "data": folders["data"]}
    try:
        Store(output).prepare()
        with marked(output) as mark:
            cluster = look(address, question | {"mark": str(mark.path), "content": mark.content})
    except UserError as error:
        yield Finding("cluster", "problem", str(error), "docs/cluster.md says how to start one")
        return
    cpus, gpus = sum(node.cpus for node in cluster.nodes), sum(node.gpus for node in cluster.nodes)
    yield Finding("cluster", "ok", f"{cluster.address}: {len(cluster.nodes)} nodes, {cpus:g} CPUs, {gpus:g} GPUs")
    for difference in dict.fromkeys(cluster.differences()):
        mend = "install the same versions everywhere; `harness run` refuses such a cluster"
        yield Finding("versions", "problem", difference, mend)
    yield from _nodes(cluster)


def _nodes(cluster: Cluster) -> Iterator[Finding]:
    for node in cluster.nodes:
        if node.facts is None:
            continue
        if node.driver:
            yield Finding("clock", "ok", "this machine's", host=node.host)
        elif abs(node.ahead) - node.error > CLOCK_SECONDS:
            text = f"{node.ahead:+.1f} s against this machine's"
            yield Finding("clock", "problem", text, "let NTP or chrony set the clocks of all nodes", node.host)
        else:
            yield Finding("clock", "ok", f"{node.ahead:+.2f} ± {node.error:.2f} s", host=node.host)
        if node.facts["results"]:
            text = f"not shared ({node.facts['results']}): this node's trials travel (docs/cluster.md)"
            yield Finding("shared storage", "note", text, host=node.host)
        else:
            yield Finding("shared storage", "ok", "sees the results folder, and its locks hold", host=node.host)
        other = {n: v for n, v in node.facts["packages"].items() if v != cluster.here["packages"].get(n)}
        if other:
            told = ", ".join(f"{name} {version}" for name, version in sorted(other.items()))
            mend = "results name the versions that they were made with; equal ones are better"
            yield Finding("packages", "note", f"others than here: {told}", mend, node.host)
        if len(node.facts["gpus"]["devices"]) != int(node.gpus):
            text = f"Ray offers {node.gpus:g}, NVML finds {len(node.facts['gpus']['devices'])}"
            yield Finding("GPUs", "note", text, "`ray start --num-gpus` decides what Ray offers", node.host)
        if not node.driver:
            shared = not node.facts["results"]
            facts = node.facts | {"folders": {} if shared else {"data": node.facts["folders"]["data"]}}
            yield from _machine(facts, node.host)
