"""Fine-tuned checkpoints: what is imported computes what the authors' code computed, and its accuracy can be had."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import Tensor

from harness import load_model, registry
from harness.cli import main
from harness.data.imported import Card, ClassCounts, card_path, clouds_path
from harness.data.sampling import test_points as chosen_points
from harness.errors import UserError
from harness.importing import finetuned, known
from harness.importing.cards import CARD, TENSORS, ImportedCard, imported_models, read_imported
from harness.importing.files import SECTIONS, import_file, remove
from harness.importing.known import KnownModel
from harness.method import Task, attach, misfits
from harness.models.head import HeadKind, Pool
from harness.models.manifest import Manifest, model_folder
from harness.models.weights import OfficialFile
from harness.rebuilt import StoredQuery
from harness.recorded import BUNDLED, Record, read_record
from methods.idpt import IDPT
from methods.vpt import VPT
from tests.harness.importing.checkpoints import (
    DECODER,
    IN_POINT_PEFT,
    LEVEL_DECODER,
    LEVEL_NORMS,
    PLAIN,
    RECON,
    official,
    official_head,
    official_idpt,
    official_vpt,
    ones,
    randomised,
    spelled,
    write,
)
from tests.harness.importing.checkpoints import LEVELS as LEVELS_SMALL

pytestmark = pytest.mark.usefixtures("in_process")

PATCHES = ["backbone.groups=16", "backbone.group_size=8", "data.points=128"]
LEVELS = [
    "backbone.heads=3", "backbone.num_groups=[32, 16, 8]", "backbone.group_sizes=[8, 6, 4]",
    "backbone.local_radius=[0.5, 0.8, 1.28]", "data.points=128",
]  # fmt: skip
CASES: dict[str, tuple[str, list[str]]] = {
    "pointmae_full": ("full", PATCHES),
    "dapt_use_mean_max": ("dapt", PATCHES),
    "dapt_use_mean_None": ("dapt", [*PATCHES, "method.pool=[class, prompt_mean]"]),
    "m2ae_scan_full": ("full", LEVELS),
}


ADDED = ("cls_", "tfts", "Adapter", "adapter", "prompt_", "attn1", "norm3", "ad_gate", "out_transform")
"""Words in the names of tensors that methods add."""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@cache
def record(name: str) -> Record:
    return read_record(BUNDLED / f"{name}.json")


def state(name: str) -> dict[str, Tensor]:
    """The official state of a recorded model, as torch had it."""
    return record(name).state


def finetuned_file(path: Path, name: str, **changes: Tensor | None) -> Path:
    """A checkpoint as the official fine-tuning writes it."""
    found: dict[str, Any] = {f"module.{key}": value for key, value in {**state(name), **changes}.items()}
    return write(path, {k: v for k, v in found.items() if v is not None}, metrics={"acc": torch.tensor(75.0)})


def pretrained_file(path: Path, name: str, *, prefix: str = "MAE_encoder.", **changes: Tensor) -> Path:
    """A pre-training checkpoint with the frozen tensors of a recorded model."""
    plain = {k: v for k, v in state(name).items() if not any(word in k for word in ADDED)} | changes
    return write(path, {f"module.{prefix}{k}": v for k, v in plain.items()} | DECODER)


def pretrained_levels(path: Path, name: str) -> Path:
    """The same of Point-M2AE, whose pre-training has other norms at the end."""
    plain = {k: v for k, v in state(name).items() if not any(word in k for word in (*ADDED, "prompt"))}
    lacks = ("norm.weight", "norm.bias")
    names = spelled(plain, tuple((theirs, ours) for ours, theirs in IN_POINT_PEFT))
    return write(path, {k: v for k, v in names.items() if k not in lacks} | LEVEL_NORMS | LEVEL_DECODER)


def make_dataset(root: Path, name: str, points: Tensor, labels: Tensor, *, classes: int, each: int = 2) -> None:
    """An imported dataset: the given clouds to test on, and `each` more of each class to train on."""
    drawn = torch.rand(each * classes, *points.shape[1:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    content = save(
        {
            "points": torch.cat([points, drawn]).numpy(),
            "labels": torch.cat([labels, torch.arange(each * classes) % classes]).numpy().astype(np.int64),
            "test": np.array([1] * len(points) + [0] * each * classes, dtype=np.uint8),
        }
    )
    kinds = tuple(f"kind{index}" for index in range(classes))
    card = Card(
        name=name, classes=kinds, train_items=each * classes, test_items=len(points), points=points.shape[1], up="z",
        counts={kind: ClassCounts(read=each, refused=0, train=each, test=1) for kind in kinds}, normalised=True,
        licence="", folder="x", split="", duplicates=0, shared=0, ignored=0, refused=(),
        digest=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip
    clouds_path(name, root).parent.mkdir(parents=True, exist_ok=True)
    clouds_path(name, root).write_bytes(content)
    card_path(name, root).write_text(card.model_dump_json())


@pytest.fixture
def shapes(root: Path) -> None:
    """Datasets of as many classes as the recorded models have."""
    for name, case in (("five", "pointmae_full"), ("fifteen", "m2ae_scan_full")):
        recorded = record(case)
        classes = recorded.manifest.model.head.classes
        make_dataset(root, name, recorded.inputs["points"], recorded.inputs["labels"], classes=classes)
    make_dataset(
        root, "many", *(record("pointmae_full").inputs[key] for key in ("points", "labels")), classes=5, each=8
    )


def import_model(path: Path, **options: Any) -> ImportedCard:
    found = import_file(path, **options)
    assert isinstance(found, ImportedCard)
    return found


# The same numbers


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_the_authors_code(case: str, tmp_path: Path, shapes: None) -> None:
    method, settings = CASES[case]
    recorded = record(case)
    points, labels = recorded.inputs["points"], recorded.inputs["labels"]
    data = "fifteen" if case.startswith("m2ae") else "five"
    card = import_model(finetuned_file(tmp_path / "a.pth", case), name="mine", data=data, settings=settings)
    assert (card.adapter.spec["method"]["name"], card.base, card.source.missing) == (method, None, {})
    assert set(card.source.used.values()) == {f"module.{key}" for key in state(case)}
    model = load_model("mine")
    with torch.no_grad():
        scores = model.model(points)
    assert torch.allclose(scores, recorded.outputs["logits_eval"], atol=1e-5)
    assert model.trial.method.pool == recorded.manifest.model.head.inputs
    assert model.title == f"mine: {method} on {recorded.manifest.model.encoder.name}"

    with torch.no_grad():
        guesses = model.model(chosen_points(points, 128, "fps")).argmax(1)
    found = model.evaluate()
    assert np.array_equal(found.prediction, guesses.numpy()) and np.array_equal(found.label, labels.numpy())


@pytest.mark.parametrize(
    ("backbone", "head", "pool", "options"),
    [
        ("point_bert", "two_layer", None, {}),
        ("point_bert", "three_layer", None, {}),
        ("point_mae", "two_layer", None, {}),
        ("act", "three_layer", None, {"backbone": "act"}),
        ("act", "linear", None, {"backbone": "act"}),
        ("recon", "linear", None, {"backbone": "recon"}),
        ("point_m2ae", "three_layer", ("mean_plus_max",), {}),
        ("point_m2ae", "linear", None, {}),
    ],
)
def test_other_official_models(
    backbone: str, head: HeadKind, pool: tuple[Pool, ...] | None, options: dict[str, str], tmp_path: Path, shapes: None
) -> None:
    """Those without a record: our model, written down in the official names."""
    sizes = LEVELS_SMALL if backbone == "point_m2ae" else PLAIN
    settings = registry.get("backbones", backbone)(**sizes)
    method = registry.get("methods", "full")(pool=pool).on(settings)
    encoder = randomised(settings.build(drop_path=0))
    model = attach(method, encoder, Task(5, train_items=1), head=head).model.eval()
    path = write(tmp_path / "a.pth", official(encoder) | official_head(model))
    card = import_model(path, name="mine", data="five", settings=given(sizes), **options)
    assert card.adapter.spec["backbone"]["settings"]["head"] == head
    points = torch.rand(3, 64, 3)
    with torch.no_grad():
        assert torch.equal(load_model("mine").model(points), model(points))


def given(sizes: Mapping[str, object]) -> list[str]:
    """What no tensor of a small encoder tells."""
    patches = ("groups", "group_size", "num_groups", "group_sizes")
    told = {key: list(v) if isinstance(v, tuple) else v for key, v in sizes.items() if key in patches}
    return [*(f"backbone.{key}={value}" for key, value in told.items()), "data.points=64"]


@pytest.mark.parametrize(
    ("method", "settings", "assumed"),
    [
        (VPT(prompts=3), [], {}),
        (IDPT(), [], {"method.pool": ("class", "prompt_max", "patch_max"), "method.prompt_block": None}),
        (IDPT(pool=("prompt_max",), prompt_block=0), ["method.prompt_block=0"], {"method.pool": ("prompt_max",)}),
        (IDPT(pool=("class", "patch_max")), ["method.pool=[class, patch_max]"], {"method.prompt_block": None}),
    ],
    ids=["vpt", "idpt", "prompt only", "point cls"],
)
@pytest.mark.parametrize("backbone", ["point_mae", "point_bert"])
def test_models_of_idpts_repository(
    backbone: str, method: IDPT | VPT, settings: list[str], assumed: dict[str, object], tmp_path: Path, shapes: None
) -> None:
    declared = registry.get("backbones", backbone)(**PLAIN)
    encoder = declared.build(drop_path=0)
    model = randomised(attach(method.on(declared), encoder, Task(5, train_items=1), head=declared.head).model)
    blocks: Any = model.encoder.blocks
    if isinstance(method, IDPT):
        block = next(block for block in blocks if hasattr(block, "prompt"))
        own = official_idpt(block.prompt, block.position)
    else:
        own = official_vpt(blocks)
    path = write(
        tmp_path / "a.pth", {f"module.{k}": v for k, v in (official(encoder) | own | official_head(model)).items()}
    )
    card = import_model(path, name="mine", data="five", settings=[*given(PLAIN), *settings])
    assert card.adapter.spec["method"]["name"] == type(method).__name__.lower()
    assert {key: value for key, value in card.source.assumed.items() if key.startswith("method.")} == assumed
    points = torch.rand(3, 64, 3)
    with torch.no_grad():
        assert torch.equal(load_model("mine").model(points), model(points))

    twins = {f"module.{name}" for name in own if name[16:18] == ".1"}
    assert {*card.source.used.values()} | {*card.source.left.get("held twice", ())} == {
        f"module.{k}" for k in state_of(path)
    }
    assert set(card.source.left.get("held twice", ())) == twins
    if twins:  # the two are one tensor there
        other = state_of(path)
        other["blocks.cls.conv1.1.weight"] += 1
        with pytest.raises(UserError, match=r"nearest is idpt, but it has 1 tensors more, first 'blocks.cls.conv1.1.w"):
            import_file(
                write(tmp_path / "b.pth", other), name="other", data="five", settings=[*given(PLAIN), *settings]
            )


def state_of(path: Path) -> dict[str, Tensor]:
    """A checkpoint's tensors without `module.`."""
    found = torch.load(path, weights_only=True)["base_model"]
    return {name.removeprefix("module."): value for name, value in found.items()}


