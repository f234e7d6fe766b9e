"""What every method promises, on every backbone (docs/add_a_method.md says it in words).

`pytest tests/methods/test_contract.py -k NAME` holds one method to it.
"""

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from harness import registry
from harness.method import Adapted, Attached, Method, Task, misfits
from harness.models.encoder import Encoder
from harness.models.tokenizer import Tokenizer
from harness.models.transformer import Tokens, without_chance
from tests.elsewhere import Elsewhere
from tests.methods.cases import CASES, TASK, Case, step
from tests.methods.two_processes import WORLD, train
from tests.waiting import Waiting

ROOT = Path(__file__).parent.parent.parent
EXTRAS = {"hf_peft": "peft"}
"""Methods that are defined nowhere without an optional package."""


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    if problems := misfits(found.method, found.backbone):
        pytest.skip(f"not defined here: {'; '.join(problems)}")
    return found


def run_steps(attached: Attached, case: Case, *, steps: int, batch: int = 6) -> list[Tensor]:
    """AdamW on random clouds in training mode, without decay, so that only a gradient can change a parameter."""
    optimizer = torch.optim.AdamW(attached.optimizer_groups(0.0), lr=0.01, fused=True)
    attached.model.train()
    labels = torch.arange(batch) % TASK.classes
    return [
        step(attached, attached.model, optimizer, case.clouds(batch, seed=number), labels) for number in range(steps)
    ]


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_exactly_what_is_declared_trains(case: Case) -> None:
    attached = case.build()
    counts, dead = attached.counts, {id(parameter) for parameter in attached.dead}
    held = [p for group in attached.optimizer_groups(0.05) for p in group["params"]]  # type: ignore[attr-defined]
    assert len({id(p) for p in held}) == len(held), "a parameter is in two groups"
    assert sum(p.numel() for p in held) == counts.trainable == counts.added + counts.unfrozen + counts.head
    assert dead <= {id(p) for p in held}, "a dead parameter is not declared"
    before = {name: p.detach().clone() for name, p in attached.model.named_parameters()}
    idle = {id(p) for part in attached.model.modules() if isinstance(part, Tokenizer) for p in part.taken_out()}
    # Three steps: a factor that starts at zero hides its partner's gradient in the first.
    with Waiting() as waiting:
        scores = run_steps(attached, case, steps=3)
    assert not waiting.seen, "a step waits for the device"
    assert [part.shape for part in scores] == [(6, TASK.classes)] * 3
    for name, parameter in attached.model.named_parameters():
        same = torch.equal(parameter, before[name])
        if name not in attached.trainable:
            assert same and parameter.grad is None, f"{name} is frozen and changed, or has a gradient"
        elif id(parameter) in dead:
            assert same and (parameter.grad is None or not parameter.grad.any()), f"{name} is listed as dead and trains"
        elif id(parameter) not in idle:
            assert not same, f"{name} is declared and does not train"


def test_predictions_do_not_depend_on_the_rest_of_the_batch(case: Case) -> None:
    if not case.independent:
        pytest.skip("declared to depend on it")
    attached = case.build()
    run_steps(attached, case, steps=1)
    model, clouds = attached.model.eval(), case.clouds(4, seed=3)
    with torch.no_grad():
        together = model(clouds)
        alone = torch.cat([model(cloud[None]) for cloud in clouds])
    assert torch.allclose(together, alone, atol=1e-5)


def test_what_changed_is_the_trained_model(case: Case) -> None:
    """On the same encoder, what training can change, saved, is all of the method: whatever the method drew at first."""
    trained, fresh = case.build(), case.build(method_seed=1, filled=False)
    run_steps(trained, case, steps=2)
    fresh.restore(load(save(trained.snapshot())))
    clouds = case.clouds(4, seed=5)
    with torch.no_grad():
        assert torch.equal(fresh.model.eval()(clouds), trained.model.eval()(clouds))


def test_the_same_seed_gives_the_same_weights(case: Case) -> None:
    """Dropout and drop path are on; only torch is seeded, so nothing may draw from elsewhere."""
    weights = []
    for seed in (0, 0, 1):
        attached = case.build()
        torch.manual_seed(seed)
        run_steps(attached, case, steps=2)
        weights.append(attached.snapshot())
    assert equal(weights[0], weights[1])
    assert not equal(weights[0], weights[2])


