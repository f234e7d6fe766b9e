"""What single methods promise beyond the contract (test_contract.py), and exact counts at the papers' size."""

import copy
import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from harness import registry
from harness.adapter import file_names
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
    *(
        pytest.param(*row, marks=pytest.mark.skipif(find_spec("peft") is None, reason="the extra `peft` is missing"))
        for row in (
            ("hf_peft", {}, (603_648, 768, 267_535, 871_951, 22_696_975)),
            ("hf_peft", {"config": {"r": 32}}, (589_824, 768, 267_535, 858_127, 22_683_151)),  # as `lora`
            (
                "hf_peft",
                {"tuner": "ia3", "targets": ["attn.qkv", "mlp.fc2"]},
                (32_256, 768, 267_535, 300_559, 22_125_583),
            ),
            ("hf_peft", {"tuner": "vera"}, (16_896, 768, 267_535, 285_199, 22_110_223)),
        )
    ),
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


def skip_without_peft(name: str = "hf_peft") -> None:
    if name == "hf_peft":
        pytest.importorskip("peft", reason="the extra `peft` is not installed")


def test_official_quirks_leak_across_the_batch() -> None:
    case = Case("point_peft", "point_mae", {"official_quirks": True})
    model, clouds = case.build().model.eval(), case.clouds(4, seed=3)
    with torch.no_grad():
        assert not torch.allclose(model(clouds)[1], model(clouds[1:2])[0], atol=1e-4)


TUNERS: tuple[dict[str, object], ...] = (
    {},
    {"config": {"r": 4, "use_rslora": True, "bias": "all"}, "targets": ["attn.proj", "mlp.fc1"]},
    {"tuner": "ia3", "targets": ["attn.qkv", "mlp.fc2"]},
    {"tuner": "oft", "config": {"oft_block_size": 8}},
    {"tuner": "vera", "targets": ["attn.qkv", "attn.proj"]},
)
"""Settings of hf_peft."""


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in ("adapter", "lora", "bitfit", "adaptformer")),
        *(("hf_peft", settings) for settings in TUNERS),
    ],
    ids=str,
)
def test_starts_as_the_pretrained_encoder(name: str, settings: dict[str, object]) -> None:
    skip_without_peft(name)
    case = Case(name, "point_mae", settings)
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


def test_hf_pefts_lora_is_ours() -> None:
    skip_without_peft()
    targets = ["attn.qkv", "attn.proj", "mlp.fc2"]
    ours = Case("lora", "point_m2ae", {"rank": 4, "alpha": 6, "targets": targets}).build()
    case = Case("hf_peft", "point_m2ae", {"config": {"r": 4, "lora_alpha": 6}, "targets": targets})
    theirs, clouds = case.build(), case.clouds(3, seed=0)
    names = {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}
    for name, parameter in ours.trainable.items():
        owner, _, leaf = name.rpartition(".")
        other = theirs.trainable[f"{owner}.{names[leaf]}" if leaf in names else name]
        parameter.data = torch.randn_like(parameter) * 0.2
        other.data = parameter.data.clone()
    assert len(ours.trainable) == len(theirs.trainable)
    with torch.no_grad():
        assert torch.allclose(theirs.model.eval()(clouds), ours.model.eval()(clouds), atol=1e-5)


@pytest.mark.parametrize("settings", TUNERS, ids=str)
def test_what_hf_peft_builds_is_copied_and_merged(settings: dict[str, object]) -> None:
    skip_without_peft()
    case = Case("hf_peft", "point_mae", settings)
    attached = case.build()
    model, clouds = attached.model.eval(), case.clouds(2, seed=0)
    for parameter in attached.trainable.values():
        parameter.data += torch.randn_like(parameter) * 0.1
    with torch.no_grad():
        scores = model(clouds)
        assert torch.equal(pickle.loads(pickle.dumps(model))(clouds), scores)
        assert torch.equal(copy.deepcopy(model)(clouds), scores)
        features = model.encoder(clouds).features
        merged = case.method.merged(copy.deepcopy(model.encoder))
        assert merged is not None
        assert merged.state_dict().keys() == case.backbone.build(drop_path=0).state_dict().keys()
        assert torch.allclose(merged(clouds).features, features, atol=1e-4)


