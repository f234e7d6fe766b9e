"""What a Ray actor does with a trial: claim its folder, run it in a fresh process, again when that process is lost.

Imported by every actor, so nothing heavy is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.launch import Errand, launch
from harness.store import Store
from harness.trial_folder import CannotWrite, Finished, LeaseLost, Taken


def work(config: dict[str, Any], *, errands: Sequence[Errand], output: Path, data: Path, git: str | None) -> None:
    """Run the trial that Tune's config names by its index. Reports why its results cannot be written, if so.

    Paths are absolute: Tune gives actors a working folder of their own.
    """
    from ray import tune

    errand = errands[config["index"]]
    folder = Store(output).trial(errand.identity)
    gpus = (
        os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if tune.get_context().get_trial_resources().bundles[0].get("GPU")
        else ""
    )
    problem = ""
    try:
        while errand.settled(folder) is None:
            writer = folder.claim(errand.spec, replaces=errand.replaces)
            launch(errand, writer, data=data, gpus=gpus, git=git)
    except CannotWrite as error:
        problem = str(error)
    except (Taken, Finished, LeaseLost):
        pass  # another run has it; the driver sees from the folder what became of it
    tune.report({"done": 1, "problem": problem})
