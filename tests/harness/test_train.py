"""One trial in this process, on the shipped furniture: what the result says must be so."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness import registry
from harness.baselines import nearest_neighbour, shape_features
from harness.build import build, set_training
from harness.data.dataset import PointClouds
from harness.data.splits import at_test, carve_validation, load_splits
from harness.evaluation import evaluate, vote
from harness.models.point_mae import PointMAE
from harness.settings import Data, Protocol, Resources, Train
from harness.train import Training, learning_rate, run_trial
from harness.trial import Seeds, Trial
from harness.trial_folder import TrialFolder, TrialWriter
from tests.waiting import Waiting


def make_trial(method: str = "lora", **changes: object) -> Trial:
    settings = {"epochs": 1, "batch_size": 16, "warmup_epochs": 0, "drop_path": 0, "learning_rate": 1e-3}
    trial = Trial(
        method_label=method,
        backbone_label="point_mae",
        method_name=method,
        method=registry.get("methods", method)(),
        backbone_name="point_mae",
        backbone=PointMAE(preset="tiny", depth=1, groups=8, group_size=8),
        dataset=registry.get("datasets", "sweethome12"),
        train=Train(**settings),  # type: ignore[arg-type]
        protocol=Protocol(frozen_batchnorm="running"),
        data=Data(points=128),
        resources=Resources(),
    )
    return replace(trial, **changes)  # type: ignore[arg-type]


def claim(trial: Trial, root: Path) -> TrialWriter:
    return TrialFolder(root / trial.identity).claim(trial.spec())


def test_a_trial_leaves_what_it_promises(tmp_path: Path) -> None:
    trial = make_trial()
    writer = claim(trial, tmp_path)
    folder = writer.folder
    result = run_trial(trial, writer)
    assert folder.result() == result
    assert (result.status, result.error, result.id) == ("done", None, trial.identity)
    with np.load(folder.path / "predictions.npz") as stored:
        right = int((stored["prediction"] == stored["label"]).sum())
        assert len(stored["label"]) == result.metrics.total == trial.dataset.test_items
        confidence, chance = stored["confidence"], 1 / len(trial.dataset.classes)
    assert confidence.dtype == np.float16 and chance - 1e-3 <= confidence.min() <= confidence.max() <= 1
    assert result.metrics.correct == right
    assert result.metrics.accuracy == right / trial.dataset.test_items
    files = [folder.path / "adapter" / name for name in ("adapter_model.safetensors", "head.safetensors")]
    assert result.storage.adapter == sum(file.stat().st_size for file in files)
    assert [row["epoch"] for row in folder.metrics()] == [0]
    assert result.memory.host_peak is not None and result.memory.host_peak > 50_000_000
    assert result.attempts[0]["status"] == "done"
    assert json.loads((folder.path / "spec.json").read_text()) == trial.spec()


def test_every_null_has_a_reason(tmp_path: Path) -> None:
    trial = make_trial("linear_probe")
    result = run_trial(trial, claim(trial, tmp_path))
    for section in ("metrics", "parameters", "memory", "time", "compute", "storage"):
        for key, value in getattr(result, section).model_dump().items():
            assert (value is None) == (f"{section}.{key}" in result.reasons), f"{section}.{key}"
    assert "GPU" in result.reasons["memory.train_peak"]


def test_the_same_trial_gives_the_same_weights(tmp_path: Path) -> None:
    trial = make_trial("dapt")
    first = run_trial(trial, claim(trial, tmp_path / "a"))
    second = run_trial(trial, claim(trial, tmp_path / "b"))
    assert first.digests == second.digests
    other = trial.with_seed(1)
    assert run_trial(other, claim(other, tmp_path)).digests["adapter"] != first.digests["adapter"]


@pytest.mark.parametrize("method", ["full", "point_peft"])
def test_the_adapter_file_on_the_base_weights_is_the_trained_model(method: str, tmp_path: Path) -> None:
    from harness.processes import Ranks, accelerator_for

    trial = make_trial(method)
    folder = claim(trial, tmp_path)
    run_trial(trial, folder)
    train, test, _, _ = load_splits(trial, torch.device("cpu"))
    attached, _ = build(trial, device=torch.device("cpu"), train_items=len(train), train=train)
    state = load_file(folder.path / "adapter" / "adapter_model.safetensors")
    assert not any(name.startswith("head.") for name in state)
    state |= load_file(folder.path / "adapter" / "head.safetensors")
    assert set(attached.trainable) <= set(state)
    attached.model.load_state_dict(state, strict=False)
    again = evaluate(attached.model, test, trial, Ranks(accelerator_for(trial)))
    with np.load(folder.path / "predictions.npz") as stored:
        assert np.array_equal(stored["prediction"], again.prediction)


@pytest.mark.parametrize("augment", ["scale_translate", "rotate", "scale_rotate"])
def test_steps_never_wait_for_the_device(augment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch reads its loss once, at its end, however many steps it has."""
    epoch, waits = Training._epoch, []

    def watched(training: Training, number: int) -> dict[str, object]:
        with Waiting() as waiting:
            row: dict[str, object] = epoch(training, number)
        if number:  # the first looks once for parameters that no gradient reaches
            waits.append(dict(waiting.seen))
        return row

    monkeypatch.setattr(Training, "_epoch", watched)
    for batch_size in (16, 64):
        train = make_trial().train.model_copy(update={"epochs": 2, "augment": augment, "batch_size": batch_size})
        trial = make_trial(train=train)
        assert run_trial(trial, claim(trial, tmp_path)).status == "done"
    assert waits[0] == waits[1] and waits[0].get("_local_scalar_dense", 0) <= 1


