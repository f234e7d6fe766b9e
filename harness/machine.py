"""What a machine says of itself: versions, memory, disks, GPUs, what it sees of the results, and its clock.

On the nodes of a cluster these functions run without the harness (they travel by value), as it may be missing there:
so nothing of it is imported at the top, and everything that can be absent is looked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

PACKAGE = "pointpeft-harness"
COMPARED = ("ray", "torch", "accelerate", "numpy", "pydantic")
"""Packages whose versions a cluster's nodes are compared by."""


def facts(question: dict[str, Any]) -> dict[str, Any]:
    """Everything that can be said of this machine, as JSON.

    `question`: `folders` (label -> absolute path), `mark` and `content` (the file of harness.shared, or None), and
    `data`, `datasets`, `weights` (what a suite needs; the data folder as an absolute path).
    """
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "harness": _version(PACKAGE),
        "code": source_digest("harness"),
        "packages": {name: _version(name) for name in COMPARED},
        "plugins": plugins(),
        "memory": memory(),
        "folders": {label: folder(path) for label, path in question.get("folders", {}).items()},
        "gpus": gpus(),
        "results": sees(question["mark"], question["content"]) if question.get("mark") else "",
        "missing": missing(question),
    }


def clock() -> float:
    """Seconds since the epoch."""
    return time.time()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_digest(package: str) -> str | None:
    """A digest of a package's Python files; None when it is not installed. Imports nothing."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    root = Path(found.origin).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def plugins() -> dict[str, str]:
    """Packages that bring methods, backbones, datasets or reporters, with their versions."""
    found = {}
    for kind in ("methods", "backbones", "datasets", "reporters"):
        for entry in importlib.metadata.entry_points(group=f"harness.{kind}"):
            if entry.dist is not None:
                found[entry.dist.name] = entry.dist.version
    return found


def memory() -> dict[str, int]:
    """Bytes of main memory: `total` and `available`; of the container where it has a limit of its own."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    found = {"total": pages * size, "available": pages * size}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found["available"] = int(line.split()[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        found = {"total": min(found["total"], limit), "available": min(found["available"], max(0, limit - used))}
    return found


def folder(path: str) -> dict[str, Any]:
    """Whether files can be made in a folder, or in the one above it that is there; free bytes of its disk."""
    place = Path(path)
    while not place.exists() and place != place.parent:
        place = place.parent
    problem = ""
    try:
        with tempfile.TemporaryFile(dir=place) as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        problem = error.strerror or str(error)
    try:
        free = shutil.disk_usage(place).free
    except OSError:
        free = 0
    return {"path": path, "exists": Path(path).is_dir(), "problem": problem, "free": free}


def gpus() -> dict[str, Any]:
    """What NVML tells: `driver`, `devices` (name, memory and what is free of it in bytes), or the `problem`."""
    try:
        import pynvml
    except ImportError:
        return {"problem": "the package nvidia-ml-py is missing", "devices": []}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return {"problem": str(error), "devices": []}
    try:
        devices = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            amount = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            devices.append({"name": str(name), "memory": int(amount.total), "free": int(amount.free)})
        return {"problem": "", "driver": str(pynvml.nvmlSystemGetDriverVersion()), "devices": devices}
    except pynvml.NVMLError as error:
        return {"problem": str(error), "devices": []}
    finally:
        pynvml.nvmlShutdown()


def sees(mark: str, content: str) -> str:
    """Empty where a results folder's mark can be read here and its owner's lock holds here too; else why not."""
    try:
        with Path(mark).open("r+") as file:
            if file.read() != content:
                return "another folder of the same path"
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return ""
            return "the file system does not share locks between machines"
    except OSError as error:
        return error.strerror or str(error)


def missing(question: dict[str, Any]) -> list[str]:
    """A sentence for every dataset and every set of weights that a suite needs and this machine has not."""
    datasets, weights = question.get("datasets", ()), question.get("weights", ())
    if not datasets and not weights:
        return []
    os.environ["HARNESS_DATA"] = question["data"]
    try:
        from harness import registry
        from harness.models.weights import find_weights

        found = [registry.get("datasets", name).missing(Path(question["data"])) for name in datasets]
        found += [find_weights(name).missing() for name in weights]
    except Exception as error:  # of a node's own installation: to be told, whatever it is
        return [f"{type(error).__name__}: {error}"]
    return [message for message in found if message]
