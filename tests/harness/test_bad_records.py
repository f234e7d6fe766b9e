"""`harness verify` refuses what is no record: one message, exit code 2."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.errors import UserError
from harness.verify import verify
from tests.harness.records import DAPT, PEFT, change_manifest, change_tensors, command, copied


def garbage(file: Path) -> None:
    file.with_suffix(".safetensors").write_bytes(b"not safetensors at all")


def truncated(file: Path) -> None:
    path = file.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:-1000])


def huge_header(file: Path) -> None:
    file.with_suffix(".safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")


def hostile_header(file: Path) -> None:
    header = json.dumps({"in.points": {"dtype": "F32", "shape": [2**40, 3], "data_offsets": [0, 8]}}).encode()
    file.with_suffix(".safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))


def without_state_file(file: Path) -> None:
    (file.parent / "dapt_shared_state.safetensors").unlink()


def twice_with_other_values(file: Path) -> None:
    change_tensors(file, lambda t: t.update({"state.cls_pos": torch.ones(1, 1, 48).half()}))


def text(content: str) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        file.write_text(content)

    return write


def manifest(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda file: change_manifest(file, change)


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    return lambda file: change_tensors(file, change)


def model(part: str, **settings: Any) -> Callable[[Path], None]:
    return manifest(lambda m: m["model"][part].update(settings))


def put(**found: Tensor) -> Callable[[Path], None]:
    return tensors(lambda t: t.update({key.replace("__", "."): value for key, value in found.items()}))


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no JSON": (text("{'model'"), "JSON"),
    "no object": (text("[1]"), "Input should be an object"),
    "deep JSON": (text("[" * 100_000), "JSON"),
    "empty": (text(""), "JSON"),
    "no text": (lambda file: file.write_bytes(b"\xff\xfe\x00"), "JSON"),
    "huge": (lambda file: file.write_bytes(bytes(17 * 2**20)), "larger than 16 MiB"),
    "no model": (manifest(lambda m: m.pop("model")), "model: Field required"),
    "other format": (manifest(lambda m: m.update(format=2)), "format: Input should be 1"),
    "loss is no number": (
        manifest(lambda m: m["adamw5_losses"]["losses_before_each_step"].__setitem__(2, float("nan"))),
        "adamw5_losses.losses_before_each_step.2",
    ),
    "four losses": (manifest(lambda m: m["adamw5_losses"]["losses_before_each_step"].pop()), "at least 5 items"),
    "unknown encoder": (model("encoder", name="point_mea"), "did you mean 'point_mae'?"),
    "unknown method": (model("method", name="dabt"), "did you mean 'dapt'?"),
    "unknown setting": (model("method", rnk=3), "unknown setting 'rnk'; did you mean 'rank'?"),
    "unknown encoder setting": (model("encoder", dept=3), "unknown setting 'dept'; did you mean 'depth'?"),
    "unknown head setting": (
        model("head", label_smothing=0.1),
        "unknown key 'label_smothing'; did you mean 'label_smoothing'?",
    ),
    "unknown input": (model("head", inputs=["clas"]), "model.head.inputs.0"),
    "unknown setting inside": (model("encoder", transformer_config={"dept": 3}), "did you mean 'depth'?"),
    "two spellings": (model("encoder", trans_dim=49), "'dim' and 'trans_dim' are the same setting, and differ: 48, 49"),
    "two places": (model("encoder", cls_dim=6), "'classes' and 'cls_dim' are the same setting, and differ"),
    "two pools": (model("method", pool=["class"]), "model.method.pool and model.head.inputs differ"),
    "another head kind": (model("head", type="mlp9"), "model.head.kind: Input should be"),
    "no bank": (put(out__logits_eval_no_cache=torch.ones(4, 5)), "and there is no 'in.bank'"),
    "wrong setting": (model("method", rank="many"), "rank: Input should be a valid integer"),
    "impossible sizes": (model("encoder", heads=5), "dim 48 is not a multiple of heads 5"),
    "too many groups": (model("encoder", groups=500), "500 groups need at least as many points"),
    "huge size": (model("encoder", depth=10**12), "'depth' of point_mae is larger than 8192"),
    "large size": (model("encoder", dim=8190), "have another shape"),
    "undefined there": (model("encoder", name="point_m2ae"), "unknown setting"),
    "inputs that are not there": (model("head", inputs=["mean"]), "cls_head_finetune.0.weight is [256, 96]"),
    "another head": (model("head", layers=2), "tensors of this model's state are missing"),
    "a folder in a name": (manifest(lambda m: m["state_files"].append("../x.safetensors")), "plain name of a file"),
    "an absolute name": (manifest(lambda m: m["state_files"].append("/etc/passwd")), "plain name of a file"),
    "no name": (manifest(lambda m: m["state_files"].append("a\0b")), "plain name of a file"),
    "a long name": (manifest(lambda m: m["state_files"].append("x" * 5000)), "is not beside it"),
    "no state file": (without_state_file, "dapt_shared_state.safetensors, which it names, is not beside it"),
    "garbage": (garbage, "cannot be read as safetensors"),
    "truncated": (truncated, "cannot be read as safetensors"),
    "huge header": (huge_header, "cannot be read as safetensors"),
    "hostile header": (hostile_header, "cannot be read as safetensors"),
    "twice": (twice_with_other_values, "'state.cls_pos' is in several of its files"),
    "missing state": (
        tensors(lambda t: t.pop("state.cls_head_finetune.5.weight")),
        "first: cls_head_finetune.5.weight",
    ),
    "foreign state": (put(state__mask_token=torch.ones(3)), "no place in this model, first: state.mask_token"),
    "foreign buffer": (put(bn_after_train__x=torch.ones(3)), "first: bn_after_train.x"),
    "gradient's shape": (put(grad__cls_pos=torch.ones(7)), "grad.cls_pos is [7]"),
    "NaN": (put(out__loss=torch.tensor([float("nan")])), "'out.loss' holds NaN or infinite values"),
    "infinite": (put(state__cls_head_finetune__x=torch.tensor([float("inf")])), "NaN or infinite"),
    "bytes": (put(out__loss=torch.ones(1, dtype=torch.uint8)), "of type torch.uint8"),
    "whole points": (put(in__points=torch.ones(4, 128, 3, dtype=torch.int64)), "'in.points' is of type torch.int64"),
    "float labels": (put(in__labels=torch.ones(4)), "'in.labels' is of type torch.float32"),
    "labels": (put(in__labels=torch.tensor([0, 1, 2, 5])), "'in.labels' must be 0 to 4"),
    "flat points": (put(in__points=torch.ones(4, 128)), "(B, N, 3)"),
    "one cloud": (put(in__points=torch.rand(1, 128, 3)), "two clouds or more"),
    "many points": (put(in__points=torch.rand(4, 100_000, 3)), "up to 1048576 numbers"),
    "logits' shape": (put(out__logits_eval=torch.ones(4, 6)), "'out.logits_eval' has shape [4, 6], must be [4, 5]"),
    "no outputs": (tensors(lambda t: t.pop("out.logits_train")), "none of its files holds 'out.logits_train'"),
    "no statistics": (
        tensors(lambda t: [t.pop(key) for key in list(t) if key.startswith("bn_after")]),
        "holds no 'bn_after_train.*'",
    ),
    "a bank without use": (put(in__bank=torch.ones(48, 9)), "the method keeps no memory bank"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_records_are_refused_with_one_message(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = BAD[case]
    file = copied(DAPT, tmp_path)
    spoil(file)
    assert command(monkeypatch, file) == 2
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err
    assert words in told.err and all(line.startswith(f"error: {file}: ") for line in told.err.splitlines())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (tensors(lambda t: t.pop("in.cp_feat")), "one 'in.cp_feat'"),
        (tensors(lambda t: t.pop("in.bank")), "'in.bank'"),
        (put(in__cp_feat=torch.ones(4, 47)), "'in.cp_feat' is [4, 47]"),
        (put(in__bank=torch.ones(47, 40)), "'in.bank' is [47, 40]"),
        (put(in__bank=torch.ones(48, 3)), "cannot be run on its inputs"),
    ],
)
def test_a_bad_memory_bank_is_refused(spoil: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    file = copied(PEFT, tmp_path)
    spoil(file)
    with pytest.raises(UserError) as refused:
        verify(file)
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["", "record.safetensors", "record"])
def test_what_is_no_manifest(name: str, tmp_path: Path) -> None:
    copied(DAPT, tmp_path)
    with pytest.raises(UserError, match=r"name the \.json file"):
        verify(tmp_path / name)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UserError, match="no such file"):
        verify(tmp_path / "folder.json")