@pytest.mark.parametrize("kind", ["act", "recon"])
def test_weights_that_are_here_tell_whose_encoder_it_is(kind: str, tmp_path: Path, shapes: None) -> None:
    """Point-MAE's, ACT's and ReCon's tensors have the same names after fine-tuning."""
    prefix, beside = {"act": ("ACT_encoder.", {}), "recon": ("MAE_encoder.", RECON)}[kind]
    case, path = record("dapt_use_mean_max"), finetuned_file(tmp_path / "scan.pth", "dapt_use_mean_max")
    whole = import_model(path, name="whole", data="five", settings=PATCHES)
    assert (whole.adapter.spec["backbone"]["name"], whole.source.guess[-15:]) == ("point_mae", "for Point-MAE's")
    named = import_model(path, name="named", data="five", settings=PATCHES, backbone=kind)
    assert (named.adapter.spec["backbone"]["name"], named.source.guess, named.base) == (kind, "", None)
    base = pretrained_file(tmp_path / "base.pth", "dapt_use_mean_max", prefix=prefix, **beside)
    assert import_file(base).backbone == kind  # type: ignore[union-attr]
    small = import_model(path, name="small", data="five", settings=PATCHES)
    assert (small.adapter.spec["backbone"]["name"], small.source.guess, small.base) == (kind, "", "base")
    for name in ("whole", "named", "small"):
        with torch.no_grad():
            assert torch.allclose(load_model(name).model(case.inputs["points"]), case.outputs["logits_eval"], atol=1e-5)


