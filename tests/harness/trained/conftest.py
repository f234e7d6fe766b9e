"""Trials are trained once per combination."""

import shutil
from pathlib import Path

import pytest
import torch

from harness.data.splits import test_batches as batches
from harness.train import Training
from tests.harness.test_train import claim, make_trial
from tests.harness.trained.finished import WEIGHTS_NAME, Finish, Finished, logits, on


@pytest.fixture(scope="session")
def finish(tmp_path_factory: pytest.TempPathFactory) -> Finish:
    """Train a method; once per combination."""
    root, done = tmp_path_factory.mktemp("results") / "trials", dict[str, Finished]()

    def train(method: str, **changes: object) -> Finished:
        trial = make_trial(method, **({"backbone": on(WEIGHTS_NAME)} | changes))
        if trial.identity not in done:
            writer = claim(trial, root)
            training = Training(trial, writer)
            writer.finish(training.run(None))
            seen = torch.cat([clouds for _, clouds in batches(training.test, trial)])
            done[trial.identity] = Finished(trial, writer.path, seen, logits(training.attached.model, seen))
        return done[trial.identity]

    return train


@pytest.fixture
def copied(finish: Finish, tmp_path: Path) -> Path:
    """The folder of a LoRA trial, to be damaged."""
    return Path(shutil.copytree(finish("lora").path, tmp_path / "copy"))
