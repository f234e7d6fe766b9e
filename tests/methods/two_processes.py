"""One of two processes that train the same cases together: python -m tests.methods.two_processes FOLDER RANK CASE...

For every case it leaves FOLDER/CASE.RANK.safetensors, the trained parameters in two settings (see `train`), or
FOLDER/CASE.RANK.error with what went wrong.
"""

import sys
import traceback
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from harness.processor import prepare
from tests.methods.cases import CASES, Case, step

WORLD = 2
BATCH = 4
"""Clouds of both together, each of a class of its own."""


def train(case: Case, *, rank: int | None, noisy: bool) -> dict[str, Tensor]:
    """Two steps on the rank's part of the batch; `rank` None: on the whole batch, in this process alone.

    Noisy: training mode, every rank with random numbers of its own. Otherwise the model is in eval mode, where nothing
    is random and no statistics are taken from the batch, so parts add up to the whole. Plain gradient descent, because
    Adam turns rounding noise of gradients near zero into whole steps.
    """
    attached = case.build()
    model: torch.nn.Module = attached.model
    if rank is not None:
        model = DistributedDataParallel(model, find_unused_parameters=bool(attached.dead))
        torch.manual_seed(rank)
    model.train(noisy)
    optimizer = torch.optim.SGD(attached.optimizer_groups(0.05), lr=0.05)
    rows = slice(rank, None, None if rank is None else WORLD)
    labels = torch.arange(BATCH)[rows]
    for number in range(2):
        step(attached, model, optimizer, case.clouds(BATCH, seed=number)[rows], labels)
    return {name: parameter.detach() for name, parameter in attached.model.named_parameters()}


def main() -> None:
    prepare(threads=1)
    folder, rank, wanted = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD, timeout=timedelta(seconds=100)
    )
    for case in (case for case in CASES if str(case) in wanted):
        try:
            both = {
                f"{word}.{name}": value.contiguous()
                for word, noisy in (("noisy", True), ("exact", False))
                for name, value in train(case, rank=rank, noisy=noisy).items()
            }
            save_file(both, folder / f"{case}.{rank}.safetensors")
        except Exception:
            (folder / f"{case}.{rank}.error").write_text(traceback.format_exc())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