def test_an_adapter_on_named_weights(tmp_path: Path, shapes: None) -> None:
    case, path = record("dapt_use_mean_max"), finetuned_file(tmp_path / "scan.pth", "dapt_use_mean_max")
    whole = import_model(path, name="whole", data="five", settings=PATCHES)
    assert isinstance(import_file(pretrained_file(tmp_path / "base.pth", "dapt_use_mean_max")), Manifest)
    other = {"norm.weight": torch.ones(48)}
    import_file(pretrained_file(tmp_path / "other.pth", "dapt_use_mean_max", **other), name="a_other")
    small = import_model(path, name="small", data="five", settings=PATCHES)
    assert (small.base, small.as_base, whole.base, whole.as_base) == ("base", small.frozen, None, 0)
    assert small.frozen == whole.frozen > 40
    kept, everything = (load_file(model_folder(name) / TENSORS) for name in ("small", "whole"))
    assert not any("attn.qkv.0" in name for name in kept) and set(kept) < set(everything)
    named = import_model(path, name="named", data="five", settings=PATCHES, base="a_other")
    assert (named.base, named.as_base) == ("a_other", named.frozen - 1)
    for name in ("whole", "small", "named"):
        with torch.no_grad():
            scores = load_model(name).model(case.inputs["points"])
        assert torch.allclose(scores, case.outputs["logits_eval"], atol=1e-5)
    with pytest.raises(
        UserError, match=r"--base nope: no such weights for this point_mae or act or recon are here \(a_other, base\)"
    ):
        import_file(path, name="x", data="five", settings=PATCHES, base="nope")

    remove("base")
    with pytest.raises(UserError, match=r"model 'small' .* cannot be built: unknown weights 'base'"):
        load_model("small")
    import_file(pretrained_file(tmp_path / "base.pth", "dapt_use_mean_max", **other), name="base")
    with pytest.raises(UserError, match=r"model 'small' .* was imported on other weights 'base': SHA-256"):
        load_model("small")


