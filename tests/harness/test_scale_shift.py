"""A scale and shift is torch's, with a backward pass of its own."""

import pytest
import torch

from harness.models import batchnorm
from harness.models.recompute import sparing
from harness.models.scale_shift import scale_shift


@pytest.mark.parametrize("learns", [(True, True, True), (False, True, True), (True, False, False)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_as_torchs_own(learns: tuple[bool, ...], contiguous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batchnorm.SLICE_BYTES, "cpu", 100)  # a few rows are several slices
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64) for shape in ((4, 5, 6), 6, 6)]
    inputs[0] = inputs[0] if contiguous else inputs[0].transpose(0, 1)
    x, gamma, beta = (value.requires_grad_(wanted) for value, wanted in zip(inputs, learns, strict=True))
    wanted = [value for value in (x, gamma, beta) if value.requires_grad]
    with sparing():
        ours, theirs = scale_shift(x, gamma, beta), torch.addcmul(beta, x, gamma)
    assert torch.equal(ours, theirs)
    slope = torch.randn_like(ours)
    found, expected = (torch.autograd.grad((y * y * slope).sum(), wanted) for y in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_in_low_precision() -> None:
    x, gamma, beta = torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True), *torch.randn(2, 8)
    gamma.requires_grad_()
    ours, theirs = scale_shift(x, gamma, beta), torch.addcmul(beta, x, gamma)
    assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    found, expected = (torch.autograd.grad(y.float().square().sum(), (x, gamma)) for y in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