@pytest.mark.parametrize("settings", [case for case in TUNERS if case.get("tuner") != "vera"], ids=str)
def test_the_library_reads_what_hf_peft_built(settings: dict[str, object], tmp_path: Path) -> None:
    skip_without_peft()
    from peft import PeftModel

    case = Case("hf_peft", "point_m2ae", settings)
    attached, clouds = case.build(), case.clouds(2, seed=0)
    for parameter in attached.trainable.values():
        parameter.data += torch.randn_like(parameter) * 0.1
    names = file_names(attached.trainable, case.method)
    kept = {names[name]: p.detach() for name, p in attached.trainable.items()}
    save_file({n: p for n, p in kept.items() if not n.startswith("head.")}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(case.method.peft_config()))
    torch.manual_seed(0)
    read = PeftModel.from_pretrained(case.backbone.build(drop_path=0.1), tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(read(clouds).features, attached.model.eval().encoder(clouds).features)


def test_what_vera_shares_is_the_same_whatever_the_seed() -> None:
    """It is drawn from a key of the config, so an adapter file need not hold it."""
    skip_without_peft()
    case = Case("hf_peft", "point_m2ae", {"tuner": "vera"})
    first, second = (dict(case.build(method_seed=seed).model.named_buffers()) for seed in (0, 1))
    shared = [name for name in first if ".vera_" in name]
    assert len(shared) == 2 and all(torch.equal(first[name], second[name]) for name in shared)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tuner": "lorra"}, "unknown tuner 'lorra'; did you mean 'lora'?"),
        ({"tuner": "dora"}, "tuner 'dora' cannot be had: it is tuner lora with config {use_dora: true}"),
        ({"tuner": "p_tuning"}, "tuner 'p_tuning' cannot be had: it makes prompts for language models; see"),
        (
            {"config": {"use_dorra": True}},
            "the config of lora has no 'use_dorra' that a suite could hold; did you mean",
        ),
        ({"config": {"r": "many"}}, "config.r: Input should be a valid integer"),
        ({"config": {"r": -1}}, "peft refuses tuner 'lora' with this config: `r` should be a positive integer"),
        ({"config": {"target_modules": ["x"]}}, "config.target_modules cannot be set: use `targets`"),
        ({"config": {"task_type": "SEQ_CLS"}}, "config.task_type cannot be set: it says nothing here"),
        ({"config": {"init_lora_weights": "eva"}}, "config.init_lora_weights: 'eva' wants data"),
        ({"config": {"runtime_config": {}}}, "the config of lora has no 'runtime_config' that a suite could hold"),
        ({"tuner": "c3a", "config": {"block_size": 7}}, "peft refuses tuner 'c3a' with this config: The block size"),
    ],
    ids=str,
)
def test_hf_peft_says_what_it_cannot_take(settings: dict[str, object], words: str) -> None:
    skip_without_peft()
    case = Case("hf_peft", "point_mae", settings)
    state = torch.get_rng_state()
    (problem,) = case.method.problems(case.backbone)
    assert problem.startswith(words)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises((UserError, ValueError)):
        case.build()


def test_hf_peft_reads_numbers_that_are_text() -> None:
    skip_without_peft()
    case = Case("hf_peft", "point_mae", {"config": {"r": "4", "lora_dropout": "1e-1"}})
    assert case.method.problems(case.backbone) == []


def test_hf_peft_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("methods.hf_peft.find_spec", lambda name: None)
    case = Case("hf_peft", "point_mae")
    (problem,) = case.method.problems(case.backbone)
    assert problem == "needs the package peft: pip install 'pointpeft-harness[peft]'"
    with pytest.raises(UserError, match="needs the package peft"):
        case.build()
