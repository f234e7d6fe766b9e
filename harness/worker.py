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
from harness.shared import Mark
from harness.store import Store
from harness.travel import Guests, Keeper, Parcel
from harness.trial_folder import CannotWrite, Finished, LeaseLost, Taken

CONCURRENCY = 256
"""Trials that one launcher may look after; how many there are is decided by Tune."""
KEPT = 4096
"""Trials of other nodes that the keeper may look after."""
KEEPER = "harness-keeper"


class Launcher:
    """Runs trials in fresh processes of its node. When it dies, they die with it."""

    def __init__(self) -> None:
        warm_up()
        self.guests = Guests()

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

    def visit(self, errand: Errand, files: dict[str, bytes], attempts: list[dict[str, Any]], **how: Any) -> Parcel:
        """Run one attempt in a folder of this node and return what it leaves (harness.travel)."""
        return self.guests.run(errand, files, attempts, **how)

    def look(self, identity: str) -> Parcel | None:
        """What is new of a visitor."""
        return self.guests.look(identity)

    def dismiss(self, identity: str) -> None:
        """End a visitor."""
        self.guests.dismiss(identity)


class Host(Keeper):
    """The keeper, which also starts launchers on nodes that join while a run goes on."""

    def __init__(self) -> None:
        self.recruits: list[Any] = []

    def recruit(self, node: str, generation: int) -> Any:
        """The launcher of a node that had none; it lives as long as the keeper."""
        self.recruits.append(_start_launcher(node, generation, get_if_exists=True))
        return self.recruits[-1]


def start_keeper() -> Any:
    """The keeper of a run on a cluster, on the driver's node. It lives as long as the handle is kept."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"name": KEEPER, "num_cpus": 0, "max_concurrency": KEPT, "scheduling_strategy": here}
    return ray.remote(Host).options(**options).remote()


def start_launchers(generation: int) -> list[Any]:
    """One launcher for every node of the cluster. They live as long as the list is kept.

    Each round of Tune has a generation of its own: those of the round before may have died, or still look after trials.
    """
    import ray

    return [_start_launcher(node["NodeID"], generation) for node in ray.nodes() if node["Alive"]]


def _start_launcher(node: str, generation: int, *, get_if_exists: bool = False) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return (
        ray.remote(Launcher)
        .options(
            name=_launcher_of(node, generation),
            get_if_exists=get_if_exists,
            num_cpus=0,
            max_concurrency=CONCURRENCY,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote()
    )


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
    mark: Mark | None = None,
) -> None:
    """In a slot: have this node's launcher run the trial that Tune's config names by its index.

    On a cluster `mark` tells whether this node sees the results folder; where it does not, the trial's files travel.
    """
    import ray
    from ray import tune

    launcher = _launcher(generation, alone=mark is None)
    reserved = tune.get_context().get_trial_resources().bundles[0]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "") if reserved.get("GPU") else ""
    errand = errands[config["index"]]
    how = {"output": output, "data": data, "gpus": gpus, "git": git}
    if mark is None or mark.here():
        call = launcher.run.remote(errand, **how)
    else:
        call = ray.get_actor(KEEPER).run.remote(errand, launcher, **how)
    problem = ray.get(call)
    tune.report({"done": 1, "problem": problem})


def _launcher(generation: int, *, alone: bool) -> Any:
    """This node's launcher. One that joined a cluster since the round began gets its own."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    try:
        return ray.get_actor(_launcher_of(node, generation))
    except ValueError:
        if alone:
            raise
        return ray.get(ray.get_actor(KEEPER).recruit.remote(node, generation))
