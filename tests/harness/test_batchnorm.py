"""Batch norms with the statistics of all processes; test_processes.py has them in several."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.models import batchnorm
from harness.models.batchnorm import PointwiseNorm, _Normalise, make_global
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
    scale, shift = PointwiseNorm(6).coefficients(x)
    torch.testing.assert_close(x * scale + shift, PointwiseNorm(6)(x))


@pytest.mark.parametrize("learns", [(True, True, True), (True, False, False), (False, True, False)])
def test_the_gradient_is_the_functions(learns: tuple[bool, ...], small_slices: None) -> None:
    shapes = ((30, 3), (3,), (3,))
    inputs = [torch.randn(s, dtype=torch.float64).requires_grad_(r) for s, r in zip(shapes, learns, strict=True)]
    assert torch.autograd.gradcheck(lambda x, w, b: _Normalise.apply(x, w, b, 1e-5, False)[0], inputs)
