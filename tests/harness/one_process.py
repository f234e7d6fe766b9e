"""One process of some trials, in double precision.

    python -m tests.harness.one_process SUITE OUTPUT RENDEZVOUS INDEX COUNT

Adam makes whole steps of the rounding noise in gradients that are zero but for it (a bias before a batch norm), so
equal weights can be told from unequal ones in double precision alone.
"""

import sys
from pathlib import Path

import torch

from harness.processes import join, leave
from harness.processor import prepare
from harness.store import Store
from harness.suite import load_suite
from harness.train import attempt, finish
from harness.trial_folder import Onlooker


def main() -> None:
    suite, output, rendezvous, index, count = sys.argv[1:]
    prepare(threads=1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign, assignment]
    if int(count) > 1:
        join(Path(rendezvous), index=int(index), count=int(count))
    for trial in load_suite(suite, [f"resources.processes={count}"]).trials:
        folder = Store(Path(output)).trial(trial.identity)
        if index == "0":
            writer = folder.claim(trial.spec())
            result = attempt(trial, writer)
            finish(trial, writer, result)
        else:
            result = attempt(trial, Onlooker(folder.path))
        if result.status != "done":
            sys.exit(result.error)
    leave()


if __name__ == "__main__":
    main()