def test_activation_checkpointing_changes_no_number(case: Case) -> None:
    """Blocks that run again in the backward pass draw the same random numbers, and count no statistics twice."""
    ends = []
    for checkpointing in (False, True):
        attached = case.build(checkpointing=checkpointing)
        torch.manual_seed(3)
        with Waiting() as waiting:
            run_steps(attached, case, steps=2)
        assert not waiting.seen, "a step waits for the device"
        ends.append(attached.model.state_dict())
    assert equal(*ends)


def test_a_step_stays_on_its_device(case: Case) -> None:
    """Nothing is made or left on the CPU. The meta device knows no values, so this is a GPU's test without a GPU."""
    model = case.build().model.to("meta").train()
    clouds, labels = case.clouds(6, seed=0).to("meta"), torch.empty(6, dtype=torch.long, device="meta")
    with Elsewhere() as elsewhere:
        F.cross_entropy(model(clouds), labels).backward()
        model.eval()(clouds)
    assert not elsewhere.seen


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_a_step_is_the_same_elsewhere(case: Case, device: str) -> None:
    """On a GPU as on the CPU, in fp32 and without dropout; on the CPU again, whatever the seed.

    Gradients as a whole: of equals and near-equals another may be the maximum, which moves some of them.
    """
    scores, gradients = [], []
    for place, seed in (("cpu", 1), (device, 2)):
        attached = case.build()
        without_chance(attached.model)
        model = attached.model.to(place).train()
        torch.manual_seed(seed)
        scores.append(model(case.clouds(6, seed=0).to(place)).cpu())
        F.cross_entropy(scores[-1], torch.arange(6) % TASK.classes).backward()
        gradients.append({name: p.grad.cpu() for name, p in attached.trainable.items() if p.grad is not None})
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-3, atol=1e-3)
    assert gradients[0].keys() == gradients[1].keys()
    first, second = (torch.cat([value.flatten() for value in each.values()]) for each in gradients)
    assert torch.linalg.norm(second - first) <= 0.1 * torch.linalg.norm(first)


def test_blocks_run_again_as_often_as_they_are_asked() -> None:
    """Two backward passes through one graph; and not at all outside of training."""
    case = Case("lora", "point_mae")
    attached = case.build(checkpointing=True)
    found = []
    scores = attached.model.train()(case.clouds(4, seed=0)).square().sum()
    for last in (False, True):
        scores.backward(retain_graph=not last)
        found.append([p.grad.clone() for p in attached.trainable.values() if p.grad is not None])
        attached.model.zero_grad()
    assert found[0] and all(map(torch.equal, *found))
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("harness.models.encoder.checkpointed")
        attached.model.eval()(case.clouds(4, seed=0)).sum().backward()


def test_two_clouds_are_a_batch(case: Case) -> None:
    attached = case.build()
    run_steps(attached, case, steps=2, batch=2)
    for name, value in attached.snapshot().items():
        assert torch.isfinite(value).all(), name


def test_settings_travel(case: Case) -> None:
    """To other processes (pickle), and into files and back (JSON)."""
    assert pickle.loads(pickle.dumps(case.method)) == case.method
    assert type(case.method).model_validate(json.loads(json.dumps(case.method.model_dump(mode="json")))) == case.method


