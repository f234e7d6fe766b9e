"""What single methods promise beyond the contract (test_contract.py), and exact counts at the papers' size."""

import pytest
import torch
from torch.nn import functional as F

from harness import registry
from harness.errors import UserError
from harness.method import Adapted, Method, Task, attach
from harness.models.encoder import Encoder
from harness.models.point_m2ae import PointM2AE
from harness.models.point_mae import PointMAE
from tests.methods.cases import TASK, Case

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
    ("bitfit", {}, (0, 40_448, 267_535, 307_983, 22_093_327)),
    ("ssf", {}, (102_912, 768, 267_535, 371_215, 22_196_239)),
    ("adaptformer", {}, (595_212, 768, 267_535, 863_515, 22_688_539)),
    ("adaptformer", {"scale": 0.1}, (595_200, 768, 267_535, 863_503, 22_688_527)),
    ("prefix_tuning", {}, (442_368, 768, 267_535, 710_671, 22_535_695)),
    # The official total has the prompt's position, 384 numbers that do not train, in it.
    ("idpt", {}, (1_330_176, 768, 365_839, 1_696_783, 23_522_191 - 384)),
    ("idpt", {"pool": ["prompt_max"]}, (1_330_176, 768, 169_231, 1_500_175, 23_325_583 - 384)),
]


@pytest.mark.parametrize(("name", "settings", "expected"), COUNTS, ids=lambda value: str(value)[:40])
def test_exact_counts_at_base(name: str, settings: dict[str, object], expected: tuple[int, ...]) -> None:
    with torch.device("meta"):
        method = registry.get("methods", name).model_validate(settings).on(PointMAE())
        counts = attach(method, PointMAE().build(drop_path=0), Task(classes=15, train_items=1)).counts
    assert (counts.added, counts.unfrozen, counts.head, counts.trainable, counts.total) == expected


HIERARCHICAL_COUNTS = [
    ("full", {}, 12_921_935),
    ("linear_probe", {}, 267_535),
    ("point_peft", {}, 660_998),  # the published code's, less 48 coordinates of prompts
    ("point_peft", {"official_quirks": True}, 661_046),
    ("bitfit", {}, 267_535 + 26_880 + 384 + 1_344 + 4_224),  # blocks, norm, positions, tokenizers
    ("ssf", {}, 343_567),
    ("adaptformer", {}, 701_950),
    ("prefix_tuning", {}, 590_095),
]


@pytest.mark.parametrize(("name", "settings", "trainable"), HIERARCHICAL_COUNTS)
def test_exact_counts_on_point_m2ae(name: str, settings: dict[str, object], trainable: int) -> None:
    backbone = PointM2AE()
    with torch.device("meta"):
        method = registry.get("methods", name).model_validate(settings).on(backbone)
        counts = attach(method, backbone.build(drop_path=0), Task(classes=15, train_items=1)).counts
    assert counts.trainable == trainable


TOTALS = [
    ("point_mae", {}, 22_093_327, 22_099_752),
    ("act", {}, 22_093_327, 22_099_752),
    ("recon", {}, 22_093_327, 22_099_752),
    ("point_bert", {}, 22_059_535, 22_065_960),
    ("point_m2ae", {}, 12_921_935, None),
    ("point_m2ae", {"pool": ["mean_plus_max"]}, None, 12_830_056),  # its ModelNet40 model
]


@pytest.mark.parametrize(("name", "settings", "fifteen", "forty"), TOTALS)
def test_exact_totals_of_the_backbones(
    name: str, settings: dict[str, object], fifteen: int | None, forty: int | None
) -> None:
    backbone = registry.get("backbones", name)()
    for classes, expected in ((15, fifteen), (40, forty)):
        with torch.device("meta"):
            method = registry.get("methods", "full").model_validate(settings).on(backbone)
            task = Task(classes=classes, train_items=1)
            counts = attach(method, backbone.build(drop_path=0), task, head=backbone.head).counts
        assert expected is None or counts.total == counts.trainable == expected


