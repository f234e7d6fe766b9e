"""FLOPs are what arithmetic says they are, on values and without, and counting them changes nothing."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness import registry
from harness.build import set_training
from harness.measure.flops import Counter, Flops, StepFlops, step_flops
from harness.models.point_mae import PointMAE
from harness.models.transformer import Attention
from harness.settings import Data, Protocol, Resources, Train
from harness.tasks import task_of
from harness.train import run_trial
from harness.trial import Trial
from harness.trial_folder import TrialFolder

CLOUDS = 4
"""Of a batch."""


def make_trial(method: str, backbone: str = "point_mae", *, points: int = 128, batch: int = CLOUDS) -> Trial:
    small = {"preset": "tiny"} | ({"depth": 1, "groups": 8, "group_size": 8} if backbone != "point_m2ae" else {})
    settings = registry.get("backbones", backbone)(**small)
    return Trial(
        method_label=method,
        backbone_label=backbone,
        method_name=method,
        method=registry.get("methods", method)().on(settings),
        backbone_name=backbone,
        backbone=settings,
        dataset=registry.get("datasets", "sweethome12"),
        train=Train(epochs=1, batch_size=batch, warmup_epochs=0, drop_path=0.1, learning_rate=1e-3),
        protocol=Protocol(frozen_batchnorm="running"),
        data=Data(points=points),
        resources=Resources(),
    )


def test_a_linear_layer_trains_with_two_products_and_passes_back_with_a_third() -> None:
    layer, product = nn.Linear(5, 7), 2 * 6 * 5 * 7
    for wanted, products in ((False, 2), (True, 3)):
        with Counter() as counter:
            layer(torch.rand(6, 5, requires_grad=wanted)).sum().backward()
        assert counter.total == products * product
    with Counter() as counter, torch.inference_mode():
        layer(torch.rand(6, 5))
    assert counter.total == product


@pytest.mark.parametrize("backends", [[SDPBackend.MATH], [SDPBackend.FLASH_ATTENTION]])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_its_six_products_whatever_kernel_does_it(backends: list[SDPBackend], masked: bool) -> None:
    batch, length, dim = 3, 10, 12
    attention, x = Attention(dim=dim, heads=2), torch.rand(batch, length, dim, requires_grad=True)
    mask = torch.ones(batch, 1, length, length, dtype=torch.bool) if masked else None
    linears = 2 * batch * length * dim * (3 * dim + dim)
    scores = 2 * batch * length * length * dim  # over all heads; their mixture is as much again
    with Counter() as counter, sdpa_kernel(backends):
        out = attention(x, mask).sum()
        assert counter.total == linears + 2 * scores
        out.backward()
    assert counter.total == 3 * (linears + 2 * scores)


def closed_form(backbone: PointMAE, *, classes: int) -> int:
    """Forward FLOPs of one of a batch's clouds through Point-MAE and the three-layer head, from dimensions alone."""
    dim, width, groups, tokens = backbone.dim, backbone.tokenizer_width, backbone.groups, backbone.groups + 1
    points = groups * backbone.group_size
    # the half of the tokenizer's third layer that sees the patch's maximum runs once per patch, the other half is
    # one layer with the second, whose product of weights is made once per batch
    tokenizer = points * (3 * width // 2 + width // 2 * width + width // 2 * 2 * width + 2 * width * dim)
    tokenizer += groups * width * 2 * width
    tokenizer += width // 2 * width * 2 * width // CLOUDS
    position = groups * (3 * 128 + 128 * dim)
    block = tokens * (3 * dim * dim + dim * dim + 2 * 4 * dim * dim) + 2 * tokens * tokens * dim
    head = 2 * dim * 256 + 256 * 256 + 256 * classes
    return 2 * (tokenizer + position + backbone.depth * block + head)


@pytest.mark.parametrize("preset", ["tiny", "base"])
def test_a_whole_encoder_is_the_sum_of_its_layers(preset: str) -> None:
    backbone = PointMAE(preset=preset, depth=2, groups=8, group_size=8)
    trial = replace(make_trial("full"), backbone=backbone)
    forward = closed_form(backbone, classes=12)
    flops = step_flops(trial)
    assert flops.forward == forward
    # every product has two backward ones, but nothing asks for the gradient of coordinates
    points, width = backbone.groups * backbone.group_size, backbone.tokenizer_width // 2
    assert flops.train == 4 * (3 * forward - 2 * 3 * (points * width + backbone.groups * 128))


def test_what_is_frozen_is_not_paid_for() -> None:
    full, lora, probe = (step_flops(make_trial(method)) for method in ("full", "lora", "linear_probe"))
    assert probe.train < lora.train < full.train
    assert full.train < 4 * 3 * full.forward
    head = 2 * 4 * (2 * 96 * 256 + 256 * 256 + 256 * 12)
    assert probe.train == 4 * probe.forward + 2 * head - 2 * 4 * 2 * 96 * 256  # its input needs no gradient


@pytest.mark.parametrize("method", registry.names("methods"))
def test_values_make_no_difference_and_torch_counts_the_same(method: str) -> None:
    trial = make_trial(method)
    task, streams = task_of(trial.dataset), torch.get_rng_state()
    expected = step_flops(trial)
    assert step_flops(trial) == expected
    assert torch.equal(torch.get_rng_state(), streams), "random streams are the trial's"

    encoder = trial.backbone.build(drop_path=0.1)
    attached = task.attach(trial, encoder, train_items=trial.dataset.train_items, head_dropout=0.5)
    set_training(attached.model, frozen_batchnorm="running")
    batch = task.random_batch(trial, 4)

    def gradients(flops: StepFlops) -> list[torch.Tensor | None]:
        torch.manual_seed(0)
        attached.model.zero_grad()
        with flops.counting():
            loss = task.loss(attached.model(*batch.inputs), batch.targets, trial.train)
            flops.after_forward(4)
            loss.backward()
        return [parameter.grad for parameter in attached.model.parameters()]

    first = StepFlops()
    counted, plain = gradients(first), gradients(StepFlops(earlier=Flops(1, 1)))
    assert first.counted == expected
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(counted, plain, strict=True))  # type: ignore[arg-type]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as theirs, Counter() as ours:
        task.loss(attached.model(*batch.inputs), batch.targets, trial.train).backward()
    assert ours.total == expected.train and theirs.get_total_flops() == ours.total + ours.beside


@pytest.mark.parametrize("backbone", ["point_m2ae", "point_bert"])
def test_other_encoders_cost_something_too(backbone: str) -> None:
    flops = step_flops(make_trial("lora", backbone, points=512))
    assert 4 * flops.forward < flops.train < 4 * 3 * flops.forward


def test_a_trial_says_what_its_step_cost(tmp_path: Path) -> None:
    trial = make_trial("lora", batch=16)
    writer = TrialFolder(tmp_path / trial.identity).claim(trial.spec())
    result = run_trial(trial, writer)
    assert Flops(result.compute.flops_forward or 0, result.compute.flops_train or 0) == step_flops(trial)


def test_counting_in_a_trial_does_not_import_the_compiler() -> None:
    """It takes two seconds, and trials are processes of their own."""
    script = (
        "import sys, torch; from harness.measure.flops import StepFlops; flops = StepFlops()\n"
        "with flops.counting():\n"
        "    x = torch.nn.Linear(4, 4)(torch.rand(1, 2, 4)); flops.after_forward(1)\n"
        "    torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()\n"
        "sys.exit('torch._dynamo' in sys.modules or not flops.counted.train)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
