"""A trained model outside the harness is the one that was trained."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from harness import load_trial, registry
from harness.adapter import fill, unpack, untrained
from harness.errors import UserError
from harness.settings import Data, Protocol, Resources, Train
from harness.train import run_trial
from harness.trained import FILES
from harness.trial_folder import ADAPTER, ADAPTER_HEAD
from tests.harness.test_train import claim, make_trial
from tests.harness.trained.finished import WEIGHTS_NAME, Finish, logits, on, predictions, stored_clouds

METHODS = registry.names("methods")
EVERY_TIME = ("full", "linear_probe", "lora", "dapt", "point_peft")
"""The methods that these tests take every time; the others go with the slow tests."""
SOME = [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


@pytest.mark.parametrize("weights", [WEIGHTS_NAME, "random"])
@pytest.mark.parametrize("method", SOME)
def test_what_is_loaded_is_what_was_trained(method: str, weights: str, finish: Finish) -> None:
    finished = finish(method, backbone=on(weights))
    trained = load_trial(finished.path)
    assert torch.equal(logits(trained.model, finished.seen), finished.scores)
    probabilities = trained.predict(stored_clouds(finished.trial))
    assert np.array_equal(probabilities.argmax(1).numpy(), predictions(finished.path))
    assert (trained.classes, trained.points) == (finished.trial.dataset.classes, 128)
    assert trained.trial.identity == finished.trial.identity and trained.spec == finished.trial.spec()
    assert not any(module.training for module in trained.model.modules())


@pytest.mark.parametrize("weights", [WEIGHTS_NAME, "random"])
@pytest.mark.parametrize("method", SOME)
def test_the_adapter_file_needs_no_seed(method: str, weights: str, finish: Finish) -> None:
    finished = finish(method, backbone=on(weights))
    other = finished.trial.with_seed(1234)
    attached, _ = untrained(other, train_items=other.dataset.train_items)
    assert not torch.equal(logits(attached.model, finished.seen), finished.scores)
    contents = [(finished.path / file).read_bytes() for file in FILES.values()]
    assert fill(attached, unpack(contents, attached, other.method)) is None
    assert torch.equal(logits(attached.model, finished.seen), finished.scores)


def test_what_the_base_weights_hold_is_not_in_the_adapter(finish: Finish) -> None:
    probe = finish("linear_probe").path
    assert set(load_file(probe / ADAPTER)) == {"encoder.class_token", "encoder.class_position"}
    assert all(name.startswith("head.") for name in load_file(probe / ADAPTER_HEAD))
    bank = set(load_file(finish("point_peft").path / ADAPTER))
    query = {name for name in bank if name.startswith("encoder.query.")}
    assert query == {"encoder.query.encoder.class_token", "encoder.query.encoder.class_position"}


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision per process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_predictions_are_in_the_trials_precision(fresh_accelerator: None, tmp_path: Path) -> None:
    trial = make_trial(resources=Resources(precision="bf16"))
    writer = claim(trial, tmp_path)
    assert run_trial(trial, writer).status == "done"
    trained = load_trial(writer.path)
    clouds = stored_clouds(trial)
    assert np.array_equal(trained.predict(clouds).argmax(1).numpy(), predictions(writer.path))
    exact = replace(trained, trial=replace(trial, resources=Resources()))
    assert not torch.equal(exact.predict(clouds), trained.predict(clouds))


def test_validation_and_farthest_points(finish: Finish) -> None:
    finished = finish(
        "vpt",
        protocol=Protocol(selection="validation", validation_fraction=0.2),
        data=Data(points=64, sampling="fps"),
        train=Train(epochs=2, batch_size=16, warmup_epochs=0, drop_path=0.1),
    )
    found = load_trial(finished.path).predict(stored_clouds(finished.trial))
    assert np.array_equal(found.argmax(1).numpy(), predictions(finished.path))


def test_trials_are_found_by_the_beginning_of_their_identity(finish: Finish) -> None:
    first, second = finish("lora"), finish("linear_probe")
    output = first.path.parent.parent
    trial = first.trial.identity
    assert load_trial(trial, output=output).result.id == load_trial(trial[:12], output=str(output)).result.id == trial
    twin = first.path.with_name(trial[:12] + "0000")
    shutil.copytree(first.path, twin)
    with pytest.raises(UserError, match=f"'{trial[:12]}' begins 2 trials; add digits\n- {trial[:12]}"):
        load_trial(trial[:12], output=output)
    shutil.rmtree(twin)
    typo = second.trial.identity[:7] + "x"
    with pytest.raises(UserError, match=f"no trial '{typo}'; did you mean .*\n- .*sweethome12 seed 0 \\(done\\)"):
        load_trial(typo, output=output)
    for name, words in (
        (str(output / "trials" / "nope"), "no such folder; name the folder of a trial"),
        (str(first.path / "result.json"), "is a file; name the folder"),
        (output, "result.json: no such file; no trial has finished here"),
    ):
        with pytest.raises(UserError, match=words):
            load_trial(name, output=output)
    with pytest.raises(UserError, match="trials: no such folder; --output"):
        load_trial(trial, output=output / "elsewhere")
    with pytest.raises(UserError, match="device 'abacus' cannot be used here"):
        load_trial(trial, output=output, device="abacus")


def test_loading_leaves_the_callers_random_numbers_alone(finish: Finish) -> None:
    path = finish("lora").path
    before = torch.get_rng_state()
    load_trial(path)
    assert torch.equal(torch.get_rng_state(), before)