BANKS: dict[str, tuple[list[str], set[str]]] = {
    "pointpeft_mae": (PATCHES, {"adapter_scale", "prompt_layers", "propagate", "center", "query_groups"}),
    "pointpeft_m2ae": (LEVELS, {"propagate", "center"}),
}


@pytest.mark.parametrize("name", BANKS)
def test_a_memory_bank_is_made_of_the_training_set(name: str, tmp_path: Path, shapes: None, root: Path) -> None:
    """Once, at the import: the model's file has it, and the clouds are not needed any more."""
    case, path = record(name), finetuned_file(tmp_path / "a.pth", name)
    settings, assumed = BANKS[name]
    with pytest.raises(UserError, match="point_peft keeps a frozen copy of the encoder that it began with, which the"):
        import_file(path, name="mine", data="many", settings=settings)
    if name == "pointpeft_m2ae":
        import_file(pretrained_levels(tmp_path / "base.pth", name), settings=["backbone.heads=3"])
    else:
        import_file(pretrained_file(tmp_path / "base.pth", name))
    clouds = clouds_path("many", root).rename(tmp_path / "clouds")
    with pytest.raises(UserError, match="makes its memory bank of the training clouds of many, since the authors"):
        import_file(path, name="mine", data="many", settings=settings)
    assert not model_folder("mine").exists()
    clouds.rename(clouds_path("many", root))
    card = import_model(path, name="mine", data="many", settings=settings)
    assert card.base == "base" and card.source.missing["encoder.bank"] == "made of the training clouds of many"
    assert {why for key, why in card.source.missing.items() if key != "encoder.bank"} == {"the base weights'"}
    assert set(card.source.used.values()) == {f"module.{key}" for key in state(name)}
    assert card.adapter.spec["method"]["settings"]["official_quirks"] is True
    told = {key.removeprefix("method.") for key in card.source.assumed if key.startswith("method.")}
    assert told == assumed and card.source.assumed.get("method.prompt_layers") in (6, None)

    clouds_path("many", root).unlink()
    encoder: Any = load_model("mine").model.encoder
    assert encoder.bank.shape == (48, 40) and torch.allclose(encoder.bank.norm(dim=0), torch.ones(40))
    again: Any = load_model("mine").model.encoder
    assert torch.equal(again.bank, encoder.bank)
    loaded = load_model("mine")
    (feature,) = (value for key, value in case.inputs.items() if key.startswith("cp_feat"))
    loaded.model.encoder.register_buffer("bank", case.inputs["bank"])
    loaded.model.encoder.register_module("query", StoredQuery(feature))
    with torch.no_grad():
        assert torch.allclose(loaded.model(case.inputs["points"]), case.outputs["logits_eval"], atol=1e-5)


