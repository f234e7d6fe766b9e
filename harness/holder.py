"""A process as others know it: by host, number and start."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict

CLOCK_DRIFT = 5.0
"""Seconds by which a process's start may seem to move when the system's clock is set."""


class Holder(BaseModel):
    """Who holds something: a lease, a run."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    pid: int
    created: float
    """When the process was started, seconds since the epoch: tells it from a later one of the same number."""

    @property
    def here(self) -> bool:
        """Whether it is, or was, a process of this host."""
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Whether a process of this host lives. Of another host's nothing is known: False."""
        if not self.here:
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < CLOCK_DRIFT
            return same and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, ValueError, OverflowError):
            return False


def myself() -> dict[str, Any]:
    """The fields of this process's Holder."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "created": psutil.Process().create_time()}
