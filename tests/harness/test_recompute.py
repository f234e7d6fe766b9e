"""What is made anew in the backward pass is what was there, and nothing is kept for it."""

import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.measure.estimate import Ledger
from harness.models.recompute import for_products, recomputed, sparing


def network(x: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    """A norm, a scale and an activation in a row, then views of the outcome and a product."""
    z = recomputed(lambda t: F.layer_norm(t, t.shape[-1:]), x)
    h = recomputed(F.gelu, recomputed(torch.mul, z, scale))
    first, second = h.view(*h.shape[:-1], 2, -1).unbind(-2)
    return (first * second) @ weight


def inputs(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((5, 3, 8), (8,), (4, 6))]


def test_gradients_are_the_same_to_the_bit() -> None:
    given = inputs(torch.float32)
    with sparing():
        spared = network(*given)
    plain = network(*given)
    assert torch.equal(spared, plain)
    found, expected = (torch.autograd.grad(y.square().sum(), given) for y in (spared, plain))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("learns", [(True, True, True), (False, True, True), (True, False, False)])
def test_gradients_are_the_functions(learns: tuple[bool, ...]) -> None:
    def spared(*given: Tensor) -> Tensor:
        with sparing():
            return network(*given)

    given = [value.requires_grad_(wanted) for value, wanted in zip(inputs(), learns, strict=True)]
    assert torch.autograd.gradcheck(spared, given)
    assert torch.autograd.gradgradcheck(spared, given)


@pytest.mark.parametrize("spare", [True, False])
def test_only_what_it_was_made_of_is_kept(spare: bool) -> None:
    x = torch.randn(4, 8, requires_grad=True) * 1
    with sparing() if spare else torch.enable_grad():
        made = recomputed(F.gelu, x)
        square = made * made
    storage = weakref.ref(made.untyped_storage())
    del made
    assert (storage() is None) == spare
    square.sum().backward()


def test_it_is_made_once_for_all_who_ask_and_then_goes() -> None:
    made: list[weakref.ref[Tensor]] = []

    def doubled(x: Tensor) -> Tensor:
        y = x * 2
        made.append(weakref.ref(y))
        return y

    x, weights = torch.randn(4, 8, requires_grad=True) * 1, [torch.randn(8, 1, requires_grad=True) for _ in range(3)]
    with sparing():
        y = recomputed(doubled, x)
        total = torch.stack([(y @ weight).sum() for weight in weights]).sum()
        unused = y @ weights[0]  # never goes back
    del y
    gradients = torch.autograd.grad(total, weights)
    assert len(made) == 2  # forward and backward
    assert all(torch.allclose(g[:, 0], 2 * x.sum(0)) for g in gradients)
    del unused
    assert all(ref() is None for ref in made)


def test_in_low_precision_it_is_made_as_it_was() -> None:
    norm, layer = nn.LayerNorm(8), nn.Linear(8, 4)
    x = torch.randn(3, 8, requires_grad=True)
    gradients = []
    for context in (sparing(), torch.enable_grad()):
        with torch.autocast("cpu", torch.bfloat16), context:
            y = layer(recomputed(torch.mul, recomputed(norm, x), layer(x).mean()))
        gradients.append(torch.autograd.grad(y.sum(), [x, *layer.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("low", [True, False])
def test_of_what_goes_into_products_no_layer_keeps_a_copy_in_low_precision(low: bool) -> None:
    norm, layers = nn.LayerNorm(8), [nn.Linear(8, 4) for _ in range(2)]
    x = torch.randn(3, 8, requires_grad=True) * 1
    outcomes, kept = [], []
    for made in (recomputed, for_products):
        with torch.autocast("cpu", torch.bfloat16, enabled=low), sparing(), Ledger() as ledger:
            z = made(norm, x)
            scores = [layer(z) for layer in layers]
            del z
            kept.append(ledger.alive.total())
        gradients = torch.autograd.grad(torch.cat(scores).sum(), [p for layer in layers for p in layer.parameters()])
        outcomes.append([*scores, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    assert kept[0] - kept[1] == (len(layers) * x.numel() * 2 if low else 0)


def test_a_change_in_between_is_noticed() -> None:
    x = torch.randn(4, requires_grad=True) * 1
    with sparing():
        y = recomputed(torch.sin, x).square()
    x.add_(1)
    with pytest.raises(RuntimeError, match=r"changed in place|modified by an inplace"):
        y.sum().backward()


def test_without_gradients_nothing_is_noted() -> None:
    with torch.no_grad(), sparing():
        made = recomputed(torch.sin, torch.randn(4, requires_grad=True))
    assert not hasattr(made.untyped_storage(), "recipe")
