"""Predicted peaks of memory against those that the allocator of the CPU really saw."""

import sys
from dataclasses import replace

import pytest
import torch
from scipy.stats import kendalltau
from torch.profiler import ProfilerActivity, profile

from harness import registry
from harness.build import set_training
from harness.measure.estimate import Estimate, estimate_memory
from harness.measure.flops import step_flops
from harness.models.point_mae import PointMAE
from harness.models.recompute import for_products, recomputed
from harness.optimizer import AdamW
from harness.settings import Resources, Train
from harness.tasks import task_of
from harness.trial import Trial
from tests.harness.test_flops import make_trial

CLOUDS = 100
TOLERANCE = 0.15


def tiny(method: str) -> Trial:
    return replace(make_trial(method, points=512, batch=16), backbone=PointMAE(preset="tiny"))


def true_peak(trial: Trial, *, bf16: bool = False) -> int:
    """Bytes of torch's CPU allocator while a model is built and takes two steps, by the profiler."""
    task, settings = task_of(trial.dataset), trial.train
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        encoder = trial.backbone.build(drop_path=settings.drop_path)
        encoder.activation_checkpointing = trial.resources.activation_checkpointing
        attached = task.attach(trial, encoder, train_items=CLOUDS, head_dropout=settings.head_dropout)
        set_training(attached.model, frozen_batchnorm=trial.protocol.frozen_batchnorm)
        optimizer = AdamW(attached.optimizer_groups(settings.weight_decay), lr=1e-3, fused=True)
        for _ in range(2):
            batch = task.random_batch(trial, settings.batch_size)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = task.loss(attached.model(*batch.inputs), batch.targets, settings)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(attached.trainable.values(), settings.clip_norm)
            optimizer.step()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def predicted(trial: Trial, precision: str = "fp32") -> Estimate:
    return estimate_memory(trial, precision=precision, train_items=CLOUDS, device="cpu")


def test_the_estimate_is_what_the_allocator_sees() -> None:
    trial = tiny("lora")
    assert predicted(trial).total == pytest.approx(true_peak(trial), rel=0.05)


def test_blocks_that_run_again_are_hardly_kept() -> None:
    """For the same arithmetic of the model; and the allocator sees it."""
    trial = replace(tiny("lora"), backbone=PointMAE(preset="tiny", depth=8))
    again = replace(trial, resources=Resources(activation_checkpointing=True))
    assert predicted(again).activations < 0.4 * predicted(trial).activations
    assert predicted(again).total == pytest.approx(true_peak(again), rel=0.05)
    assert step_flops(again) == step_flops(trial)


def test_what_is_done_by_slices_takes_larger_ones_on_a_gpu() -> None:
    trial = replace(tiny("linear_probe"), train=Train(batch_size=64))
    on_cpu, on_gpu = (estimate_memory(trial, train_items=CLOUDS, device=device) for device in ("cpu", "cuda"))
    assert on_gpu.activations > on_cpu.activations and estimate_memory(trial, train_items=CLOUDS) == on_gpu


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_is_within_the_tolerance_and_in_its_order(precision: str) -> None:
    trials = [tiny(name) for name in registry.names("methods")]
    true = [true_peak(trial, bf16=precision == "bf16") for trial in trials]
    estimated = [predicted(trial, precision).total for trial in trials]
    ratios = {trial.method_name: e / t for trial, e, t in zip(trials, estimated, true, strict=True)}
    assert all(abs(ratio - 1) <= TOLERANCE for ratio in ratios.values()), ratios
    assert kendalltau(true, estimated).statistic >= 0.9


def test_the_parts_are_what_they_are_called() -> None:
    streams = torch.get_rng_state()
    trial = make_trial("full", batch=16)
    estimate = predicted(trial)
    parameters = sum(p.numel() for p in trial.backbone.build(drop_path=0).parameters())
    head = 2 * 96 * 256 + 256 * 256 + 256 * 12 + 2 * 256 + 12 + 2 * 2 * 256
    assert estimate.parameters == 4 * (parameters + head)
    assert 2 * estimate.parameters <= estimate.optimiser < 2.01 * estimate.parameters  # and one number per tensor
    assert 0 < estimate.gradients <= estimate.parameters
    assert predicted(make_trial("linear_probe", batch=16)).optimiser < 0.8 * estimate.optimiser
    torch.set_rng_state(streams)
    assert predicted(trial) == estimate
    assert torch.equal(torch.get_rng_state(), streams), "random streams are the trial's"


def test_a_larger_batch_takes_more_and_a_lower_precision_less() -> None:
    trial = make_trial("lora", batch=16)
    few, many = predicted(trial), predicted(make_trial("lora", batch=32))
    moving = [estimate.activations + estimate.temporaries for estimate in (few, many)]
    assert 1.5 * moving[0] < moving[1] < 2.5 * moving[0]
    large = make_trial("lora", batch=128)  # where weights in two precisions weigh less than what moves
    whole, half = predicted(large), predicted(large, "bf16")
    assert many.parameters == few.parameters == half.parameters
    assert half.total < whole.total


@pytest.mark.parametrize("method", ["full", "lora", "dapt", "point_peft"])
def test_in_low_precision_what_goes_into_products_is_not_kept(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = make_trial(method, batch=32)
    kept = predicted(trial, "bf16").activations
    for module in [each for each in sys.modules.values() if getattr(each, "for_products", None) is for_products]:
        monkeypatch.setattr(module, "for_products", recomputed)
    assert kept < 0.98 * predicted(trial, "bf16").activations


def test_processes_share_the_batch() -> None:
    trial = make_trial("lora", batch=32)
    shared = replace(trial, resources=trial.resources.model_copy(update={"processes": 2}))
    assert predicted(shared) == predicted(make_trial("lora", batch=16))
