"""Batch norms with the statistics of all processes; test_processes.py has them in several."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.models import batchnorm
from harness.models.batchnorm import PointwiseNorm, _Normalise, _OutputMoments, make_global
from harness.processes import join, leave


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    join(tmp_path / "rendezvous", index=0, count=1)
    yield
    leave()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_torchs_own(dtype: torch.dtype, group: None) -> None:
    """In half precision too, where a mean of thousands of points far from zero would lose its digits."""
    torch.manual_seed(0)
    x = (torch.randn(64, 5, 100) + 7).to(dtype)
    ours, theirs = nn.BatchNorm1d(5), nn.BatchNorm1d(5)
    make_global(ours)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [norm(value) for norm, value in zip((ours, theirs), inputs, strict=True)]
    for output in outputs:
        assert output.dtype == dtype
        (output.float() * torch.linspace(-1, 1, 100)).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(outputs[0], outputs[1], **close)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **close)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-2, atol=1e-2 * 6400)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few rows are several slices."""
    monkeypatch.setitem(batchnorm.SLICE_BYTES, "cpu", 256)


def test_points_are_normalised_as_by_torch_and_more_exactly(small_slices: None) -> None:
    x = torch.randn(40, 7, 6) * torch.tensor([1e-3, 1, 1, 1, 10, 100]) + torch.tensor([0.0, 5, -5, 100, 0, 7])
    ours, theirs = PointwiseNorm(6), nn.BatchNorm1d(6).double()
    for norm in (ours, theirs):
        nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
        nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(2))
    theirs.load_state_dict(ours.state_dict())
    own, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    slope = torch.linspace(-1, 1, x.numel()).view_as(x)
    (ours(own) * slope).sum().backward()
    (theirs(exact.flatten(0, 1)).view_as(x) * slope).sum().backward()
    assert own.grad is not None and exact.grad is not None
    for a, b in ((ours.weight.grad, theirs.weight.grad), (ours.bias.grad, theirs.bias.grad), (own.grad, exact.grad)):
        assert a is not None and b is not None
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, check_dtype=False)


@pytest.mark.parametrize("learns", [(True, True, True), (True, False, False), (False, True, False)])
def test_the_gradient_is_the_functions(learns: tuple[bool, ...], small_slices: None) -> None:
    shapes = ((30, 3), (3,), (3,))
    inputs = [torch.randn(s, dtype=torch.float64).requires_grad_(r) for s, r in zip(shapes, learns, strict=True)]
    assert torch.autograd.gradcheck(lambda x, w, b: _Normalise.apply(x, w, b, 1e-5, False)[0], inputs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("width", [None, 4])
def test_a_norm_after_a_layer_is_one_layer(width: int | None, training: bool, small_slices: None) -> None:
    """Also where the layer sees, beside every point, what its patch has in common; gradients and statistics too."""
    torch.manual_seed(0)
    points = (3 + torch.randn(9, 7, 5, dtype=torch.float64)).requires_grad_()
    whole = (torch.randn(9, width, dtype=torch.float64) - 2).requires_grad_() if width else None
    layer = nn.Linear(5 + (width or 0), 6).double()
    ours, theirs = PointwiseNorm(6).double().train(training), nn.BatchNorm1d(6).double().train(training)
    seen = points if whole is None else torch.cat([whole[:, None].expand(-1, 7, -1), points], dim=2)
    weight, bias = ours.after(layer.weight, layer.bias, points, whole)
    outputs = [nn.functional.linear(seen, weight, bias), theirs(layer(seen).flatten(0, 1)).view(9, 7, 6)]
    torch.testing.assert_close(outputs[0], outputs[1])
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    inputs = [points, layer.weight, *([whole] if whole is not None else [])]
    slope = torch.linspace(-1, 1, outputs[0].numel(), dtype=torch.float64).view_as(outputs[0])
    found, expected = (torch.autograd.grad((o * slope).sum(), inputs, retain_graph=True) for o in outputs)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_gradient_of_an_outputs_moments(small_slices: None) -> None:
    shapes = ((6, 5), (6,), (5, 4, 3), (5, 2))
    inputs = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *given: _OutputMoments.apply(*given, False), inputs)
