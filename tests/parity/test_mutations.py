"""The parity checks can fail: each notices, for every method with a record, any one of these small changes.

The methods without stored outputs are held to their papers' equations, and to the same rule, in
tests/methods/test_equations.py.
"""

from functools import cache

import pytest
import torch

from harness.recorded import BUNDLED, Record, read_record
from harness.verify import checks
from tests.mutants import Mutant, running, unchanged

TRANSFORMER, TOKENIZER = "harness.models.transformer", "harness.models.tokenizer"
ENCODER, HEAD = "harness.models.encoder", "harness.models.head"

# `full` is the encoder, the head and the rules of the engine: what it stands on is changed.
FULL = tuple(
    Mutant(module, before, after, why)
    for module, before, after, why in (
        (TRANSFORMER, "norm1: nn.Module = nn.LayerNorm(dim)", "norm1 = nn.LayerNorm(dim, eps=1e-4)", "norm's epsilon"),
        (TRANSFORMER, "recomputed(F.gelu, x)", 'F.gelu(x, approximate="tanh")', "exact GELU"),
        (TRANSFORMER, "attention(query, key, value,", "attention(key, query, value,", "order of query, key, value"),
        (TRANSFORMER, "x = tokens.features + tokens.positions\n", "x = tokens.features\n", "positions at every block"),
        (TRANSFORMER, "for_products(self.norm1, x),", "self.norm1(x.detach()),", "gradient through attention"),
        (TOKENIZER, "values.max(1)", "values.min(1)", "a patch is the maximum of its points"),
        (TOKENIZER, "F.gelu(self.fc1(centers))", "F.relu(self.fc1(centers))", "GELU in the position embedding"),
        (TOKENIZER, "PointwiseNorm(hidden)", "PointwiseNorm(hidden, momentum=0.11)", "running statistics"),
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
        ("adapted = self.adapter(z)", "adapted = self.adapter(x)", "the adapter sees normalised tokens"),
        ("block.mlp(z) + adapted)", "block.mlp(z) + adapted.detach())", "gradient of the adapter"),
        ("isinstance(m, ScaleShift | DynamicAdapter)", "isinstance(m, DynamicAdapter)", "scale-shifts train"),
        (
            "unfrozen=encoder.class_parameters",
            "unfrozen=encoder.class_parameters, no_decay=[b.adapter.down.weight for b in blocks]",
            "matrices get weight decay",
        ),
    )
)
SCALE_SHIFT = Mutant(
    "harness.models.scale_shift",
    "scale_shift(x, self.gamma, self.beta)",
    "(x + self.beta) * self.gamma",
    "scale, then shift",
)
BLOCK, PEFT = "methods.point_peft_block", "methods.point_peft"
POINT_PEFT = tuple(
    Mutant(module, before, after, why)
    for module, before, after, why in (
        (BLOCK, "torch.sigmoid(1.702 * h)", "torch.sigmoid(1.7 * h)", "quick GELU's 1.702"),
        # A patch that is a centre weighs 1e8 there: 1e-6 for 1e-8 is below what float32 outputs tell apart.
        (BLOCK, "(distance + 1e-8)", "(distance + 1e-5)", "interpolation's 1e-8"),
        (BLOCK, "heads, width**-0.5", "heads, (width // heads) ** -0.5", "attention is scaled by the whole width"),
        (BLOCK, "x + self.last_adapter(x)", "self.last_adapter(x)", "the last adapter's residual"),
        (BLOCK, "self.scale * self.adapter(y)", "self.scale * self.adapter(x)", "what the adapter sees"),
        (BLOCK, "F.gelu(self.norm(gathered))", "self.norm(F.gelu(gathered))", "norm, then GELU"),
        (BLOCK, "prompts + memory +", "prompts +", "the memory itself joins the prompts"),
        (BLOCK, "local.spread @ values", "local.spread @ values.detach()", "gradient through the neighbourhoods"),
        (PEFT, "self.encoder.group_size // 2)", "self.encoder.group_size // 2 - 1)", "members of a neighbourhood"),
        (PEFT, "scores.softmax(1)", "scores", "softmax over the memory's neighbours"),
        (PEFT, "prompts_are_rows=True)", "prompts_are_rows=False)", "the published code's rows"),
        (PEFT, "encoder.norm, *biases]", "*biases]", "the final norm trains"),
        (
            PEFT,
            "before_training=adapted.build_bank",
            "before_training=adapted.build_bank, no_decay=[p for a in attentions.values() for p in a.parameters()]",
            "matrices get weight decay",
        ),
    )
)
M2AE_FULL = tuple(
    Mutant(module, before, after, why)
    for module, before, after, why in (
        (ENCODER, "distance < self.radii", "distance < 2 * self.radii", "patches see those within the radius"),
        (ENCODER, "list(self.embeddings.parameters())", "[]", "no weight decay for the tokenizers"),
        (ENCODER, "(tokens.patches, patches.members)", "(tokens.patches, patches.members.flip(1))", "own members"),
        (HEAD, "_all(tokens)[:, 1:].amax(1)", "_all(tokens).amax(1)", "the maximum leaves out the first token"),
    )
)
M2AE_POINT_PEFT = tuple(
    Mutant(module, before, after, why)
    for module, before, after, why in (
        (BLOCK, "self.gate * (y + self.adapter(y))", "y + self.gate * self.adapter(y)", "what the gate shuts off"),
        (PEFT, "misaligned if self.official_quirks else aligned", "aligned", "the published code's mask"),
        (PEFT, "self.encoder.group_sizes[-1])", "self.encoder.group_sizes[-1] // 2)", "the last level's groups"),
        (PEFT, "patches = self.encoder.patches(cloud)", "self.encoder.patches(cloud)", "prompt points are grouped"),
    )
)
MUTANTS = [
    *(("pointmae_full", mutant) for mutant in FULL),
    *(("dapt_use_mean_max", mutant) for mutant in (*DAPT, SCALE_SHIFT)),
    *(("pointpeft_mae", mutant) for mutant in POINT_PEFT),
    *(("m2ae_scan_full", mutant) for mutant in M2AE_FULL),
    *(("pointpeft_m2ae", mutant) for mutant in M2AE_POINT_PEFT),
]


@cache
def record(name: str) -> Record:
    """Read once: nobody writes to it, and no mutant is about reading."""
    return read_record(BUNDLED / f"{name}.json")


def noticed_by(name: str) -> str | None:
    """The first check that fails, None when all pass."""
    found = checks(record(name), device=torch.device("cpu"), dtype=torch.float32)
    return next((check.name for check in found if not check.passed), None)


@pytest.mark.parametrize(("name", "mutant"), MUTANTS, ids=str)
def test_a_change_is_noticed(name: str, mutant: Mutant) -> None:
    with running(mutant):
        assert noticed_by(name) is not None, f"no parity check notices: {mutant}"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "module"), sorted({(name, mutant.module) for name, mutant in MUTANTS}))
def test_without_a_change_nothing_is_noticed(name: str, module: str) -> None:
    with running(unchanged(module)):
        assert noticed_by(name) is None


def test_a_mutant_that_the_code_has_outgrown_is_reported() -> None:
    with pytest.raises(AssertionError, match="bring this mutant up to date"):
        Mutant("methods.full", "no such text", "", "outgrown").source()
    with pytest.raises(AssertionError, match=r"has 'Encoder' \d times"):
        Mutant("methods.full", "Encoder", "", "occurs often").source()
