"""What the harness adds to its trials: `python benchmarks/overhead.py [--trials 42] [--seconds 10]`.

Trains one small method many times on two slots, and compares the wall time of the whole command with the ideal: the
sum of what the trials' own processes report, shared by the slots. The overhead of a trial is all the time of its slot
that its own process does not report: handing it out, forking, writing, and the wait since the trial before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

SLOTS = 2
SUITE = """\
format: 1
name: overhead
seeds: {seeds}
datasets: [sweethome12]
backbones:
  point_mae: {{preset: tiny, weights: point_mae_tiny_parts}}
methods:
  lora: {{}}
train: {{epochs: {epochs}, batch_size: 16, learning_rate: 1.0e-3, warmup_epochs: 1}}
protocol: {{frozen_batchnorm: running}}
"""


def harness(folder: Path, *, seeds: int, epochs: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of the whole command, and the results."""
    folder.mkdir()
    (folder / "suite.yaml").write_text(SUITE.format(seeds=seeds, epochs=epochs))
    command = [sys.executable, "-c", "from harness.cli import main; main()", "run", "suite.yaml"]
    began = time.monotonic()
    subprocess.run([*command, "--max-concurrent", str(SLOTS)], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    took = time.monotonic() - began
    return took, [json.loads(path.read_text()) for path in folder.glob("results/trials/*/result.json")]


def overheads(results: list[dict[str, Any]]) -> list[float]:
    """Seconds per trial that its slot spent on anything but its own work; the first trial of each slot left out."""

    def at(result: dict[str, Any], key: str) -> float:
        return datetime.fromisoformat(result["attempts"][-1][key]).timestamp()

    free: list[float | None] = [None] * SLOTS
    found = []
    for result in sorted(results, key=lambda result: at(result, "started")):
        slot = min(range(SLOTS), key=lambda index: free[index] or 0.0)
        before = free[slot]
        if before is not None:
            found.append(at(result, "ended") - before - result["time"]["total"])
        free[slot] = at(result, "ended")
    return found


def main() -> None:
    """Find the number of epochs that takes about the wanted time, run, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=42)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        _, probe = harness(Path(scratch) / "probe", seeds=3 * SLOTS, epochs=8)
        alone = sorted(result["time"]["total"] for result in probe)[: 2 * SLOTS]  # the first share with Ray's start
        per_epoch = statistics.mean(alone) / 8
        epochs = max(1, round(arguments.seconds / per_epoch))
        wall, results = harness(Path(scratch) / "run", seeds=arguments.trials, epochs=epochs)
    totals = [result["time"]["total"] for result in results]
    ideal, extra = sum(totals) / SLOTS, overheads(results)
    print(
        json.dumps(
            {
                "trials": len(results),
                "seconds_per_trial": round(statistics.mean(totals), 2),
                "wall": round(wall, 1),
                "ideal": round(ideal, 1),
                "ratio": round(wall / ideal, 3),
                "overhead_median": round(statistics.median(extra), 3),
                "overhead_max": round(max(extra), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