def test_official_quirks_leak_across_the_batch() -> None:
    case = Case("point_peft", "point_mae", {"official_quirks": True})
    model, clouds = case.build().model.eval(), case.clouds(4, seed=3)
    with torch.no_grad():
        assert not torch.allclose(model(clouds)[1], model(clouds[1:2])[0], atol=1e-4)


@pytest.mark.parametrize("name", ["adapter", "lora", "bitfit", "adaptformer"])
def test_starts_as_the_pretrained_encoder(name: str) -> None:
    case = Case(name, "point_mae")
    encoder, clouds = case.backbone.build(drop_path=0).eval(), case.clouds(2, seed=0)
    with torch.no_grad():
        before = encoder(clouds).features
        after = case.method.adapt(encoder, TASK).encoder.eval()(clouds).features
    assert torch.allclose(before, after, atol=1e-6)


def test_a_method_that_declares_wrongly_is_refused() -> None:
    class Wrong(Method):
        def adapt(self, encoder: Encoder, task: Task) -> Adapted:
            return Adapted(encoder, added=[encoder.norm])

    class Elsewhere(Method):
        def adapt(self, encoder: Encoder, task: Task) -> Adapted:
            return Adapted(encoder, added=[torch.nn.Linear(2, 2)])

    backbone = Case("full", "point_mae").backbone
    for wrong in (Wrong(), Elsewhere()):
        with pytest.raises(ValueError, match="declares"):
            attach(wrong.on(backbone), backbone.build(drop_path=0), TASK)


def test_no_weight_decay_for_vectors_and_the_class_token() -> None:
    found = Case("full", "point_mae").build()
    decayed = {id(p) for group in found.optimizer_groups(0.05) if group["weight_decay"] for p in group["params"]}  # type: ignore[attr-defined]
    for key, parameter in found.trainable.items():
        exempt = parameter.ndim <= 1 or key == "encoder.class_token"
        assert (id(parameter) in decayed) is not exempt, key


@pytest.mark.parametrize(("name", "has_prompts"), [("linear_probe", False), ("point_peft", False), ("vpt", True)])
def test_a_head_that_should_see_prompts_needs_some(name: str, has_prompts: bool) -> None:
    """The mean over no prompts would be NaN, found only when the trial has diverged."""
    case = Case(name, "point_mae", {"pool": ["class", "prompt_mean"]})
    model = case.build().model.eval()
    if has_prompts:
        assert torch.isfinite(model(case.clouds(2, seed=0))).all()
    else:
        with pytest.raises(UserError, match="pool asks for prompts"):
            model(case.clouds(2, seed=0))


@pytest.mark.parametrize("backbone", ["point_mae", "point_bert", "point_m2ae"])
def test_biases_before_a_batch_norm_get_rounding_noise(backbone: str) -> None:
    """What docs/methods.md says of BitFit: statistics of the batch take these biases out again, and no others."""
    case = Case("bitfit", backbone)
    attached = case.build()
    attached.model.train()
    F.cross_entropy(attached.model(case.clouds(4, seed=0)), torch.arange(4)).backward()
    for tokenizer in attached.model.encoder.tokenizers:
        gradients = {n: float(p.grad.abs().max()) for n, p in tokenizer.named_parameters() if p.grad is not None}
        cancelled = {name for name in gradients if name.endswith(("point1.bias", "point2.bias", "point3.bias"))}
        assert len(cancelled) == 3 and cancelled < gradients.keys()
        noise, least = max(gradients[n] for n in cancelled), min(gradients[n] for n in gradients.keys() - cancelled)
        assert 0 < noise < 1e-4 * least


@pytest.mark.parametrize(
    ("settings", "words"), [({"prompt_block": 2}, "prompt_block 2 is not there: blocks are 0 to 1"), ({}, None)]
)
def test_idpt_needs_its_block(settings: dict[str, object], words: str | None) -> None:
    case = Case("idpt", "point_mae", settings)
    assert case.method.problems(case.backbone) == ([] if words is None else [words])
