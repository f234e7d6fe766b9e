"""One trial without Ray, for debugging and for clusters that have none: `python -m harness.train SUITE --only …`.

    python -m harness.train quickstart --only method=lora --only dataset=sweethome12 --only seed=0
    accelerate launch --multi_gpu --num_processes 2 -m harness.train SUITE --only … --set resources.processes=2

It runs in this process (or in those that `accelerate launch` or torchrun started), under the lease of the trial's
folder, goes on from its checkpoint and leaves the same files as under `harness run`, whose reports take it up.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.trial import Trial
    from harness.trial_folder import TrialWriter


def main(arguments: list[str] | None = None) -> None:
    """Exit codes: 0 done, 1 failed, 2 bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.train", description="Run one trial of a suite without Ray."
    )
    parser.add_argument("suite", metavar="SUITE", help="path of a suite file, or the name of a shipped suite")
    parser.add_argument("--only", action="append", default=[], metavar="KEY=A,B", help="as of harness run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of harness run")
    parser.add_argument("--output", "-o", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder, instead of HARNESS_DATA")
    asked = parser.parse_args(arguments)
    if asked.data is not None:
        os.environ["HARNESS_DATA"] = str(asked.data)
    try:
        code = _run(asked.suite, only=asked.only, settings=asked.set, output=asked.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        code = 2
    sys.exit(code)


def _run(suite: str, *, only: list[str], settings: list[str], output: Path) -> int:
    from harness.store import Store
    from harness.suite import load_suite
    from harness.trial_folder import CannotWrite, Finished, LeaseLost, Onlooker, Taken

    trials = load_suite(suite, settings).only(only)
    if len(trials) != 1:
        some = "; ".join(trial.name for trial in trials[:3])
        raise UserError(f"{len(trials)} trials ({some}; …): choose one with --only, such as --only seed=0")
    (trial,) = trials
    index, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if count != (wanted := trial.processes):
        raise UserError(
            f"{trial.name} is for resources.processes = {wanted}, and {count} run: start it with `accelerate launch "
            f"--multi_gpu --num_processes {wanted} -m harness.train …`, or add --set resources.processes={count}"
        )
    _set_up(trial)
    from harness.processes import leave
    from harness.train import attempt, run_trial

    store = Store(output)
    folder = store.trial(trial.identity)
    try:
        if index:
            result = attempt(trial, Onlooker(folder.path))
        else:
            store.prepare()
            writer = folder.claim(trial.spec())
            threading.Thread(target=_signs_of_life, args=(writer,), daemon=True).start()
            result = run_trial(trial, writer)
    except Finished:
        raise UserError(f"{folder.path}: {trial.name} is done already") from None
    except Taken:
        raise UserError(f"{folder.path}: another process works on {trial.name}") from None
    except (LeaseLost, CannotWrite) as problem:
        raise UserError(str(problem)) from None
    if result.status != "done":
        print(f"{trial.name}: {result.status}: {result.error}", file=sys.stderr)  # noqa: T201
        return 1
    leave()
    if not index:
        print(f"{trial.name}: {result.headline.title} {100 * (result.score or 0):.1f} %, in {folder.path}")  # noqa: T201
    return 0


def _signs_of_life(writer: TrialWriter) -> None:
    """Tell other hosts that this process lives, as a launcher does; they give up who is silent."""
    from harness.launch import SIGN_OF_LIFE

    while True:
        time.sleep(SIGN_OF_LIFE)
        writer.sign_of_life()


def _set_up(trial: Trial) -> None:
    """Leave to the suite what the launcher has set for Accelerate, and say where there is no GPU."""
    import torch

    from harness.processor import prepare

    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        del os.environ[name]
    if trial.resources.gpus_per_process == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks for them
    if trial.resources.strategy == "ddp" and not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    prepare(int(os.environ["OMP_NUM_THREADS"]))
