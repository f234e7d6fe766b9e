"""Methods without stored outputs compute their paper's equation, written out here in plain torch.

Each check takes the method from the registry, gives its new parameters random values (what is zero at the start would
hide the equation), and compares features. As in tests/parity, small changes of the method must make it fail.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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

    def expect(
        self,
        block: Callable[[int, Block, Tensor, Tensor], Tensor],
        *,
        patches: Callable[[Tensor], Tensor] = lambda x: x,
        norm: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        """The adapted features are the plain encoder's with its blocks computed by block(index, part, x, positions).

        `patches` and `norm` say what is done to the tokenizer's and the final norm's outputs.
        """
        with torch.no_grad():
            tokens = self.plain.embed(self.plain.patches(CLOUDS))
            x = torch.cat([tokens.features[:, :1], patches(tokens.patches)], dim=1)
            for index, part in enumerate(self.plain.plain_blocks):
                x = block(index, part, x, tokens.positions)
            ours = self.adapted(CLOUDS).without_prompts().features
        assert (ours - norm(self.plain.norm(x))).abs().max() < 1e-5


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


def attention(qkv: Tensor, heads: int, *, before: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """What attention mixes, before its last layer; `before` are keys and values (P, C) that come before the tokens'."""
    queries, keys, values = qkv.chunk(3, dim=-1)  # (B, T, C)
    if before is not None:
        keys, values = (
            torch.cat([more.expand(len(qkv), -1, -1), own], 1) for more, own in zip(before, (keys, values), strict=True)
        )
    mixed = []
    for query, key, value in zip(*(part.chunk(heads, dim=-1) for part in (queries, keys, values)), strict=True):
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        mixed.append(scores.softmax(-1) @ value)
    return torch.cat(mixed, dim=-1)


def check_bitfit() -> None:
    """Section 3 of arXiv 2106.10199: all biases train, nothing is added. Linear layers and norms have some."""
    pair = Pair("bitfit")
    pair.expect(plain_block)
    declared = {name for name in pair.attached.trainable if not name.startswith("head.")}
    biases = {f"encoder.{name}" for name, _ in pair.plain.named_parameters() if name.endswith("bias")}
    assert declared == biases | {"encoder.class_token", "encoder.class_position"}
    assert len(biases) == 6 + 2 + 2 * 5 + 1  # tokenizer, positions, blocks (none in qkv), norm


def check_ssf() -> None:
    """Equation 2 of arXiv 2210.08823, y = gamma * x + beta, behind every operation."""
    pair = Pair("ssf")

    def shifted(name: str, x: Tensor, place: str = "1") -> Tensor:
        assert f"{name}.{place}.gamma" in pair.added, f"nothing behind {name}"
        return x * pair.added[f"{name}.{place}.gamma"] + pair.added[f"{name}.{place}.beta"]

    def block(index: int, part: Block, x: Tensor, positions: Tensor) -> Tensor:
        name = f"blocks.{index}"
        x = x + positions
        z = shifted(f"{name}.norm1", part.norm1(x))
        mixed = attention(shifted(f"{name}.attn.qkv", part.attn.qkv(z)), part.attn.heads)
        x = x + shifted(f"{name}.attn.proj", part.attn.proj(mixed))
        z = shifted(f"{name}.norm2", part.norm2(x))
        hidden = F.gelu(shifted(f"{name}.mlp", part.mlp.fc1(z), "activation"))
        return x + shifted(f"{name}.mlp.fc2", part.mlp.fc2(hidden))

    pair.expect(block, patches=lambda x: shifted("tokenizer", x), norm=lambda x: shifted("norm", x))
    begin = registry.get("methods", "ssf")().adapt(PointMAE().build(drop_path=0.0), TASK).encoder
    for name, mean in (("gamma", 1.0), ("beta", 0.0)):
        drawn = torch.cat([p.detach() for n, p in begin.named_parameters() if n.endswith(name)])
        assert abs(drawn.mean() - mean) < 1e-3 and abs(drawn.std() - 0.02) < 1e-3