# What the user says, and what is known


def test_what_is_not_told_is_asked_for_or_said(tmp_path: Path, shapes: None, root: Path) -> None:
    path = finetuned_file(tmp_path / "a.pth", "dapt_use_mean_None")
    card = import_model(path, data="five", settings=PATCHES)
    assert card.name == "a" and card.source.assumed == {
        "backbone.heads": 6, "method.pool": ("class", "patch_max"), "data.sampling": "fps",
    }  # fmt: skip
    for options, words in (
        (
            {},
            r"of 5 classes: say what it was trained on with --data NAME \(of so many classes: five, many[,)]",
        ),
        ({"data": "fifteen"}, "--data fifteen: has 15 classes, and the file's head 5"),
        ({"data": "fiv"}, "unknown dataset 'fiv'; did you mean 'five'"),
        ({"data": "five"}, "2048 points, but five has 128 per cloud"),
        ({"data": "five", "settings": ["data.points=64"]}, "128 groups need at least as many points, got 64"),
        (
            {"data": "five", "settings": [*PATCHES, "method.pool=[class]"]},
            r"head has 96 inputs, 2 times .*\(class\)",
        ),
        ({"data": "five", "settings": [*PATCHES, "method.rnk=2"]}, "unknown setting 'rnk'"),
        ({"data": "five", "settings": [*PATCHES, "backbone.heads=5"]}, "dim 48 is not a multiple of heads 5"),
    ):
        with pytest.raises(UserError, match=words):
            import_file(path, name="x", **options)  # type: ignore[arg-type]
    assert imported_models() == ["a"] and not model_folder("x").exists()
    with pytest.raises(UserError, match=r"--data: is for fine-tuned models; .* is Point-MAE, pre-training"):
        import_file(pretrained_file(tmp_path / "base.pth", "dapt_use_mean_max"), data="five")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"cls_head_finetune.8.bias": None},
            r"its head \(layers 0.weight, 1.weight, 4.weight, 5.weight, 8.weight\)",
        ),
        (
            {"blocks.blocks.0.tfts_gamma_1": None},
            "nearest is dapt, but it lacks 1, first 'blocks.blocks.0.tfts_gamma",
        ),
        (
            ones("blocks.blocks.0.lora"),
            "nearest is dapt, but it has 1 tensors more, first 'module.blocks.blo",
        ),
        ({"norm.bias": torch.full((48,), float("nan"))}, "'module.norm.bias' holds NaN or infinite values"),
        ({"encoder.first_conv.1.running_var": None}, "lacks 1 tensors of a dapt model, first 'encoder.tokenizer"),
        ({"norm.bias": torch.ones(7)}, r"'module.norm.bias' is \(7,\), and a point_mae has \(48,\)"),
        (RECON, "is ReCon, fine-tuning, which is not read: in ReCon's own fine-tuning the class token goes through"),
    ],
)
def test_one_error_and_nothing_written(
    changes: dict[str, Tensor | None], words: str, tmp_path: Path, shapes: None
) -> None:
    path = finetuned_file(tmp_path / "a.pth", "dapt_use_mean_max", **changes)
    with pytest.raises(UserError, match=words):
        import_file(path, name="mine", data="five", settings=PATCHES)
    assert not model_folder("mine").parent.exists()


