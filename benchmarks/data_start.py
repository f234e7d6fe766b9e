"""How long a trial's data takes to load, and what it costs in memory: `python benchmarks/data_start.py`.

Writes h5 files of PB_T50_RS's sizes, random, into a temporary folder; loads them for the first time (read, checked,
converted), then again from the cache, alone and in several processes at once that each touch every point, and prints
one JSON line. Megabytes per process are what /proc/PID/smaps_rollup gained: `resident` counts shared pages in
every process, `proportional` shares them out, `anonymous` is what a process holds for itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

import h5py
import numpy as np

from harness.data.scanobjectnn import PB_T50_RS

MB = 1e6


def write(root: Path, *, train: int, test: int) -> None:
    """Random clouds in the official layout."""
    rng = np.random.default_rng(0)
    for split, items in (("train", train), ("test", test)):
        path = PB_T50_RS.split_files(split, root)[0]  # type: ignore[arg-type]
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["data"] = rng.random((items, PB_T50_RS.points, 3), dtype=np.float32)
            file["label"] = rng.integers(0, len(PB_T50_RS.classes), items)


def load(root: Path) -> float:
    """Seconds until both splits can be used."""
    began = time.perf_counter()
    for split in ("train", "test"):
        PB_T50_RS.load(split, root)  # type: ignore[arg-type]
    return time.perf_counter() - began


def memory() -> dict[str, float]:
    """Megabytes of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 / MB for line in lines}
    return {"resident": found["Rss"], "proportional": found["Pss"], "anonymous": found["Anonymous"]}


def child(root: Path, barrier: Barrier, pipe: Connection) -> None:
    """Load, touch every point, measure while all others hold theirs."""
    before = memory()
    began = time.perf_counter()
    clouds = [PB_T50_RS.load(split, root) for split in ("train", "test")]  # type: ignore[arg-type]
    took = time.perf_counter() - began
    total = sum(
        float(split.points[begin : begin + 64].sum()) for split in clouds for begin in range(0, len(split.labels), 64)
    )
    barrier.wait()
    after = memory()
    barrier.wait()
    pipe.send({"seconds": took, "sum": total} | {key: after[key] - before[key] for key in after})


def together(root: Path, processes: int) -> dict[str, float]:
    """The means over several processes that hold the data at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    pipes, started = [], []
    for _ in range(processes):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(root, barrier, sender))
        process.start()
        pipes.append(receiver)
        started.append(process)
    found = [pipe.recv() for pipe in pipes]
    for process in started:
        process.join()
    return {key: round(sum(entry[key] for entry in found) / processes, 3) for key in found[0] if key != "sum"}


def main() -> None:
    """Write, load, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=PB_T50_RS.train_items)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write(root, train=arguments.items, test=PB_T50_RS.test_items)
        size = sum(path.stat().st_size for path in PB_T50_RS.sources(root)) / MB
        figures = {"megabytes": round(size, 1), "first": round(load(root), 3), "second": round(load(root), 4)}
        print(json.dumps(figures | {"processes": {count: together(root, count) for count in (1, 4)}}))


if __name__ == "__main__":
    main()
