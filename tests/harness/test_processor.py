"""oneDNN's products in torch's place: the same numbers, for whatever a model multiplies."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from harness import processor

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


class Given:
    """oneDNN's own layer, with what it was asked to multiply."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.weights: list[Tensor] = []
        self._own = torch.ops.mkldnn._linear_pointwise.default

    def default(self, x: Tensor, weight: Tensor, *rest: object) -> Tensor:
        """The layer."""
        self.shapes.append((*x.shape, len(weight)))
        self.weights.append(weight)
        return self._own(x, weight, *rest)  # type: ignore[no-any-return]


@pytest.fixture
def given() -> Iterator[Given]:
    """What oneDNN got, on any processor; the products are torch's own again after the test."""
    before, given = bool(processor._replaced), Given()
    processor._replaced.clear()
    with patch.object(torch.ops.mkldnn, "_linear_pointwise", given):
        library = processor.faster_products()
    yield given
    library._destroy()  # type: ignore[no-untyped-call]
    if before:
        processor.prepare(torch.get_num_threads())


@needs_onednn
def test_layers_and_their_gradients_are_those_of_64_bits(given: Given) -> None:
    x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((4, 150, 256), (384, 256), (384,)))
    F.linear(x, weight, bias).square().mean().backward()
    assert given.shapes == [(600, 256, 384), (600, 384, 256)]  # the layer, and the gradient of what it sees
    exact = [each.detach().double().requires_grad_() for each in (x, weight, bias)]
    F.linear(*exact).square().mean().backward()
    for mine, true in zip((x, weight, bias), exact, strict=True):
        assert mine.grad is not None and true.grad is not None
        torch.testing.assert_close(mine.grad.double(), true.grad, rtol=1e-5, atol=1e-7)


@needs_onednn
@pytest.mark.parametrize(
    ("bias", "beta", "alpha", "by_onednn"),
    [
        ((96,), 1, 1, True),
        ((96,), 2, 1, False),
        ((96,), 0, 1, False),
        ((96,), 1, 0.5, False),
        ((1,), 1, 1, False),
        ((300, 1), 1, 1, False),
        ((300, 96), 1, 1, False),
    ],
)
def test_sums_with_a_product(given: Given, bias: tuple[int, ...], beta: float, alpha: float, by_onednn: bool) -> None:
    x, weight, added = torch.randn(300, 192), torch.randn(192, 96), torch.randn(bias)
    found = torch.addmm(added, x, weight, beta=beta, alpha=alpha)
    wanted = beta * added.double() + alpha * (x.double() @ weight.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)
    assert given.shapes == [(300, 192, 96)] * by_onednn


@needs_onednn
@pytest.mark.parametrize(
    ("rows", "inner", "columns", "type_"),
    [
        (255, 192, 96, torch.float32),
        (300, 127, 96, torch.float32),
        (300, 2049, 96, torch.float32),
        (300, 192, 63, torch.float32),
        (300, 192, 96, torch.float64),
        (300, 192, 96, torch.bfloat16),
        (0, 192, 96, torch.float32),
        (300, 0, 96, torch.float32),
    ],
)
def test_others_stay_with_torch(given: Given, rows: int, inner: int, columns: int, type_: torch.dtype) -> None:
    found = torch.mm(torch.ones(rows, inner, dtype=type_), torch.ones(inner, columns, dtype=type_))
    assert found.dtype == type_ and torch.equal(found.double(), torch.full((rows, columns), float(inner)).double())
    assert given.shapes == []


@needs_onednn
def test_parts_of_a_matrix(given: Given) -> None:
    """Columns of a weight are copied: oneDNN takes seconds for what has gaps. What is multiplied stays with torch."""
    x, weight = torch.randn(512, 128), torch.randn(256, 384)
    found = F.linear(x, weight[:, 128:256])
    torch.testing.assert_close(found.double(), x.double() @ weight[:, 128:256].double().T, rtol=1e-5, atol=1e-4)
    assert [each.is_contiguous() for each in given.weights] == [True]
    torch.mm(torch.randn(128, 512).T, torch.randn(128, 128))
    assert len(given.shapes) == 1


@needs_onednn
def test_wrong_shapes_are_refused_as_ever(given: Given) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.mm(torch.randn(300, 192), torch.randn(193, 96))


@needs_onednn
def test_torch_gets_its_kernels_back() -> None:
    x, weight = torch.randn(300, 192), torch.randn(192, 96)
    before = torch.mm(x, weight)
    library = processor.faster_products()
    library._destroy()  # type: ignore[no-untyped-call]
    assert torch.equal(torch.mm(x, weight), before)


def test_a_trial_has_them_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/conftest.py has prepared this process as trials are."""
    assert bool(processor._replaced) == processor.products_pay()
    with monkeypatch.context() as changed:
        changed.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
        assert not processor.products_pay()
    monkeypatch.delattr(torch.library, "get_kernel")  # a torch of before it had one
    assert not processor.products_pay()
