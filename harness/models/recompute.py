"""Tensors that a backward pass makes anew instead of keeping them.

What costs memory in a frozen transformer with small trainable parts is not the parts but what autograd keeps for them:
the output of every scale, norm and activation, beside the input that it was made of. `recomputed` notes how a tensor
was made, and within `sparing()` autograd keeps, in its place, what it was made of, which is mostly kept anyway. The
numbers are the same to the bit: the same function runs on the same inputs once more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from harness.models.uncounted import uncounted


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), noted as cheap enough to be done again in the backward pass.

    The function must give the same again: no random numbers, no statistics. Its inputs must not be changed in place
    before the backward pass (RuntimeError, where that can be seen).
    """
    output = function(*inputs)
    if torch.is_grad_enabled() and output.requires_grad:
        output.untyped_storage().recipe = _Recipe(function, inputs, output)  # type: ignore[attr-defined]
    return output


def for_products(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`recomputed`, in the type in which a product takes it: for tensors that go nowhere else.

    Under autocast a layer makes such a copy itself, and one that trains keeps it: a copy that nobody could make again.
    """
    return recomputed(partial(_in_type, product_type(inputs[0]), function), *inputs)


def product_type(x: Tensor) -> torch.dtype:
    """The type in which a product takes x: autocast's where it is on, which leaves 64 bits alone."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on and x.dtype != torch.float64 else x.dtype


def _in_type(dtype: torch.dtype, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    return function(*inputs).to(dtype)


def sparing() -> saved_tensors_hooks:
    """A context in which autograd keeps of `recomputed` tensors what they were made of."""
    return saved_tensors_hooks(_pack, _unpack)


class _Recipe:
    """How a tensor is made again. It lies on the tensor's storage, so that views of the tensor lead to it."""

    def __init__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.function = function
        # A leaf stays itself: where parameters are divided among processes, its data comes and goes.
        self.inputs = [_pack(each if each.is_leaf else each.detach()) for each in inputs]
        self.versions = [each._version if isinstance(each, Tensor) else None for each in self.inputs]
        self.precision = _precision(output.device.type)
        self.waiting: weakref.WeakSet[_Saved] = weakref.WeakSet()
        """Who will still ask for it: once it is made it stays until the last of them has it."""

    def make(self) -> Tensor:
        """The tensor."""
        for each, version in zip(self.inputs, self.versions, strict=True):
            if isinstance(each, Tensor) and each._version != version:
                raise RuntimeError("what a tensor was made of was changed in place before the backward pass")
        with torch.no_grad(), self.precision(), uncounted():
            return self.function(*map(_unpack, self.inputs))


class _Saved:
    """What autograd, or another recipe, keeps in place of a view of a tensor that can be made again."""

    def __init__(self, recipe: _Recipe, view: Tensor) -> None:
        self.recipe, self.made = recipe, None
        self.view = view.size(), view.stride(), view.storage_offset()
        recipe.waiting.add(self)

    made: Tensor | None

    def tensor(self) -> Tensor:
        """The view of the tensor, which is made when the first asks."""
        made = self.made if self.made is not None else self.recipe.make()
        self.made = None
        self.recipe.waiting.discard(self)
        for other in self.recipe.waiting:
            other.made = made
        return made.as_strided(*self.view)


def _precision(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Autocasting as it is now, which a backward pass does not have."""
    if not torch.amp.is_autocast_available(device):  # tensors without values
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return partial(torch.autocast, device, dtype, enabled=enabled)


def _pack(tensor: Tensor) -> Tensor | _Saved:
    recipe = getattr(tensor.untyped_storage(), "recipe", None)
    return tensor if recipe is None else _Saved(recipe, tensor)


def _unpack(saved: Tensor | _Saved) -> Tensor:
    return saved if isinstance(saved, Tensor) else saved.tensor()