def test_published_models_bring_what_their_tensors_do_not_tell(
    tmp_path: Path, shapes: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "backbone.groups": 16,
        "backbone.group_size": 8,
        "data.points": 128,
        "method.pool": ["class", "prompt_mean"],
    }
    model = KnownModel("dapt_five", OfficialFile("a page", "scan.pth"), "point_mae", "dapt", "five", 0.9, settings)
    monkeypatch.setattr(finetuned, "MODELS", {"dapt_five": model})
    monkeypatch.setattr(known, "MODELS", {"dapt_five": model})
    path = finetuned_file(tmp_path / "scan.pth", "dapt_use_mean_None")
    with pytest.raises(UserError, match=r"--as dapt_five: that is dapt on point_mae, trained on five; .* is full on"):
        import_file(finetuned_file(tmp_path / "full.pth", "pointmae_full"), name="dapt_five")

    def said(*arguments: str) -> str:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr("sys.argv", ["harness", *arguments])
            main()
        assert not ended.value.code
        return capsys.readouterr().out

    text = said("weights", "import", str(path))
    frozen = read_imported(model_folder("dapt_five")).frozen
    for words in (
        "dapt_five: Point-MAE, fine-tuning (by method and file name the authors' file; if it is another, --as ",
        "model    dapt on point_mae, 5 classes of five\n",
        f"base     no weights here have its {frozen} frozen tensors: the whole encoder is in the model's file\n",
        "assumed  backbone.heads=6, data.sampling=fps: no tensor tells; --set KEY=VALUE\n",
        "it says  epoch 300, metrics.acc 75\n",
        "harness evaluate dapt_five",
    ):
        assert words in text
    card = read_imported(model_folder("dapt_five"))
    assert card.adapter.spec["method"]["settings"]["pool"] == ["class", "prompt_mean"] and card.published == 0.9

    found = json.loads(said("evaluate", "dapt_five", "--device", "cpu", "--json"))
    assert found["told"] == {"published": 0.9, "its file says": 0.75} and found["total"] == 4
    text = said("evaluate", "dapt_five", "--device", "cpu")
    assert text.startswith("dapt_five: dapt on point_mae: test split of five\n") and "published        90.00 %" in text
    assert (
        "dapt_five" in said("weights", "list") and json.loads(said("weights", "show", "dapt_five"))["kind"] == "model"
    )
    assert said("weights", "remove", "dapt_five").count("removed") == 1 and imported_models() == []


# Files that changed