def test_divergence_is_a_result(tmp_path: Path) -> None:
    trial = make_trial(
        "full", train=Train(epochs=1, batch_size=16, warmup_epochs=0, learning_rate=1e30, clip_norm=1e30)
    )
    result = run_trial(trial, claim(trial, tmp_path))
    assert result.status == "diverged"
    assert result.error is not None and "learning_rate" in result.error


def test_what_the_user_can_mend_has_no_traceback(tmp_path: Path) -> None:
    trial = make_trial(train=Train(epochs=1, batch_size=1000))
    result = run_trial(trial, claim(trial, tmp_path))
    assert result.status == "failed"
    assert result.error is not None and "batch_size" in result.error and "Traceback" not in result.error


def test_validation_is_carved_by_class_and_never_from_test(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(4), [50, 20, 5, 3])
    held = carve_validation(labels, 0.2, seed=1)
    assert [int(held[labels == c].sum()) for c in range(4)] == [10, 4, 1, 1]
    assert np.array_equal(held, carve_validation(labels, 0.2, seed=1))
    assert not carve_validation(labels, 0.0, seed=1).any()
    trial = make_trial(protocol=Protocol(selection="validation", validation_fraction=0.2, frozen_batchnorm="running"))
    result = run_trial(trial, claim(trial, tmp_path))
    assert result.metrics.total == trial.dataset.test_items
    assert result.metrics.validation_accuracy is not None


def test_another_validation_seed_holds_out_other_items() -> None:
    def held_out(seed: int) -> torch.Tensor:
        protocol = Protocol(selection="validation", validation_fraction=0.2, validation_seed=seed)
        _, _, validation, _ = load_splits(make_trial(protocol=protocol), torch.device("cpu"))
        assert validation is not None
        return validation.points

    assert torch.equal(held_out(0), held_out(0)) and not torch.equal(held_out(0), held_out(1))
    assert "validation_seed" not in make_trial().spec()["protocol"], "suites without it keep their identities"
    other = make_trial(protocol=Protocol(validation_seed=3))
    assert other.identity != make_trial(protocol=Protocol()).identity
    assert Trial.from_spec(other.spec()).identity == other.identity


def test_the_papers_number_chooses_nothing(tmp_path: Path) -> None:
    settings = Train(epochs=4, batch_size=16, warmup_epochs=0, drop_path=0, learning_rate=3e-2)
    last, paper = (
        make_trial("full", train=settings, protocol=Protocol(selection=selection, frozen_batchnorm="batch"))
        for selection in ("last", "paper")
    )
    writer = claim(paper, tmp_path)
    headline, found = run_trial(last, claim(last, tmp_path)), run_trial(paper, writer)
    seen = [row["test/accuracy"] for row in writer.folder.metrics()]
    assert len(seen) == 4 and seen[-1] == found.metrics.accuracy == headline.metrics.accuracy
    one, other = (
        load_file(tmp_path / trial.identity / "adapter" / "adapter_model.safetensors") for trial in (last, paper)
    )
    assert all(torch.equal(one[name], other[name]) for name in one), "looking on changes no bit of the training"
    assert found.metrics.accuracy_best_on_test == max(seen) > min(seen)
    assert headline.metrics.accuracy_best_on_test is None
    assert "selection: paper" in headline.reasons["metrics.accuracy_best_on_test"]


