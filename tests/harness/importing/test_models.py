"""Fine-tuned checkpoints: what is imported computes what the authors' code computed, and its accuracy can be had."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from harness import load_model
from harness.data.imported import clouds_path
from harness.data.sampling import test_points as chosen_points
from harness.errors import UserError
from harness.importing.cards import TENSORS
from harness.importing.files import import_file, remove
from harness.models.manifest import Manifest, model_folder
from harness.rebuilt import StoredQuery
from tests.harness.importing.recorded_models import (
    CASES,
    LEVELS,
    PATCHES,
    finetuned_file,
    import_model,
    pretrained_file,
    pretrained_levels,
    record,
    state,
)

pytestmark = pytest.mark.usefixtures("in_process", "root")


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
