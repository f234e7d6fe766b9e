"""What a trial ran on: versions and hardware, for the result and the report's footer."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import harness


@cache
def cpuinfo(field: str) -> str | None:
    """What Linux says of the (first) processor under a name such as `vendor_id`; None where it says nothing."""
    try:
        match = re.search(rf"^{field}\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return match[1] if match else None


def cpu_name() -> str:
    """What the processor calls itself."""
    return cpuinfo("model name") or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def git_revision() -> str | None:
    """Revision of the harness's source when it runs from a clone, with `+` when it is changed; else None."""
    root = Path(harness.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, timeout=5
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") or None


def environment(device: torch.device, *, precision: str, threads: int, git: str | None) -> dict[str, Any]:
    """Versions and hardware; `gpu` is None on a CPU."""
    return {
        "harness": harness.__version__,
        "git": git,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "accelerate": _version("accelerate"),
        "ray": _version("ray"),
        "peft": _version("peft"),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "precision": precision,
    }


@cache
def libraries() -> str:
    """Versions of what computes."""
    found = {name: _version(name) for name in ("torch", "accelerate", "numpy", "peft", "deepspeed")}
    found |= {"python": platform.python_version(), "harness": harness.__version__}
    return ", ".join(f"{name} {number}" for name, number in found.items())


def code_digest(*plugins: type) -> str:
    """SHA-256 of the source of the harness, and of the modules or packages that define some classes; read once."""
    return _source_digest(frozenset(plugin.__module__.partition(".")[0] for plugin in plugins) - {"harness"})


@cache
def _source_digest(packages: frozenset[str]) -> str:
    files = set(Path(harness.__file__).parent.rglob("*.py"))
    for name in packages:
        module = importlib.import_module(name)
        folders = [Path(folder) for folder in getattr(module, "__path__", ())]
        files |= {file for folder in folders for file in folder.rglob("*.py")}
        source = getattr(module, "__file__", None)
        files |= {Path(source)} if source is not None else set()
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()
