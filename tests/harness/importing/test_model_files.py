"""What the user says of a fine-tuned checkpoint, what is known, and files that are wrong or changed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import load_model, registry
from harness.cli import main
from harness.errors import UserError
from harness.importing import finetuned, known
from harness.importing.cards import CARD, TENSORS, imported_models, read_imported
from harness.importing.files import SECTIONS, import_file
from harness.importing.known import KnownModel
from harness.method import misfits
from harness.models.manifest import model_folder
from harness.models.weights import OfficialFile
from tests.harness.importing.checkpoints import (
    RECON,
    ones,
)
from tests.harness.importing.recorded_models import (
    PATCHES,
    finetuned_file,
    import_model,
    pretrained_file,
)

pytestmark = pytest.mark.usefixtures("in_process", "root")


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
