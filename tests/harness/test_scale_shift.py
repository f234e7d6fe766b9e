"""A scale and shift is torch's, with a backward pass of its own."""

import pytest
import torch
from torch.nn import functional as F

from harness.models import batchnorm
from harness.models.recompute import sparing
from harness.models.scale_shift import ScaleShift, ShiftedGELU, scale_shift


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


@pytest.mark.parametrize("learns", [True, False])
def test_with_a_gelu_behind_it(learns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batchnorm.SLICE_BYTES, "cpu", 100)
    torch.manual_seed(0)
    module = ShiftedGELU(6).double()
    x = torch.randn(4, 5, 6, dtype=torch.float64).requires_grad_(learns)
    wanted = [*module.parameters(), *([x] if learns else [])]
    with sparing():
        ours = module(x)
    theirs = F.gelu(x * module.gamma + module.beta)
    torch.testing.assert_close(ours, theirs)
    slope = torch.randn_like(ours)
    found, expected = (torch.autograd.grad((y * y * slope).sum(), wanted) for y in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("gelu", [True, False])
def test_in_low_precision(gelu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked out in 32 bits and rounded once; sums over rows are not of 16 bits."""
    monkeypatch.setitem(batchnorm.SLICE_BYTES, "cpu", 2**12)
    torch.manual_seed(0)
    module = ShiftedGELU(8) if gelu else ScaleShift(8)
    x = torch.randn(4000, 8).bfloat16().requires_grad_()
    ours = module(x)
    exact = x.double() * module.gamma.double() + module.beta.double()
    exact = F.gelu(exact) if gelu else exact
    assert ours.dtype == x.dtype
    assert ((ours - exact).abs() <= 2**-8 * exact.abs() + 1e-6).all()  # half of what the last bit is worth, at most
    slope = torch.randn(4000, 8).bfloat16()
    of_x, of_gamma, of_beta = torch.autograd.grad(ours, (x, module.gamma, module.beta), slope)
    expected = torch.autograd.grad(exact, (x, module.gamma, module.beta), slope.double())
    assert of_x.dtype == x.dtype and of_gamma.dtype == of_beta.dtype == torch.float32
    torch.testing.assert_close(of_x, expected[0], rtol=1e-2, atol=1e-2, check_dtype=False)
    torch.testing.assert_close((of_gamma, of_beta), expected[1:], rtol=1e-4, atol=1e-3, check_dtype=False)
