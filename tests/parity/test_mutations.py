"""The parity checks can fail: each notices, for every method with a record, any one of these small changes.

The methods without stored outputs are held to their papers' equations, and to the same rule, in
tests/methods/test_equations.py.
"""

import pytest

from tests.mutants import Mutant, running, unchanged
from tests.parity.case import CHECKS, Case

TRANSFORMER, TOKENIZER = "harness.models.transformer", "harness.models.tokenizer"
ENCODER, HEAD = "harness.models.encoder", "harness.models.head"

# `full` is the encoder, the head and the rules of the engine: what it stands on is changed.
FULL = tuple(
    Mutant(module, before, after, why)
    for module, before, after, why in (
        (TRANSFORMER, "norm1: nn.Module = nn.LayerNorm(dim)", "norm1 = nn.LayerNorm(dim, eps=1e-4)", "norm's epsilon"),
        (TRANSFORMER, "F.gelu(self.fc1(x))", 'F.gelu(self.fc1(x), approximate="tanh")', "exact GELU"),
        (TRANSFORMER, "attention(query, key, value)", "attention(key, query, value)", "order of query, key, value"),
        (TRANSFORMER, "x = tokens.features + tokens.positions\n", "x = tokens.features\n", "positions at every block"),
        (TRANSFORMER, "self.attn(self.norm1(x))", "self.attn(self.norm1(x.detach()))", "gradient through attention"),
        (TOKENIZER, "local.amax(2)", "local.mean(2)", "a patch is the maximum of its points"),
        (TOKENIZER, "F.gelu(self.fc1(centers))", "F.relu(self.fc1(centers))", "GELU in the position embedding"),
        (TOKENIZER, "PointwiseNorm(width // 2)", "PointwiseNorm(width // 2, momentum=0.11)", "running statistics"),
        (HEAD, "tokens.patches.amax(1)", "tokens.patches.mean(1)", "the head sees the maximum of the patches"),
        (HEAD, "for name in self.pool]", "for name in self.pool[::-1]]", "order of the head's inputs"),
        (ENCODER, "features=self.norm(tokens.features)", "features=tokens.features", "the final norm"),
        (ENCODER, "return [self.class_token]", "return []", "no weight decay for the class token"),
        ("methods.full", "unfrozen=[encoder]", "unfrozen=[encoder.blocks, encoder.norm]", "everything trains"),
    )
)
DAPT = tuple(
    Mutant("methods.dapt", before, after, why)
    for before, after, why in (
        ("F.relu(self.scale(u))", "self.scale(u)", "no negative scale of a token"),
        ("F.gelu(self.down(u))", "F.relu(self.down(u))", "GELU in the adapter"),
        ("F.gelu(adapted).mean", "adapted.mean", "GELU before the mean that makes a prompt"),
        ("first=index == 0", "first=True", "positions are added once"),
        ("torch.addcmul(self.beta, y, self.gamma)", "(y + self.beta) * self.gamma", "scale, then shift"),
        ("adapted = self.adapter(z)", "adapted = self.adapter(x)", "the adapter sees normalised tokens"),
        ("block.mlp(z) + adapted)", "block.mlp(z) + adapted.detach())", "gradient of the adapter"),
        ("isinstance(m, ScaleShift | DynamicAdapter)", "isinstance(m, DynamicAdapter)", "scale-shifts train"),
        (
            "unfrozen=[encoder.class_token, encoder.class_position]",
            "unfrozen=[encoder.class_token, encoder.class_position], no_decay=[b.adapter.down.weight for b in blocks]",
            "matrices get weight decay",
        ),
    )
)
POINT_PEFT = tuple(
    Mutant("methods.point_peft", before, after, why)
    for before, after, why in (
        ("torch.sigmoid(1.702 * h)", "torch.sigmoid(1.7 * h)", "quick GELU's 1.702"),
        # A patch that is a centre weighs 1e8 there: 1e-6 for 1e-8 is below what float32 outputs tell apart.
        ("(distance + 1e-8)", "(distance + 1e-5)", "interpolation's 1e-8"),
        ("heads, width**-0.5", "heads, (width // heads) ** -0.5", "attention is scaled by the whole width"),
        ("x + self.last_adapter(x)", "self.last_adapter(x)", "the last adapter's residual"),
        ("self.adapter_scale * self.adapter(y)", "self.adapter_scale * self.adapter(x)", "what the adapter sees"),
        ("F.gelu(self.norm(gathered))", "self.norm(F.gelu(gathered))", "norm, then GELU"),
        ("total // 2, members)", "total // 2, members - 1)", "members of a neighbourhood"),
        ("scores.softmax(1)", "scores", "softmax over the memory's neighbours"),
        ("prompts + tokens.memory +", "prompts +", "the memory itself joins the prompts"),
        ("prompts_are_rows=True)", "prompts_are_rows=False)", "the published code's rows"),
        ("local.spread @ values", "local.spread @ values.detach()", "gradient through the neighbourhoods"),
        ("encoder.norm, *biases]", "*biases]", "the final norm trains"),
        (
            "before_training=adapted.build_bank",
            "before_training=adapted.build_bank, no_decay=[attention.qkv.weight]",
            "matrices get weight decay",
        ),
    )
)
MUTANTS = [
    *(("pointmae_full", mutant) for mutant in FULL),
    *(("dapt_use_mean_max", mutant) for mutant in DAPT),
    *(("pointpeft_mae", mutant) for mutant in POINT_PEFT),
]


def noticed_by(name: str) -> str | None:
    """The first check that fails, None when all pass. Every check starts from the official state."""
    for check in CHECKS:
        case = Case(name)
        try:
            check(case)
        except AssertionError:
            return check.__name__
    return None


@pytest.mark.parametrize(("name", "mutant"), MUTANTS, ids=str)
def test_a_change_is_noticed(name: str, mutant: Mutant) -> None:
    with running(mutant):
        assert noticed_by(name) is not None, f"no parity check notices: {mutant}"


@pytest.mark.parametrize(("name", "module"), sorted({(name, mutant.module) for name, mutant in MUTANTS}))
def test_without_a_change_nothing_is_noticed(name: str, module: str) -> None:
    with running(unchanged(module)):
        assert noticed_by(name) is None


def test_a_mutant_that_the_code_has_outgrown_is_reported() -> None:
    with pytest.raises(AssertionError, match="bring this mutant up to date"):
        Mutant("methods.full", "no such text", "", "outgrown").source()
    with pytest.raises(AssertionError, match=r"has 'Encoder' \d times"):
        Mutant("methods.full", "Encoder", "", "occurs often").source()