@pytest.mark.parametrize("sampling", ["random", "fps"])
def test_votes_average_the_scores_of_random_passes(
    sampling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.processes import Ranks, accelerator_for

    trial = make_trial(
        "linear_probe",
        data=Data(points=128, sampling=sampling),  # type: ignore[arg-type]
        protocol=Protocol(vote=3, frozen_batchnorm="running"),
    )
    writer = claim(trial, tmp_path)
    result = run_trial(trial, writer)
    with np.load(writer.path / "predictions.npz") as stored:
        voted = stored["vote"]
        assert result.metrics.accuracy_vote == (voted == stored["label"]).mean()
        assert result.metrics.accuracy == (stored["prediction"] == stored["label"]).mean()
        assert not np.array_equal(voted, stored["prediction"])
    train, test, _, _ = load_splits(trial, torch.device("cpu"))
    attached, _ = build(trial, device=torch.device("cpu"), train_items=len(train), train=train)
    for file in ("adapter_model.safetensors", "head.safetensors"):
        attached.model.load_state_dict(load_file(writer.path / "adapter" / file), strict=False)
    passes: list[torch.Tensor] = []
    handle = attached.model.register_forward_hook(lambda _, inputs, scores: passes.append(scores))
    torch.manual_seed(1)
    again = vote(attached.model, test, trial, Ranks(accelerator_for(trial)))
    handle.remove()
    assert np.array_equal(again.prediction, voted), "votes have a random stream of their own"
    whole = torch.cat(passes).view(3, len(test), -1)
    assert np.array_equal(whole.mean(0).argmax(1).numpy(), voted)
    assert not torch.allclose(whole[0], whole[1])
    monkeypatch.setattr("harness.data.splits.EVALUATION_BATCH", 17)
    assert np.array_equal(vote(attached.model, test, trial, Ranks(accelerator_for(trial))).prediction, voted)


def test_a_split_is_sampled_once_and_evaluated_alike() -> None:
    from harness.processes import Ranks, accelerator_for

    trial = make_trial(data=Data(points=128, sampling="fps"))
    train, test, _, _ = load_splits(trial, torch.device("cpu"))
    attached, _ = build(trial, device=torch.device("cpu"), train_items=len(train), train=train)
    once = at_test(test, trial)
    assert once.points.shape == (len(test), 128, 3) and torch.equal(at_test(once, trial).points, once.points)
    first, second = (evaluate(attached.model, split, trial, Ranks(accelerator_for(trial))) for split in (test, once))
    assert np.array_equal(first.prediction, second.prediction) and first.loss == second.loss


def test_frozen_batch_norms(tmp_path: Path) -> None:
    trial = make_trial("lora")
    train, _, _, _ = load_splits(trial, torch.device("cpu"))
    attached, _ = build(trial, device=torch.device("cpu"), train_items=len(train), train=train)
    norm = attached.model.encoder.tokenizer.norm1
    set_training(attached.model, frozen_batchnorm="running")
    assert not norm.training and attached.model.head[1].training
    set_training(attached.model, frozen_batchnorm="batch")
    assert norm.training


def test_random_weights_get_calibrated_statistics() -> None:
    trial = make_trial("linear_probe")
    train, _, _, _ = load_splits(trial, torch.device("cpu"))
    attached, _ = build(trial, device=torch.device("cpu"), train_items=len(train), train=train)
    assert not torch.equal(attached.model.encoder.tokenizer.norm1.running_var, torch.ones(16))


def test_the_schedule_warms_up_and_comes_down() -> None:
    settings = Train(epochs=10, warmup_epochs=2, learning_rate=1e-3)
    rates = [learning_rate(settings, step, 5) for step in range(50)]
    assert rates[9] == max(rates) == pytest.approx(1e-3)
    assert rates[0] == pytest.approx(1e-4, rel=0.01)
    assert rates[-1] < 1e-5
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert math.isfinite(learning_rate(Train(epochs=1, warmup_epochs=5), 3, 4))


def test_the_papers_schedule_is_an_epoch_late_and_runs_one_more() -> None:
    settings = Train(schedule="paper")
    assert settings.passes == 301
    rates = [learning_rate(settings, epoch * 7 + 3, 7) for epoch in range(301)]
    assert rates[0] == rates[1] == learning_rate(settings, 0, 7) == learning_rate(settings, 13, 7) == 1e-6

    def official(t: int) -> float:  # timm 0.4.5 CosineLRScheduler, lr_min = warmup_lr_init = 1e-6
        return 1e-6 + t * (5e-4 - 1e-6) / 10 if t < 10 else 1e-6 + (5e-4 - 1e-6) * (1 + math.cos(math.pi * t / 300)) / 2

    assert rates[1:] == pytest.approx([official(epoch) for epoch in range(300)])
    assert rates[10] < rates[11] < 5e-4, "the cosine starts with the warm-up, so the highest rate is never reached"
    assert learning_rate(Train(schedule="paper", warmup_epochs=0), 0, 7) == 5e-4


def test_a_trial_of_the_papers_schedule(tmp_path: Path) -> None:
    train = Train(epochs=2, warmup_epochs=1, schedule="paper", batch_size=64)
    trial = make_trial("linear_probe", train=train)
    writer = claim(trial, tmp_path)
    assert run_trial(trial, writer).status == "done"
    rates = [row["train/rate"] for row in writer.folder.metrics()]
    assert rates == pytest.approx([1e-6, 1e-6, (5e-4 + 1e-6) / 2])


def test_seeds_do_not_depend_on_the_method() -> None:
    assert Seeds.of("a", 0) == Seeds.of("a", 0)
    assert len({Seeds.of("a", 0), Seeds.of("a", 1), Seeds.of("b", 0)}) == 3
    streams = Seeds.of("a", 0)
    assert len({streams.initialisation, streams.order, streams.augmentation, streams.dropout, streams.vote}) == 5


def test_nan_points_are_refused(tmp_path: Path) -> None:
    from harness.data.dataset import check_clouds
    from harness.errors import UserError

    points = np.zeros((3, 4, 3))
    points[1, 0, 0] = np.nan
    with pytest.raises(UserError, match="item 1 holds NaN"):
        check_clouds(points, np.zeros(3, int), classes=2, where="x.h5")
    with pytest.raises(UserError, match="labels run from 0 to 5"):
        check_clouds(np.zeros((2, 4, 3)), np.array([0, 5]), classes=2, where="x.h5")
    assert isinstance(PointClouds(points, np.zeros(3, np.int64), ""), PointClouds)


def test_nearest_neighbour_finds_itself() -> None:
    clouds = np.random.default_rng(0).uniform(-1, 1, (20, 64, 3)) * np.linspace(0.2, 1, 20)[:, None, None]
    labels = np.arange(20)
    assert np.array_equal(nearest_neighbour(clouds, labels, clouds[::-1]), labels[::-1])
    features = shape_features(clouds)
    assert features.shape == (20, 51)
    assert np.allclose(features[:, :16].sum(1), 1)


class NoGradient(torch.autograd.Function):
    """Takes a weight, and gives no gradient for it."""

    @staticmethod
    def forward(ctx, x, weight):  # type: ignore[no-untyped-def]
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient, None


def test_a_parameter_that_no_gradient_reaches_is_named() -> None:
    """Neither one that is not used, nor one whose gradient a function leaves out; a gradient of zero is one."""
    attached, _ = build(make_trial("linear_probe"), device=torch.device("cpu"), train_items=8)
    assert len(attached.trainable) > 3
    unused, left_out, zero, *others = attached.trainable.items()
    starved = attached.watch()
    total = sum((parameter.sum() for _, parameter in others), 0 * zero[1].sum())
    NoGradient.apply(total, left_out[1]).backward()  # type: ignore[no-untyped-call]
    assert starved() == attached.starved() == [unused[0], left_out[0]]