def check_adaptformer(scale: float | str = "learned") -> None:
    """Section 3 of arXiv 2205.13535: x' + MLP(LN(x')) + s * ReLU(LN(x') W_down) W_up, x' the tokens after attention."""
    pair = Pair("adaptformer", rank=4, scale=scale)

    def block(index: int, part: Block, x: Tensor, positions: Tensor) -> Tensor:
        down, up = (pair.added_to(index, f"{name}.weight") for name in ("down", "up"))
        down_bias, up_bias = (pair.added_to(index, f"{name}.bias") for name in ("down", "up"))
        s = pair.added_to(index, "scale") if scale == "learned" else scale
        x = x + positions
        x = x + part.attn(part.norm1(x))
        z = part.norm2(x)
        return x + part.mlp(z) + s * ((z @ down.T + down_bias).clamp(min=0) @ up.T + up_bias)

    pair.expect(block)
    if scale == "learned":
        check_adaptformer(0.1)


def check_prefix_tuning() -> None:
    """Equation 3 of arXiv 2110.04366: Attn(x W_q, [P_k; x W_k], [P_v; x W_v]), in every head."""
    pair = Pair("prefix_tuning", pairs=3)

    def block(index: int, part: Block, x: Tensor, positions: Tensor) -> Tensor:
        before = (pair.added_to(index, "keys"), pair.added_to(index, "values"))
        x = x + positions
        mixed = attention(part.attn.qkv(part.norm1(x)), part.attn.heads, before=before)
        x = x + part.attn.proj(mixed)
        return x + part.mlp(part.norm2(x))

    pair.expect(block)
    # Where tokens do not see each other, as in hierarchical encoders, all of them see the prefixes.
    attn, plain = pair.adapted.plain_blocks[0].attn, pair.plain.plain_blocks[0].attn
    alone, x = torch.eye(9).bool().expand(3, 1, 9, 9), pair.plain(CLOUDS).features
    each = plain.proj(attention(plain.qkv(x.flatten(0, 1)[:, None]), plain.heads, before=(attn.keys, attn.values)))
    assert (attn(x, alone) - each.view_as(x)).abs().max() < 1e-5


def check_idpt() -> None:
    """As in the official `models/dgcnn.py`: edges [x_j - x_i; x_i], convolution, batch norm, LeakyReLU, maximum."""
    pair = Pair("idpt", neighbours=3)
    generator = torch.Generator().manual_seed(2)
    assert isinstance(pair.adapted.blocks[0], Block), "the prompt comes before the last block"
    module = pair.adapted.blocks[1].prompt
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm1d)]
    assert len(norms) == 4
    for norm in norms:
        norm.running_mean = torch.randn(norm.num_features, generator=generator) * 0.1
        norm.running_var = torch.rand(norm.num_features, generator=generator) + 0.5

    def layer(x: Tensor, linear: nn.Linear, norm: nn.BatchNorm1d) -> Tensor:
        """(B, in, ...) -> (B, out, ...), a convolution of size one."""
        y = torch.einsum("oi,bi...->bo...", linear.weight, x)
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training)
        return torch.where(y > 0, y, 0.2 * y)

    def prompt_of(x: Tensor) -> Tensor:
        """(B, G, C) -> (B, 1, C)."""
        found = []
        for conv in module.convs:
            distance = (x[:, :, None] - x[:, None]).square().sum(-1)
            nearest = distance.argsort(-1)[:, :, :3]
            neighbours = torch.stack([cloud[rows] for cloud, rows in zip(x, nearest, strict=True)])  # (B, G, k, C)
            centre = x[:, :, None].expand_as(neighbours)
            edges = torch.cat([neighbours - centre, centre], dim=-1).permute(0, 3, 1, 2)
            x = layer(edges, conv.linear, conv.norm).max(-1).values.transpose(1, 2)
            found.append(x)
        mixed = layer(torch.cat(found, dim=-1).transpose(1, 2), module.linear, module.norm)
        return mixed.max(-1).values[:, None]

    with torch.no_grad():
        tokens = pair.plain.embed(pair.plain.patches(CLOUDS))
        x, positions = plain_block(0, pair.plain.plain_blocks[0], tokens.features, tokens.positions), tokens.positions
        x = torch.cat([x[:, :1], prompt_of(x[:, 1:]), x[:, 1:]], dim=1)
        position = pair.adapted.blocks[1].position.expand(len(x), -1, -1)
        positions = torch.cat([positions[:, :1], position, positions[:, 1:]], dim=1)
        x = pair.plain.norm(plain_block(1, pair.plain.plain_blocks[1], x, positions))
        expected = torch.cat([x[:, 0], x[:, 1], x[:, 2:].max(1).values], dim=1)
        assert (pair.attached.model.features(CLOUDS) - expected).abs().max() < 1e-5
        # The prompt's position is drawn, and does not train; norms take the statistics of all edges of the batch.
        assert 0.01 < position.std() < 0.03 and not any("position" in name for name in pair.added)
        module.train()
        drawn = torch.randn(3, 8, pair.plain.dim, generator=generator)
        state = copy.deepcopy(module.state_dict())
        ours = module(drawn)
        module.load_state_dict(state)
        assert (ours - prompt_of(drawn)).abs().max() < 1e-5


