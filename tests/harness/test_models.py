"""The encoder's parts: counts, kept tokens, weights files."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from harness.errors import UserError
from harness.models import batchnorm
from harness.models import weights as weights_module
from harness.models.point_mae import PointMAE
from harness.models.tokenizer import Tokenizer
from harness.models.transformer import DropPath
from harness.models.weights import Weights, load_weights


def test_official_size() -> None:
    assert sum(p.numel() for p in PointMAE().build(drop_path=0).parameters()) == 21_825_792


def test_tokens_and_kept_patches() -> None:
    encoder = PointMAE(preset="tiny").build(drop_path=0).eval()
    tokens = encoder(torch.rand(2, 512, 3), keep=(0, 3))
    assert tokens.features.shape == (2, 33, 96)
    assert [kept.shape for kept in tokens.kept] == [(2, 32, 96)] * 2
    assert torch.allclose(tokens.kept[1], tokens.patches, atol=1e-6), "kept tokens go through the final norm"


@pytest.mark.parametrize("training", [True, False])
def test_the_tokenizer_is_the_papers_and_keeps_nothing_when_it_is_frozen(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same gradients, if it learns: beside the function as the official code writes it."""
    monkeypatch.setitem(batchnorm.SLICE_BYTES, "cpu", 5000)
    first = Tokenizer(dim=12, width=8).double().train(training)
    second, third = copy.deepcopy(first), copy.deepcopy(first).requires_grad_(False)
    patches = torch.randn(3, 10, 6, 3, dtype=torch.float64)
    flat = patches.flatten(0, 1)
    local = first.point2(first.norm1(first.point1(flat)).relu())
    mixed = first.point3(torch.cat([local.amax(1, keepdim=True).expand_as(local), local], dim=2))
    official = first.point4(first.norm2(mixed).relu()).amax(1).view(3, 10, 12)
    tokens, frozen = second(patches), third(patches)
    for found in (tokens, frozen):
        torch.testing.assert_close(found, official)
    assert tokens.requires_grad and not frozen.requires_grad
    slope = torch.linspace(-1, 1, tokens.numel()).view_as(tokens)
    (tokens * slope).sum().backward()
    (official * slope).sum().backward()
    for ours, expected in zip(second.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    for tokenizer in (second, third):
        for ours, expected in zip(tokenizer.buffers(), first.buffers(), strict=True):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("learns", [True, False])
def test_a_tokenizer_in_low_precision(learns: bool) -> None:
    """Close to that of 32 bits, with statistics far from zero and gradients for everything that learns."""
    torch.manual_seed(0)
    exact = Tokenizer(dim=12, width=16).requires_grad_(learns)
    low, patches = copy.deepcopy(exact), torch.randn(4, 50, 8, 3) + 1
    expected = exact(patches)
    with torch.autocast("cpu", torch.bfloat16):
        found = low(patches)
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
    for ours, theirs in zip(low.buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=1e-3)
    if learns:
        for tokens in (found.float(), expected):
            (tokens * torch.linspace(-1, 1, tokens.numel()).view_as(tokens)).sum().backward()
        for ours, theirs in ((low.point4.weight, exact.point4.weight), (low.norm2.weight, exact.norm2.weight)):
            assert ours.grad is not None and theirs.grad is not None
            assert (ours.grad - theirs.grad).norm() < 0.1 * theirs.grad.norm()  # another point may be the maximum


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.25).train()(torch.ones(4000, 3))
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert (dropped == dropped[:, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)


def test_presets_can_be_changed_field_by_field() -> None:
    assert PointMAE(preset="tiny", dim=48).depth == 4
    assert PointMAE().default_points == 2048
    assert PointMAE(groups=64).default_points == 1024


def declare(monkeypatch: pytest.MonkeyPatch, folder: Path, tensors: dict[str, torch.Tensor] | bytes) -> None:
    monkeypatch.setenv("HARNESS_DATA", str(folder))
    monkeypatch.setitem(weights_module.WEIGHTS, "mine", Weights("mine", 1, "point_mae"))
    path = folder / "weights" / "mine.safetensors"
    path.parent.mkdir(parents=True)
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    else:
        save_file(tensors, path)


def state() -> dict[str, torch.Tensor]:
    encoder = PointMAE(preset="tiny").build(drop_path=0)
    return {key: value.clone() for key, value in encoder.state_dict().items() if not key.startswith("class_")}


def test_weights_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    saved = state()
    declare(monkeypatch, tmp_path, saved)
    encoder = PointMAE(preset="tiny").build(drop_path=0)
    assert len(load_weights(encoder, "mine")) == 64
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in saved.items())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s | {"norm.weight": torch.full((96,), float("nan"))}, "NaN"),
        (lambda s: s | {"norm.weight": torch.ones(7)}, "another shape"),
        (lambda s: {key: value for key, value in s.items() if key != "norm.weight"}, "missing"),
        (lambda s: s | {"extra": torch.ones(1)}, "unknown"),
        (lambda s: b"not safetensors at all", "cannot be read"),
    ],
    ids=["NaN", "shape", "missing", "unknown", "garbage"],
)
def test_damaged_weights_are_refused(damage, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    declare(monkeypatch, tmp_path, damage(state()))
    with pytest.raises(UserError, match=words):
        load_weights(PointMAE(preset="tiny").build(drop_path=0), "mine")
