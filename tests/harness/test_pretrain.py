"""Pre-training: it learns, it can be repeated, and what it writes loads as weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.errors import SuiteError, UserError
from harness.models.point_mae import PointMAE
from harness.models.weights import WEIGHTS, find_weights, load_weights, recipe
from harness.pretrain import Recipe, chamfer, pretrain, pretrain_to_file, read_points
from harness.pretraining import load_pretraining
from tests.harness.test_cli import harness

SMALL = PointMAE(preset="tiny", depth=1, groups=8, group_size=8)


def shapes(count: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(count, 160, 3, generator=generator)
    return points / points.norm(dim=-1, keepdim=True) * torch.rand(count, 1, 3, generator=generator)


def test_chamfer_against_a_loop() -> None:
    a, b = torch.rand(2, 5, 3), torch.rand(2, 7, 3)
    total = 0.0
    for first, second in zip(a, b, strict=True):
        total += sum(min(((p - q) ** 2).sum() for q in second) for p in first) / 5 / 2
        total += sum(min(((p - q) ** 2).sum() for q in first) for p in second) / 7 / 2
    assert chamfer(a, b).item() == pytest.approx(float(total), rel=1e-5)
    assert chamfer(a, a[:, [4, 0, 2, 1, 3]]).item() == 0


def test_it_learns_and_repeats() -> None:
    recipe = Recipe(epochs=6, batch_size=8)
    encoder, curve = pretrain(backbone=SMALL, points=shapes(), recipe=recipe)
    again, second = pretrain(backbone=SMALL, points=shapes(), recipe=recipe)
    assert curve[-1] < 0.7 * curve[0]
    assert curve == second
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters(), strict=True))


def test_from_file_to_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.nn.functional.normalize(torch.randn(8, 512, 3), dim=-1)
    save_file({"points": points.half()}, tmp_path / "clouds.safetensors")
    path = pretrain_to_file(
        data=tmp_path / "clouds.safetensors",
        name="mine",
        folder=tmp_path / "weights",
        backbone="point_mae",
        settings={"preset": "tiny"},
        recipe=Recipe(epochs=1, batch_size=4),
        threads=1,
        report=lambda epoch, loss, seconds: None,
    )
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["recipe"]["epochs"] == 1 and len(card["loss"]) == 1 and card["data"]["items"] == 8
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    declared = find_weights("mine")
    assert declared.misfit(PointMAE(preset="base")) and not declared.misfit(PointMAE(preset="tiny"))
    assert load_weights(PointMAE(preset="tiny").build(drop_path=0), "mine") == card["digest"]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 4)), "shape"),
        (np.full((40, 600, 3), np.nan), "NaN"),
        (np.zeros((40, 100, 3)), "100 points per cloud"),
        (np.zeros((4, 600, 3)), "fewer than the batch size"),
    ],
    ids=["shape", "NaN", "too few points", "too few clouds"],
)
def test_bad_point_sets(array: np.ndarray, words: str, tmp_path: Path) -> None:
    np.save(tmp_path / "clouds.npy", array)
    with pytest.raises(UserError, match=words):
        pretrain_to_file(
            data=tmp_path / "clouds.npy", name="x", folder=tmp_path / "out", backbone="point_mae",
            settings={"preset": "tiny"}, recipe=Recipe(epochs=1), threads=1, report=lambda epoch, loss, seconds: None,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_no_point_set(tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match="no point set"):
        read_points(tmp_path / "x.npy")


def test_the_shipped_weights_are_what_their_card_says() -> None:
    card = recipe("point_mae_tiny_parts")
    encoder = PointMAE(preset="tiny").build(drop_path=0)
    assert load_weights(encoder, "point_mae_tiny_parts") == card["digest"]
    assert WEIGHTS["point_mae_tiny_parts"].misfit(PointMAE(**card["backbone"])) is None
    assert len(card["loss"]) == card["recipe"]["epochs"] == 100
    assert card["loss"][-1] < 0.01


@pytest.mark.slow
def test_a_file_says_what_to_pretrain(tmp_path: Path) -> None:
    points = torch.nn.functional.normalize(torch.randn(8, 512, 3), dim=-1).numpy()
    np.save(tmp_path / "clouds.npy", points)
    text = """\
format: 1
name: mine
pretrain:
  data: clouds.npy
  settings: {preset: tiny, depth: 1}
  epochs: 1
  batch_size: 4
  decoder_depth: 1
"""
    (tmp_path / "mine.yaml").write_text(text)
    assert (
        harness("validate", "mine.yaml", "pretrain_shapenet", cwd=tmp_path).stdout.count("valid, a pre-training") == 2
    )
    told = harness("pretrain", "mine.yaml", "--preset", "base", cwd=tmp_path, HARNESS_DATA=str(tmp_path))
    assert told.returncode == 2 and "--preset" in told.stderr
    done = harness("pretrain", "mine.yaml", "--seed", "3", cwd=tmp_path, HARNESS_DATA=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "weights" / "mine.json").read_text())["recipe"]["seed"] == 3
    listed = harness("weights", "list", cwd=tmp_path, HARNESS_DATA=str(tmp_path))
    assert "mine" in listed.stdout
    told = harness("run", "mine.yaml", cwd=tmp_path)
    assert told.returncode == 2 and "harness pretrain mine.yaml" in told.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("  epoch: 3\n", "pretrain.epoch: unknown key; did you mean 'epochs'?"),
        ("  mask: 2\n", "pretrain.mask"),
        ("  backbone: point_m2ae\n", "masked autoencoding is built for Point-MAE's shape"),
        ("  backbone: point_mea\n", "did you mean 'point_mae'?"),
        ("  settings: {depht: 3}\n", "did you mean 'depth'?"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(change: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"format: 1\nname: mine\npretrain:\n  data: clouds.npy\n{change}")
    with pytest.raises(SuiteError, match=re.escape(words)) as raised:
        load_pretraining(str(path))
    assert f"{path}:5" in str(raised.value)