@pytest.fixture(scope="module")
def trained_by_two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have left what they trained, of all cases that were selected to run."""
    folder = tmp_path_factory.mktemp("two_processes")
    selected = {item.callspec.params["case"] for item in request.session.items if "trained_by_two" in item.fixturenames}
    names = [str(case) for case in selected if not misfits(case.method, case.backbone)]
    command = [sys.executable, "-m", "tests.methods.two_processes", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    logs = [folder / f"{rank}.log" for rank in range(WORLD)]
    running = []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            arguments = [*command, str(rank), *names]
            running.append(subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=file, stderr=file))
    end = time.monotonic() + 60 + 3 * len(names)  # starting two pythons, then less than a second per case
    try:
        for process in running:
            process.wait(timeout=end - time.monotonic())
    finally:
        for process in running:
            process.kill()
            process.wait()
    said = "\n".join(log.read_text() for log in logs)
    assert [process.returncode for process in running] == [0] * WORLD, said
    return folder


# Two processes on two cores: a minute for all networks, so one of them every time, and all with the slow tests.
ON_TWO = [
    case if case.backbone_name == CASES[0].backbone_name else pytest.param(case, marks=pytest.mark.slow)
    for case in CASES
]


@pytest.mark.parametrize("case", ON_TWO, ids=str, indirect=True)
def test_two_processes_train_as_one(case: Case, trained_by_two: Path) -> None:
    """Ranks end alike, whatever noise each has; without noise they end where one process on the whole batch does."""
    errors = [path.read_text() for path in sorted(trained_by_two.glob(f"{case}.*.error"))]
    assert not errors, "\n".join(errors)
    first, second = (load_file(trained_by_two / f"{case}.{rank}.safetensors") for rank in range(WORLD))
    assert equal(first, second)
    if not case.independent:
        return
    for name, expected in train(case, rank=None, noisy=False).items():
        error = (first[f"exact.{name}"] - expected).abs().max()
        assert error <= 1e-5 * expected.abs().max(), name


class Broken(Method):
    """A method that breaks one promise: `how` says which."""

    how: str

    def adapt(self, encoder: Encoder, task: Task) -> Adapted:
        part = BrokenPart(self.how, encoder.dim)
        added = [part.scale, part.unread] if self.how == "declares what nothing reads" else [part.scale]
        dead = [part.scale] if self.how == "calls dead what trains" else []
        encoder.blocks.append(part)
        return Adapted(encoder, added=added, dead=dead)


class BrokenPart(nn.Module):
    def __init__(self, how: str, dim: int) -> None:
        super().__init__()
        self.how, self.hidden, self.left = how, torch.zeros(()), torch.eye(dim)
        self.scale = nn.Parameter(torch.ones(dim))
        self.unread = nn.Parameter(torch.ones(dim))
        self.random = np.random.default_rng()
        self.generator = torch.Generator()

    def forward(self, tokens: Tokens) -> Tokens:
        x = tokens.features * self.scale
        if self.how == "hides what it learns" and self.training:
            self.hidden += x.detach().mean()
        if self.how == "draws from elsewhere":
            x = x + self.random.uniform() * x.roll(1, -1)
        if self.how == "mixes the batch":
            x = x - x.mean(0, keepdim=True)
        if self.how == "leaves a tensor on the CPU":
            x = x @ self.left
        if self.how == "draws on the CPU":
            x = x + torch.rand(1, generator=self.generator, device=x.device)
        if self.how == "waits for the device" and x.amax() > 0:
            x = x + 0.1
        if self.how == "is undefined for two clouds":
            x = x / (len(x) - 2)
        return replace(tokens, features=x + self.hidden)


class BrokenCase(Case):
    @cached_property
    def method(self) -> Method:
        return Broken.model_validate(self.settings).on(self.backbone)


@pytest.mark.parametrize(
    ("how", "check"),
    [
        ("declares what nothing reads", test_exactly_what_is_declared_trains),
        ("calls dead what trains", test_exactly_what_is_declared_trains),
        ("waits for the device", test_exactly_what_is_declared_trains),
        ("leaves a tensor on the CPU", test_a_step_stays_on_its_device),
        ("draws on the CPU", test_a_step_stays_on_its_device),
        ("draws from elsewhere", partial(test_a_step_is_the_same_elsewhere, device="cpu")),
        ("mixes the batch", test_predictions_do_not_depend_on_the_rest_of_the_batch),
        ("hides what it learns", test_what_changed_is_the_trained_model),
        ("draws from elsewhere", test_the_same_seed_gives_the_same_weights),
        ("is undefined for two clouds", test_two_clouds_are_a_batch),
    ],
)
def test_a_broken_promise_is_noticed(how: str, check: Callable[[Case], None]) -> None:
    check(BrokenCase("broken", "point_mae", {"how": "keeps its promises"}))
    with pytest.raises(AssertionError):
        check(BrokenCase("broken", "point_mae", {"how": how}))


@pytest.mark.parametrize("method", registry.names("methods"))
def test_a_method_is_defined_somewhere(method: str) -> None:
    """Otherwise the whole contract would be skipped for it."""
    if method in EXTRAS:
        pytest.importorskip(EXTRAS[method], reason=f"{method} needs the extra `{EXTRAS[method]}`")
    assert any(not misfits(case.method, case.backbone) for case in CASES if case.method_name == method)
