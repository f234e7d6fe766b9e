"""What every registered method promises, on a small encoder, and exact counts at the papers' size."""

import pytest
import torch
from torch.nn import functional as F

from harness import registry
from harness.method import Attached, Method, Task, attach
from harness.models.point_mae import PointMAE

TINY = PointMAE(preset="tiny", groups=8, group_size=8)
TASK = Task(classes=5, train_items=12)
# name, settings, (added, unfrozen, head, trainable, total) at `base`, 15 classes
COUNTS = [
    ("full", {}, (0, 21_825_792, 267_535, 22_093_327, 22_093_327)),
    ("linear_probe", {}, (0, 0, 267_535, 267_535, 22_093_327)),
    ("vpt", {}, (92_160, 768, 267_535, 360_463, 22_185_487)),
    ("adapter", {}, (595_200, 768, 267_535, 863_503, 22_688_527)),
    ("lora", {}, (589_824, 768, 267_535, 858_127, 22_683_151)),
    ("dapt", {}, (721_164, 768, 365_839, 1_087_771, 22_912_795)),
    ("point_peft", {}, (404_784, 38_400, 267_535, 710_719, 22_498_111)),
    ("point_peft", {"official_quirks": True}, (467_082, 38_400, 267_535, 773_017, 22_560_409)),
]
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in registry.names("methods")),
    ("vpt", {"deep": False}),
    ("vpt", {"positions": False}),
    ("lora", {"targets": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"], "alpha": 16}),
    ("dapt", {"pool": ["class", "patch_max"]}),
    ("point_peft", {"official_quirks": True}),
    ("point_peft", {"prompt_layers": 0}),
]


def make(name: str, settings: dict[str, object]) -> Method:
    method = registry.get("methods", name).model_validate(settings)
    assert isinstance(method, Method)
    return method


def attached(name: str, settings: dict[str, object], *, seed: int = 0) -> Attached:
    torch.manual_seed(seed)
    found = attach(make(name, settings), TINY.build(drop_path=0.1), TASK)
    if found.before_training is not None:
        clouds = torch.rand(TASK.train_items, 128, 3, generator=torch.Generator().manual_seed(1))
        found.before_training(iter(clouds.split(5)))
    return found


@pytest.mark.parametrize(("name", "settings", "expected"), COUNTS, ids=lambda value: str(value)[:40])
def test_exact_counts_at_base(name: str, settings: dict[str, object], expected: tuple[int, ...]) -> None:
    with torch.device("meta"):
        counts = attach(make(name, settings), PointMAE().build(drop_path=0), Task(classes=15, train_items=1)).counts
    assert (counts.added, counts.unfrozen, counts.head, counts.trainable, counts.total) == expected


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_trains_what_it_declares_and_nothing_else(name: str, settings: dict[str, object]) -> None:
    found = attached(name, settings)
    before = {key: value.clone() for key, value in found.model.named_parameters()}
    optimizer = torch.optim.AdamW(found.optimizer_groups(0.05), lr=0.01)
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == found.counts.trainable
    found.model.train()
    for step in range(2):  # a zero-initialised factor hides its partner's gradient in the first step
        generator = torch.Generator().manual_seed(step)
        scores = found.model(torch.rand(6, 128, 3, generator=generator))
        assert scores.shape == (6, 5)
        optimizer.zero_grad()
        F.cross_entropy(scores, torch.arange(6) % 5).backward()
        assert found.starved() == []
        optimizer.step()
    dead = {id(p) for p in found.dead}
    for key, parameter in found.model.named_parameters():
        if key not in found.trainable:
            assert torch.equal(parameter, before[key]), f"{key} is frozen and changed"
            assert parameter.grad is None, f"{key} is frozen and has a gradient"
        elif id(parameter) in dead:
            assert parameter.grad is None, f"{key} is listed as dead and has a gradient"


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_predictions_do_not_depend_on_the_batch(name: str, settings: dict[str, object]) -> None:
    if settings.get("official_quirks"):
        pytest.skip("the published Point-PEFT code reads rows of its neighbours in the batch")
    model = attached(name, settings).model.eval()
    clouds = torch.rand(4, 128, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        together = model(clouds)
        alone = torch.cat([model(cloud[None]) for cloud in clouds])
    assert torch.allclose(together, alone, atol=1e-5)


def test_official_quirks_leak_across_the_batch() -> None:
    model = attached("point_peft", {"official_quirks": True}).model.eval()
    clouds = torch.rand(4, 128, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert not torch.allclose(model(clouds)[1], model(clouds[1:2])[0], atol=1e-4)


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=str)
def test_what_changed_restores_the_model(name: str, settings: dict[str, object]) -> None:
    trained, fresh = attached(name, settings), attached(name, settings)
    clouds = torch.rand(6, 128, 3, generator=torch.Generator().manual_seed(5))
    optimizer = torch.optim.AdamW(trained.optimizer_groups(0.0), lr=0.01)
    trained.model.train()
    F.cross_entropy(trained.model(clouds), torch.arange(6) % 5).backward()
    optimizer.step()
    fresh.restore(trained.snapshot())
    with torch.no_grad():
        assert torch.equal(fresh.model.eval()(clouds), trained.model.eval()(clouds))


@pytest.mark.parametrize("name", ["adapter", "lora"])
def test_starts_as_the_pretrained_encoder(name: str) -> None:
    torch.manual_seed(0)
    encoder = TINY.build(drop_path=0).eval()
    clouds = torch.rand(2, 128, 3)
    with torch.no_grad():
        before = encoder(clouds).features
        after = make(name, {}).adapt(encoder, TASK).encoder.eval()(clouds).features
    assert torch.allclose(before, after, atol=1e-6)


def test_a_method_that_declares_wrongly_is_refused() -> None:
    from harness.method import Adapted
    from harness.models.encoder import Encoder

    class Wrong(Method):
        def adapt(self, encoder: Encoder, task: Task) -> Adapted:
            return Adapted(encoder, added=[encoder.norm])

    class Elsewhere(Method):
        def adapt(self, encoder: Encoder, task: Task) -> Adapted:
            return Adapted(encoder, added=[torch.nn.Linear(2, 2)])

    for wrong in (Wrong(), Elsewhere()):
        with pytest.raises(ValueError, match="declares"):
            attach(wrong, TINY.build(drop_path=0), TASK)


def test_no_weight_decay_for_vectors_and_the_class_token() -> None:
    found = attached("full", {})
    decayed = {id(p) for group in found.optimizer_groups(0.05) if group["weight_decay"] for p in group["params"]}  # type: ignore[attr-defined]
    for key, parameter in found.trainable.items():
        exempt = parameter.ndim <= 1 or key == "encoder.class_token"
        assert (id(parameter) in decayed) is not exempt, key
