"""Fine-tuned checkpoints of every official layout, by the names that their repositories use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import load_model, registry
from harness.errors import UserError
from harness.importing.files import import_file
from harness.method import Task, attach
from harness.models.head import HeadKind, Pool
from methods.idpt import IDPT
from methods.vpt import VPT
from tests.harness.importing.checkpoints import LEVELS as LEVELS_SMALL
from tests.harness.importing.checkpoints import (
    PLAIN,
    RECON,
    official,
    official_head,
    official_idpt,
    official_vpt,
    randomised,
    write,
)
from tests.harness.importing.recorded_models import (
    PATCHES,
    finetuned_file,
    given,
    import_model,
    pretrained_file,
    record,
)

pytestmark = pytest.mark.usefixtures("in_process", "root")


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
    under = {f"base_model.{key}": value for key, value in state_of(path).items()}
    wrapped = import_model(write(tmp_path / "b.pth", under), name="wrapped", data="five", settings=PATCHES)
    assert (wrapped.adapter.spec["backbone"]["name"], wrapped.source.guess[-17:]) == ("recon", "taken for ReCon's")
    named = import_model(path, name="named", data="five", settings=PATCHES, backbone=kind)
    assert (named.adapter.spec["backbone"]["name"], named.source.guess, named.base) == (kind, "", None)
    base = pretrained_file(tmp_path / "base.pth", "dapt_use_mean_max", prefix=prefix, **beside)
    assert import_file(base).backbone == kind  # type: ignore[union-attr]
    small = import_model(path, name="small", data="five", settings=PATCHES)
    assert (small.adapter.spec["backbone"]["name"], small.source.guess, small.base) == (kind, "", "base")
    for name in ("whole", "wrapped", "named", "small"):
        with torch.no_grad():
            assert torch.allclose(load_model(name).model(case.inputs["points"]), case.outputs["logits_eval"], atol=1e-5)