def check_hf_peft() -> None:
    """DoRA, equation 5 of arXiv 2402.09353, W' = m (W + B A) / |W + B A|; rsLoRA, arXiv 2312.03732, alpha / sqrt(r)."""
    pytest.importorskip("peft", reason="the extra `peft` is not installed")
    dora = Pair("hf_peft", targets=["attn.qkv", "mlp.fc1"])
    rslora = Pair("hf_peft", config={"r": 4, "lora_alpha": 3, "use_rslora": True}, targets=["mlp.fc2"])

    def update(pair: Pair, index: int, target: str) -> Tensor:
        down, up = (pair.added_to(index, f"{target}.lora_{name}.default.weight") for name in "AB")
        return up @ down

    def with_dora(index: int, part: Block, x: Tensor, positions: Tensor) -> Tensor:
        changed = copy.deepcopy(part)
        for target in ("attn.qkv", "mlp.fc1"):
            weight = changed.get_parameter(f"{target}.weight")
            length = dora.added_to(index, f"{target}.lora_magnitude_vector.default.weight")
            assert update(dora, index, target).shape == weight.shape
            assert dora.added_to(index, f"{target}.lora_A.default.weight").shape[0] == 32
            weight.data += update(dora, index, target)
            weight.data *= (length / weight.data.norm(dim=1))[:, None]
        return plain_block(index, changed, x, positions)

    def with_rslora(index: int, part: Block, x: Tensor, positions: Tensor) -> Tensor:
        changed = copy.deepcopy(part)
        changed.mlp.fc2.weight.data += 3 / 4**0.5 * update(rslora, index, "mlp.fc2")
        return plain_block(index, changed, x, positions)

    dora.expect(with_dora)
    rslora.expect(with_rslora)


