"""What cannot be used says why: errors, one per thing that can be wrong."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness import load_trial
from harness.errors import UserError
from harness.models.weights import WEIGHTS
from harness.result import Result
from harness.trial import identity_of
from harness.trial_folder import ADAPTER, ADAPTER_CARD, ADAPTER_HEAD
from tests.harness.trained.finished import WEIGHTS_NAME


def edit_result(path: Path, **changes: object) -> None:
    raw = json.loads((path / "result.json").read_text()) | changes
    (path / "result.json").write_text(Result.model_validate(raw | {"id": identity_of(raw["spec"])}).model_dump_json())


def edit_card(path: Path, **changes: object) -> None:
    raw = json.loads((path / ADAPTER_CARD).read_text())
    (path / ADAPTER_CARD).write_text(json.dumps(raw | {"harness": raw["harness"] | changes}))


def edit_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Other tensors, and a result that vouches for them."""
    state = load_file(path / ADAPTER_HEAD)
    change(state)
    save_file(state, path / ADAPTER_HEAD)
    digests = json.loads((path / "result.json").read_text())["digests"]
    edit_result(path, digests=digests | {"head": hashlib.sha256((path / ADAPTER_HEAD).read_bytes()).hexdigest()})


def spec_of(path: Path) -> dict[str, object]:
    spec: dict[str, object] = json.loads((path / "result.json").read_text())["spec"]
    return spec


def digest_of_weights(path: Path) -> str:
    digest: str = json.loads((path / "result.json").read_text())["digests"]["weights"]
    return digest


BASELINE = {"format": 1, "dataset": {"name": "x", "version": 1}, "data": {"points": 9}, "baseline": "nearest_neighbour"}
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no result": (lambda p: (p / "result.json").unlink(), "no trial has finished here"),
    "cut result": (lambda p: (p / "result.json").write_text("{"), "result.json: damaged; get it again"),
    "changed specification": (
        lambda p: (p / "result.json").write_text((p / "result.json").read_text().replace('"rank":32', '"rank":8')
                                                 .replace('"rank": 32', '"rank": 8')),
        "its specification is not that of trial",
    ),
    "failed": (lambda p: edit_result(p, status="oom", error="out of memory: x\ny"), "ended as oom: out of memory: x"),
    "lost": (lambda p: edit_result(p, status="lost", error=None), "ended as lost: no reason is known"),
    "baseline": (lambda p: edit_result(p, spec=BASELINE), "baseline 'nearest_neighbour', which trains nothing"),
    "no adapter": (lambda p: (p / ADAPTER).unlink(), "the suite says `keep: none`, or it was removed"),
    "damaged adapter": (lambda p: (p / ADAPTER).write_bytes(b"x"), "damaged or replaced: SHA-256 2d711642b726"),
    "damaged head": (lambda p: (p / ADAPTER_HEAD).write_bytes(b"x"), "head.safetensors: damaged or replaced"),
    "no adapter by digest": (
        lambda p: edit_result(p, digests={"weights": digest_of_weights(p)}), "result.json says None"
    ),
    "no card": (lambda p: (p / ADAPTER_CARD).unlink(), "adapter_config.json: cannot be read (No such file"),
    "cut card": (lambda p: (p / ADAPTER_CARD).write_text("{"), "damaged, or not of this version of the harness"),
    "card without normalised": (lambda p: edit_card(p, normalised=None), "(normalised: "),
    "another card": (lambda p: edit_card(p, trial="0" * 16), "adapter_config.json: is not of trial"),
    "fewer classes": (lambda p: edit_card(p, classes=["a", "b"]), "'head.8.bias' is (12,) torch.float32"),
    "a tensor less": (lambda p: edit_tensors(p, lambda s: s.pop("head.0.weight")), "'head.0.weight' is trained"),
    "a tensor more": (lambda p: edit_tensors(p, lambda s: s.update(x=torch.ones(1))), "'x' is no part of the model"),
    "a tensor of 64 bits": (
        lambda p: edit_tensors(p, lambda s: s.update({"head.0.bias": s["head.0.bias"].double()})), "torch.float64",
    ),
    "other backbone version": (
        lambda p: [edit_result(p, spec=(spec := spec_of(p) | {"backbone": spec_of(p)["backbone"] | {"version": 7}})),  # type: ignore[operator]
                   edit_card(p, spec=spec, trial=identity_of(spec))],
        "cannot be built: backbone 'point_mae' is of version 1 here, and version 7 is needed",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_what_cannot_be_used_says_why(what: str, copied: Path) -> None:
    damage, words = DAMAGE[what]
    load_trial(copied)
    damage(copied)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        load_trial(copied)
    assert str(copied) in str(caught.value)


def test_base_weights_that_are_missing_or_others(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    shipped = WEIGHTS[WEIGHTS_NAME]
    monkeypatch.setitem(WEIGHTS, WEIGHTS_NAME, replace(shipped, shipped=False))
    with pytest.raises(UserError, match=f"cannot be built: weights '{WEIGHTS_NAME}' are not at {tmp_path}"):
        load_trial(copied)
    state = load_file(shipped.path())
    state["norm.bias"] += 1
    (tmp_path / "weights").mkdir()
    save_file(state, WEIGHTS[WEIGHTS_NAME].path())
    with pytest.raises(UserError, match=f"was trained on other weights '{WEIGHTS_NAME}': SHA-256"):
        load_trial(copied)
