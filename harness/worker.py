"""What Ray runs: an actor that launches the trials of its node, and the slots that wait for them.

One launcher per node means one fork server per node, which is ready by the time Tune hands out the first trial. Tune's
actors only hold the resources. Nothing heavy is imported here, as every Ray worker imports it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.launch import Errand, launch, warm_up
from harness.store import Store
from harness.trial_folder import CannotWrite, Finished, LeaseLost, Taken

CONCURRENCY = 256
"""Trials that one launcher may look after; how many there are is decided by Tune."""


class Launcher:
    """Runs trials in fresh processes of its node. When it dies, they die with it."""

    def __init__(self) -> None:
        warm_up()

    def run(self, errand: Errand, *, output: Path, data: Path, gpus: str, git: str | None) -> str:
        """Claim a trial's folder and run it, again when its process is lost. Returns why results cannot be written.

        Paths are absolute, `gpus` is the trial's CUDA_VISIBLE_DEVICES.
        """
        folder = Store(output).trial(errand.identity)
        try:
            while errand.settled(folder) is None:
                writer = folder.claim(errand.spec, replaces=errand.replaces)
                launch(errand, writer, data=data, gpus=gpus, git=git)
        except CannotWrite as error:
            return str(error)
        except (Taken, Finished, LeaseLost):
            pass  # another run has it; the driver sees from the folder what became of it
        return ""


def start_launchers(generation: int) -> list[Any]:
    """One launcher for every node of the cluster. They live as long as the list is kept.

    Each round of Tune has a generation of its own: those of the round before may have died, or still look after trials.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return [
        ray.remote(Launcher)
        .options(
            name=_launcher_of(node["NodeID"], generation),
            num_cpus=0,
            max_concurrency=CONCURRENCY,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        .remote()
        for node in ray.nodes()
        if node["Alive"]
    ]


def _launcher_of(node: str, generation: int) -> str:
    return f"harness-launcher-{node}-{generation}"


def work(
    config: dict[str, Any],
    *,
    errands: Sequence[Errand],
    generation: int,
    output: Path,
    data: Path,
    git: str | None,
) -> None:
    """In a slot: have this node's launcher run the trial that Tune's config names by its index."""
    import ray
    from ray import tune

    launcher = ray.get_actor(_launcher_of(ray.get_runtime_context().get_node_id(), generation))
    reserved = tune.get_context().get_trial_resources().bundles[0]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") if reserved.get("GPU") else ""
    errand = errands[config["index"]]
    problem = ray.get(launcher.run.remote(errand, output=output, data=data, gpus=gpus, git=git))
    tune.report({"done": 1, "problem": problem})
