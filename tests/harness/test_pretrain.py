"""Pre-training: it learns, it can be repeated, and what it writes loads as weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.errors import UserError
from harness.models import weights as weights_module
from harness.models.point_mae import PointMAE
from harness.models.weights import WEIGHTS, Weights, load_weights, recipe
from harness.pretrain import Recipe, chamfer, pretrain, pretrain_to_file, read_points

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
        preset="tiny",
        recipe=Recipe(epochs=1, batch_size=4),
        threads=1,
        report=lambda epoch, loss, seconds: None,
    )
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["recipe"]["epochs"] == 1 and len(card["loss"]) == 1 and card["data"]["items"] == 8
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path))
    monkeypatch.setitem(weights_module.WEIGHTS, "mine", Weights("mine", 1, "point_mae"))
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
            data=tmp_path / "clouds.npy", name="x", folder=tmp_path / "out", backbone="point_mae", preset="tiny",
            recipe=Recipe(epochs=1), threads=1, report=lambda epoch, loss, seconds: None,
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
