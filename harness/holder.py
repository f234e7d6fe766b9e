"""A process as others know it: by host, number and start."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict


class Holder(BaseModel):
    """Who holds something: a lease, a run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    namespace: str
    """Of process numbers: two containers of one host name count their processes apart."""
    pid: int
    created: str
    """When the process was started, as this host's clock-independent text: tells it from a later one of its number."""

    @property
    def here(self) -> bool:
        """Whether it is, or was, a process that this one could see."""
        return (self.host, self.namespace) == (socket.gethostname(), _namespace())

    def alive(self) -> bool:
        """Whether a process of this host lives. Of another host's nothing is known: False."""
        if not self.here:
            return False
        try:
            alive = psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
            return alive and _created(self.pid) == self.created
        except (psutil.Error, OSError, ValueError, OverflowError):
            return False


def myself() -> dict[str, Any]:
    """The fields of this process's Holder."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "namespace": _namespace(), "pid": pid, "created": _created(pid)}


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _created(pid: int) -> str:
    """On Linux the boot and the clock ticks since, which setting the clock does not move; elsewhere the time."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return f"{psutil.Process(pid).create_time():.0f}"
    return f"{boot} {ticks}"