CHECKS: dict[str, Callable[[], None]] = {
    "linear_probe": check_linear_probe,
    "vpt": check_vpt,
    "adapter": check_adapter,
    "lora": check_lora,
    "bitfit": check_bitfit,
    "ssf": check_ssf,
    "adaptformer": check_adaptformer,
    "prefix_tuning": check_prefix_tuning,
    "idpt": check_idpt,
    "hf_peft": check_hf_peft,
}
MUTANTS = [
    (method, Mutant(f"methods.{method}", before, after, why))
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
        ("bitfit", "nn.Linear | nn.LayerNorm | _BatchNorm", "nn.Linear | nn.LayerNorm", "biases of batch norms"),
        ("bitfit", "in encoder.modules()", "in encoder.blocks.modules()", "biases outside the blocks"),
        ("bitfit", "            module.bias\n", "            module.weight\n", "biases, not weights"),
        ("ssf", "block.attn.proj = shifted(block.attn.proj, block.dim)", "pass", "after the attention's last layer"),
        ("ssf", "norm=shifted(encoder.norm, encoder.dim)", "norm=encoder.norm", "after the final norm"),
        ("adaptformer", "F.relu(", "F.gelu(", "ReLU"),
        ("adaptformer", "self.mlp(z) + self.bottleneck(z)", "self.mlp(z + self.bottleneck(z))", "beside, not before"),
        ("adaptformer", "return self.scale * self.up", "return self.up", "the scale"),
        ("adaptformer", 'None if self.scale == "learned" else self.scale', "None", "a scale may be constant"),
        ("prefix_tuning", "torch.stack([self.keys, self.values])", "torch.stack([self.values, self.keys])", "keys"),
        ("prefix_tuning", "(pairs, 0), value=True", "(pairs, 0), value=False", "all tokens see the prefixes"),
        ("prefix_tuning", "(pairs, 0), value=True", "(0, pairs), value=True", "prefixes come first in the mask"),
        (
            "prefix_tuning",
            "view(2, 1, pairs, heads, dim // heads)",
            "view(2, 1, pairs, dim // heads, heads).transpose(-1, -2)",
            "heads are cut as those of the tokens",
        ),
        ("idpt", "for_self - for_edge", "for_self", "an edge is the difference of its ends"),
        ("idpt", "self.norm(edges), 0.2)", "self.norm(edges), 0.1)", "slope of LeakyReLU"),
        ("idpt", "largest=False", "largest=True", "neighbours are near"),
        ("idpt", "features.append(patches)", "features.append(features[0] if features else patches)", "all outputs"),
        ("idpt", ".amax(1, keepdim=True)", ".mean(1, keepdim=True)", "a maximum over the patches"),
        ("idpt", "self.position.expand_as(prompt)", "torch.zeros_like(prompt)", "the prompt has a position"),
        ("idpt", '("class", "prompt_max", "patch_max")', '("prompt_max", "class", "patch_max")', "order of the pool"),
        ("idpt", "len(blocks) - 1 if", "0 if", "the last block gets the prompt"),
        ("hf_peft", '"use_dora": True', '"use_dora": False', "DoRA"),
        ("hf_peft", '"r": 32,', '"r": 16,', "rank 32"),
        ("hf_peft", "if id(parameter) not in own", "if parameter.ndim > 1", "lengths train too"),
        ("hf_peft", "for target in dict.fromkeys(self.targets)", "for target in self.targets[:1]", "all targets"),
    )
] + [
    ("ssf", Mutant("harness.models.scale_shift", before, after, why))
    for before, after, why in (
        ("scale_shift(x, self.gamma, self.beta)", "self.beta + 2 * x * self.gamma", "gamma * x + beta"),
        ("torch.empty(dim).normal_(1, 0.02)", "torch.ones(dim)", "the beginning is drawn"),
    )
]


@pytest.mark.parametrize("method", CHECKS)
def test_equation(method: str) -> None:
    CHECKS[method]()


def test_shallow_prompts_go_through_all_blocks() -> None:
    check_vpt(deep=False)


@pytest.mark.parametrize(("method", "mutant"), MUTANTS, ids=str)
def test_a_change_is_noticed(method: str, mutant: Mutant) -> None:
    with running(mutant), pytest.raises(AssertionError):
        CHECKS[method]()


@pytest.mark.parametrize(("method", "module"), sorted({(method, mutant.module) for method, mutant in MUTANTS}))
def test_without_a_change_nothing_is_noticed(method: str, module: str) -> None:
    with running(unchanged(module)):
        CHECKS[method]()


def test_every_method_has_a_mutant() -> None:
    assert {method for method, _ in MUTANTS} == set(CHECKS)
