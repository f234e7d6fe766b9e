"""Two processes that add up a number: whether gloo, or NCCL on two GPUs, works on this machine."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

SECONDS = 60.0
"""For both processes to start, meet and agree; importing torch is most of it."""


def all_reduce(backend: str) -> tuple[str, float]:
    """Have two fresh processes agree over `backend`. Returns what went wrong (empty: nothing), and the seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "harness.handshake", backend, str(Path(folder) / "meet")]
        ranks = [
            subprocess.Popen([*command, str(rank)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for rank in range(2)
        ]
        problem = ""
        for rank in ranks:
            try:
                _, error = rank.communicate(timeout=max(1.0, SECONDS - (time.monotonic() - began)))
                if rank.returncode and not problem:
                    problem = (error.strip().splitlines() or [f"exit code {rank.returncode}"])[-1][:300]
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.communicate()
                problem = problem or f"two processes did not meet within {SECONDS:g} s"
    return problem, time.monotonic() - began


def main(backend: str, meeting: str, rank: str) -> None:
    """One of the two: adds 1 and 2."""
    import torch
    import torch.distributed as dist

    timeout = timedelta(seconds=SECONDS / 2)
    dist.init_process_group(backend, init_method=f"file://{meeting}", rank=int(rank), world_size=2, timeout=timeout)
    device = f"cuda:{rank}" if backend == "nccl" else "cpu"
    value = torch.full((1000,), float(int(rank) + 1), device=device)
    dist.all_reduce(value)
    if not bool((value == 3).all()):
        raise SystemExit(f"the sum of 1 and 2 came out as {value[0].item()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