def test_names_of_weights_and_models_do_not_collide(tmp_path: Path, shapes: None) -> None:
    options: dict[str, Any] = {"data": "five", "settings": PATCHES}
    first = import_model(finetuned_file(tmp_path / "a.pth", "dapt_use_mean_max"), name="mine", **options)
    with pytest.raises(UserError, match="'mine' is imported already; --force replaces it"):
        import_file(tmp_path / "a.pth", name="mine", **options)
    assert import_model(tmp_path / "a.pth", name="mine", force=True, **options).digest == first.digest
    with pytest.raises(UserError, match="--as mine: a model is called so"):
        import_file(pretrained_file(tmp_path / "base.pth", "dapt_use_mean_max"), name="mine", force=True)
    import_file(tmp_path / "base.pth", name="base")
    for taken in ("base", "act_shapenet"):
        with pytest.raises(UserError, match=f"--as {taken}: weights are called so"):
            import_file(tmp_path / "a.pth", name=taken, force=True, **options)
    with pytest.raises(UserError, match="--as dapt_modelnet40: a model is called so"):
        import_file(tmp_path / "base.pth", name="dapt_modelnet40")


def test_known_models_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their settings are settings, their datasets datasets, and the head that they ask for is one."""
    for name, model in known.MODELS.items():
        sections = {s: {k.partition(".")[2]: v for k, v in model.settings.items() if k.startswith(s)} for s in SECTIONS}
        backbone = registry.configured("backbones", model.backbone, sections["backbone."])
        method = registry.configured("methods", model.method, sections["method."]).on(backbone)
        assert misfits(method, backbone) == [] and name.endswith(model.data)
        dataset = registry.get("datasets", model.data)
        assert sections["data."]["points"] == backbone.default_points <= dataset.points
        assert model.official.url is not None and model.official.url.endswith(f"/{model.official.file}")


def test_what_was_changed_afterwards_is_refused(tmp_path: Path, shapes: None) -> None:
    import_file(finetuned_file(tmp_path / "a.pth", "pointmae_full"), name="mine", data="five", settings=PATCHES)
    folder = model_folder("mine")
    copied = tmp_path / "elsewhere"
    folder.rename(copied)
    assert load_model(copied).name == "mine"
    with pytest.raises(UserError, match="no such folder; --output"):
        load_model("mine", output=tmp_path)
    card, content = json.loads((copied / CARD).read_text()), (copied / TENSORS).read_bytes()
    old = card["adapter"] | {"spec": card["adapter"]["spec"] | {"method": {"name": "full", "version": 7}}}
    worse = bytes([*content[:-1], content[-1] ^ 1])
    vouched = card | {"digest": hashlib.sha256(b"no safetensors").hexdigest()}
    for file, changed, words in (
        (TENSORS, b"x", "damaged or replaced: SHA-256 .*, and adapter_config.json there says"),
        (TENSORS, worse, "damaged or replaced: SHA-256 .*, and adapter_config.json there says"),
        (CARD, json.dumps(card | {"kind": "x"}), r"no card of an imported model \(kind: "),
        (CARD, json.dumps(card | {"adapter": old}), "cannot be built: method 'full' is of version 1 here"),
        (CARD, json.dumps(card | {"format": 1}), r"no card of an imported model \(format: .*; import it again"),
        (CARD, "{", "no card of an imported model"),
    ):
        before = (copied / file).read_bytes()
        (copied / file).write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        with pytest.raises(UserError, match=words):
            load_model(copied)
        (copied / file).write_bytes(before)
    assert load_model(copied).card == read_imported(copied)  # type: ignore[attr-defined]
    (copied / TENSORS).write_bytes(b"no safetensors")
    (copied / CARD).write_text(json.dumps(vouched))
    with pytest.raises(UserError, match=r"elsewhere: cannot be read as safetensors: .*; import it again"):
        load_model(copied)
    (copied / TENSORS).unlink()
    with pytest.raises(UserError, match=f"{TENSORS}: no such file: import it again"):
        load_model(copied)
