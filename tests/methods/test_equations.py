"""Methods without stored outputs compute their paper's equation, written out here in plain torch.

Each check takes the method from the registry, gives its new parameters random values (what is zero at the start would
hide the equation), and compares features. As in tests/parity, small changes of the method must make it fail.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness import registry
from harness.method import Task, attach
from harness.models.point_mae import PointMAE
from harness.models.transformer import Block
from tests.mutants import Mutant, running, unchanged

TASK = Task(classes=5, train_items=12)
CLOUDS = torch.rand(3, 128, 3, generator=torch.Generator().manual_seed(1)) - 0.5


class Pair:
    """The pre-trained encoder and its adapted copy, whose added parameters hold random values; both in eval mode."""

    def __init__(self, method: str, **settings: object) -> None:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        backbone = PointMAE(preset="tiny", depth=2, groups=8, group_size=8)
        self.plain = backbone.build(drop_path=0.0).eval()
        self.attached = attach(
            registry.get("methods", method)(**settings).on(backbone), copy.deepcopy(self.plain), TASK
        )
        self.adapted = self.attached.model.encoder.eval()
        shared = set(dict(self.plain.named_parameters()))
        self.added = {n: p for n, p in self.adapted.named_parameters() if p.requires_grad and n not in shared}
        for parameter in self.added.values():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2

    def added_to(self, block: int, name: str) -> Tensor:
        """The one added parameter of a block whose name ends so."""
        found = [p for n, p in self.added.items() if n.startswith(f"blocks.{block}.") and n.endswith(f".{name}")]
        assert len(found) == 1, f"{len(found)} added parameters of block {block} are called {name}"
        return found[0]

    def expect(self, block: Callable[[int, Block, Tensor, Tensor], Tensor]) -> None:
        """The adapted features are the plain encoder's with its blocks computed by block(index, part, x, positions)."""
        with torch.no_grad():
            tokens = self.plain.embed(self.plain.patches(CLOUDS))
            x = tokens.features
            for index, part in enumerate(self.plain.plain_blocks):
                x = block(index, part, x, tokens.positions)
            ours = self.adapted(CLOUDS).without_prompts().features
        assert (ours - self.plain.norm(x)).abs().max() < 1e-5


def plain_block(index: int, block: Block, x: Tensor, positions: Tensor) -> Tensor:
    """A block of Point-MAE: positions before every one."""
    x = x + positions
    x = x + block.attn(block.norm1(x))
    return x + block.mlp(block.norm2(x))


def check_linear_probe() -> None:
    pair = Pair("linear_probe")
    assert set(pair.attached.trainable) == {f"head.{name}" for name, _ in pair.attached.model.head.named_parameters()}
    pair.expect(plain_block)
    with torch.no_grad():
        tokens = pair.plain(CLOUDS)
        inputs = torch.cat([tokens.features[:, 0], tokens.features[:, 1:].max(1).values], dim=1)
        scores = pair.attached.model.eval()(CLOUDS)
        assert torch.allclose(scores, pair.attached.model.head(inputs), atol=1e-5)


def check_vpt(*, deep: bool = True) -> None:
    """Section 3.2 of arXiv 2203.12119. Deep: prompts enter every block, their outputs are dropped; shallow: once."""
    pair = Pair("vpt", prompts=3, deep=deep)
    carried = torch.empty(0)

    def block(index: int, part: Block, x: Tensor, positions: Tensor) -> Tensor:
        nonlocal carried
        own = deep or index == 0
        prompts = pair.added_to(index, "prompts").expand(len(x), -1, -1) if own else carried
        there = pair.added_to(index if deep else 0, "positions").expand(len(x), -1, -1)
        whole = plain_block(index, part, torch.cat([x, prompts], 1), torch.cat([positions, there], 1))
        carried = whole[:, x.shape[1] :]
        return whole[:, : x.shape[1]]

    pair.expect(block)


def check_adapter() -> None:
    """h <- h + W_up gelu(W_down h + b) + b, h the output of the feed-forward part (arXiv 2005.00247, figure 3)."""
    pair = Pair("adapter", width=4)

    def block(index: int, part: Block, x: Tensor, positions: Tensor) -> Tensor:
        down, up = (pair.added_to(index, f"{name}.weight") for name in ("down", "up"))
        down_bias, up_bias = (pair.added_to(index, f"{name}.bias") for name in ("down", "up"))
        x = x + positions
        x = x + part.attn(part.norm1(x))
        h = part.mlp(part.norm2(x))
        hidden = h @ down.T + down_bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        return x + h + hidden @ up.T + up_bias

    pair.expect(block)


def check_lora() -> None:
    """Equation 3 of arXiv 2106.09685, (W + alpha / r B A) x, merged into the weights of every target."""
    pair = Pair("lora", rank=4, alpha=6, targets=["attn.qkv", "mlp.fc2"])

    def block(index: int, part: Block, x: Tensor, positions: Tensor) -> Tensor:
        merged = copy.deepcopy(part)
        for target in ("attn.qkv", "mlp.fc2"):
            update = pair.added_to(index, f"{target}.up") @ pair.added_to(index, f"{target}.down")
            merged.get_parameter(f"{target}.weight").data += 6 / 4 * update
        return plain_block(index, merged, x, positions)

    pair.expect(block)


CHECKS: dict[str, Callable[[], None]] = {
    "linear_probe": check_linear_probe,
    "vpt": check_vpt,
    "adapter": check_adapter,
    "lora": check_lora,
}
MUTANTS = [
    Mutant(f"methods.{method}", before, after, why)
    for method, before, after, why in (
        ("linear_probe", "Adapted(encoder)", "Adapted(encoder, unfrozen=[encoder.norm])", "only the head trains"),
        ("vpt", "tokens.without_prompts().with_prompts", "tokens.with_prompts", "prompts are replaced"),
        ("vpt", "self.positions.expand_as(prompts)", "torch.zeros_like(prompts)", "prompts have positions"),
        ("adapter", "F.gelu(", "F.relu(", "GELU"),
        ("adapter", "return h + self.up", "return self.up", "the residual"),
        (
            "adapter",
            "nn.Sequential(block.mlp, adapter)",
            "nn.Sequential(adapter, block.mlp)",
            "after the feed-forward part",
        ),
        ("lora", "self.alpha / self.rank", "self.alpha / self.rank**0.5", "alpha / rank"),
        ("lora", "self.scale * F.linear", "F.linear", "the scale"),
        ("lora", "added += [layer.down, layer.up]", "added += [layer.up]", "both factors train"),
    )
]


@pytest.mark.parametrize("method", CHECKS)
def test_equation(method: str) -> None:
    CHECKS[method]()


def test_shallow_prompts_go_through_all_blocks() -> None:
    check_vpt(deep=False)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_change_is_noticed(mutant: Mutant) -> None:
    with running(mutant), pytest.raises(AssertionError):
        CHECKS[mutant.module.removeprefix("methods.")]()


@pytest.mark.parametrize("method", CHECKS)
def test_without_a_change_nothing_is_noticed(method: str) -> None:
    with running(unchanged(f"methods.{method}")):
        CHECKS[method]()
