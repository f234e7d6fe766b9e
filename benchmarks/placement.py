"""How well the planned order fills a cluster: `python benchmarks/placement.py [--nodes 64] [--gpus 8] [--seeds 5]`.

A simulation without Ray and torch: trials of the paper suite, each with a length drawn around what its method costs, on
fake nodes, handed out in the order that runs use (harness.schedule.planned_order) to the first node with room; the
next one waits, and those behind it wait with it unless `--ahead` lets some be tried, as Ray does with pending groups.
The lower bound of the makespan is the larger of two: all GPU seconds shared by all GPUs, and the longest trial.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.schedule import Job, planned_order
from harness.suite import load_suite
from harness.trial import Trial

HOURS = {"full": 3.4, "linear_probe": 1.1, "vpt": 2.6, "adapter": 2.3, "lora": 2.4, "dapt": 2.25, "point_peft": 2.7}
"""Of 300 epochs on ScanObjectNN on one GPU. Assumed: only full to dapt was measured, 12.7 to 8.4 s a step on a CPU."""
SHAPES = ((1, 0.7), (2, 0.15), (4, 0.1), (8, 0.05))
"""GPUs of a trial, and the share of trials that ask for so many."""


@dataclass(frozen=True)
class Fake:
    """A trial's needs."""

    gpus: int
    seconds: float


def trials_of(seeds: int) -> list[Trial]:
    """The paper suite's trials of those methods on Point-MAE, with so many seeds."""
    found = load_suite("paper_table", [f"seeds={seeds}"]).only(["backbone=point_mae", f"method={','.join(HOURS)}"])
    return [trial for trial in found if trial.baseline is None]


def fakes(trials: Sequence[Trial], shapes: Sequence[tuple[int, float]], draw: random.Random) -> dict[str, Fake]:
    """Lengths by method, dataset size and epochs, 10 % to and fro; GPUs at random. By identity."""
    found = {}
    for trial in trials:
        gpus = draw.choices([gpus for gpus, _ in shapes], [share for _, share in shapes])[0]
        work = trial.train.passes * trial.dataset.train_items / (300 * 11416)
        seconds = 3600 * HOURS[trial.method_label] * work * draw.uniform(0.9, 1.1) / gpus**0.9
        found[trial.identity] = Fake(gpus, seconds)
    return found


def makespan(order: Sequence[Fake], *, nodes: int, gpus: int, ahead: int) -> float:
    """Seconds until all are done: `ahead` waiting trials are tried whenever there is room, the first of them first."""
    free = [gpus] * nodes
    running: list[tuple[float, int, int]] = []
    waiting, now = list(order), 0.0
    while waiting or running:
        placed = True
        while placed:
            placed = False
            for position, trial in enumerate(waiting[:ahead]):
                node = min((n for n in range(nodes) if free[n] >= trial.gpus), key=lambda n: free[n], default=None)
                if node is not None:
                    free[node] -= trial.gpus
                    heapq.heappush(running, (now + trial.seconds, node, trial.gpus))
                    del waiting[position]
                    placed = True
                    break
        now, node, given_back = heapq.heappop(running)
        free[node] += given_back
    return now


def simulate(*, nodes: int, gpus: int, seeds: int, ahead: int, mixed: bool, guessed: bool) -> dict[str, float | str]:
    """One suite on one cluster."""
    draw = random.Random(0)
    trials = trials_of(seeds)
    needs = fakes(trials, SHAPES if mixed else ((1, 1.0),), draw)
    jobs = [Job(resized(trial, needs[trial.identity])) for trial in trials]
    steps = {
        job.trial.identity: need.seconds / (job.trial.train.passes * job.trial.dataset.train_items)
        for job, need in zip(jobs, needs.values(), strict=True)
    }
    fake_of = {job.trial.identity: need for job, need in zip(jobs, needs.values(), strict=True)}
    planned = [fake_of[job.trial.identity] for job in planned_order(jobs, steps if guessed else {})]
    shuffled = draw.sample(planned, len(planned))
    bound = max(sum(f.gpus * f.seconds for f in planned) / (nodes * gpus), max(f.seconds for f in planned))
    took = makespan(planned, nodes=nodes, gpus=gpus, ahead=ahead)
    used = sum(f.gpus * f.seconds for f in planned) / (nodes * gpus * took)
    return {
        "shapes": "1, 2, 4, 8 GPUs" if mixed else "1 GPU",
        "lengths": "dry steps" if guessed else "by clouds",
        "trials": len(planned),
        "makespan h": round(took / 3600, 2),
        "bound h": round(bound / 3600, 2),
        "of bound": round(bound / took, 3),
        "utilisation": round(used, 3),
        "of bound, any order": round(bound / makespan(shuffled, nodes=nodes, gpus=gpus, ahead=ahead), 3),
    }


def resized(trial: Trial, need: Fake) -> Trial:
    """The trial with its fake GPUs."""
    resources = trial.resources.model_copy(update={"processes": need.gpus, "gpus_per_process": 1})
    return replace(trial, resources=resources)


def main() -> None:
    """Print a JSON line per simulated run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=70)
    parser.add_argument("--ahead", type=int, default=16, help="waiting trials that are tried when there is room")
    a = parser.parse_args()
    for mixed in (False, True):
        for guessed in (True, False):
            found = simulate(nodes=a.nodes, gpus=a.gpus, seeds=a.seeds, ahead=a.ahead, mixed=mixed, guessed=guessed)
            print(json.dumps(found))


if __name__ == "__main__":
    main()
