"""Our numbers against those recorded from the papers' code, on the machine at hand (docs/verify.md).

The model of a record (harness.rebuilt) is run in evaluation, through one training pass, and through five steps of
AdamW. What comes out is a list of checks: each an error, the tolerance that it is held to, and where the error is
largest. Nothing here knows a fixture or a method by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.optimizer import AdamW
from harness.rebuilt import Rebuilt, keys_aside
from harness.recorded import Record, read_record

DType = Literal["float32", "float64"]
DTYPES: dict[DType, torch.dtype] = {"float32": torch.float32, "float64": torch.float64}

EVAL_LOGITS, TRAIN_LOGITS, LOSS, BUFFERS, ADAMW = 1e-5, 1e-4, 1e-4, 1e-5, 1e-3
GRADIENT_SHARE, GRADIENT_FLOOR = 1e-3, 1e-5
"""Of a gradient's largest value, and what is allowed besides."""
ZERO_GRADIENT = 2e-5
"""For a gradient that the manifest lists as zero in exact arithmetic."""
SMALL_GRADIENT, EXACTLY_ZERO = 1e-4, 1e-9
"""A gradient that is nowhere larger than the first, and nowhere larger than the second in float64, is zero, too."""
NEAR_TIE = 0.1
"""How far off, in shares of its largest value, a gradient can be that agrees with the record in float64."""
NEIGHBOURS = 8
"""Runs from parameters one rounding away, to see how far rounding alone carries the AdamW losses."""


@dataclass(frozen=True)
class Check:
    """One comparison: it passes when the error is within the tolerance (an error that is no number never is)."""

    name: str
    error: float
    tolerance: float
    detail: str = ""
    """Where the error is largest, or what differs."""

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Verified:
    """What became of a record."""

    checks: tuple[Check, ...]
    aside: tuple[str, ...]
    """Keys of the manifest's model section that do not matter for this."""

    @property
    def passed(self) -> bool:
        """Whether all checks did."""
        return all(check.passed for check in self.checks)


def verify(file: Path, *, device: str = "cpu", dtype: DType = "float32") -> Verified:
    """All checks of one manifest. Raises UserError when it cannot be run: a bad file, or a model that is not ours."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    try:
        record = read_record(file)
        found = tuple(checks(record, device=torch.device(device), dtype=DTYPES[dtype]))
        return Verified(found, keys_aside(record))
    except UserError as error:
        raise UserError("\n".join(f"{file}: {line}" for line in str(error).splitlines())) from None
    except Exception as error:  # a stranger's settings and shapes, in whatever plug-in they name
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(f"{file}: its model cannot be run on its inputs ({reason})") from error


def checks(record: Record, *, device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    """The checks of a record one by one, the cheap ones first. Raises UserError for what cannot be compared."""
    yield from one_pass(record, device=device, dtype=dtype)
    yield from _five_steps(record, device, dtype)


def one_pass(record: Record, *, device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    """All but the steps of AdamW, which take most of the time."""
    model = Rebuilt(record, device=device, dtype=dtype)
    yield from _structure(model)
    yield from _evaluation(model)
    yield from _training_pass(model)


# Comparisons


def _same(name: str, ours: Iterable[str], recorded: Iterable[str]) -> Check:
    """Two sets of official names: the error is how many names are in one alone."""
    ours, recorded = set(ours), set(recorded)
    more, less = sorted(ours - recorded), sorted(recorded - ours)
    told = [f"{what}: {', '.join(found[:3])}" for what, found in (("only here", more), ("only there", less)) if found]
    return Check(name, len(more) + len(less), 0, "; ".join(told) or f"{len(recorded)} names")


def _distance(ours: Tensor, recorded: Tensor, *, relative_above: float = math.inf) -> float:
    """Largest difference, divided by the recorded value where that is larger than `relative_above`."""
    expected = recorded.to("cpu", torch.float64).view(ours.shape)
    scale = (expected.abs() / relative_above).clamp(min=1)
    return ((ours.detach().to("cpu", torch.float64) - expected).abs() / scale).amax().item()


def _worst(found: Sequence[Check]) -> Iterator[Check]:
    """Of checks of the same kind, the one that comes closest to its tolerance or exceeds it most."""
    if found:
        yield max(found, key=lambda check: math.inf if math.isnan(check.error) else check.error / check.tolerance)


def _structure(model: Rebuilt) -> Iterator[Check]:
    """Totals, what trains, and what of it gets weight decay."""
    manifest, counts = model.record.manifest, model.attached.counts
    trainable = manifest.params_total if manifest.trainable_total is None else manifest.trainable_total
    for name, ours, recorded in (
        ("parameters", counts.total, manifest.params_total),
        ("trainable parameters", counts.trainable, trainable),
    ):
        yield Check(name, abs(ours - recorded), 0, f"{ours:,} here, {recorded:,} recorded")
    names, groups = model.trainable(), manifest.optimizer_groups
    recorded_names = {*groups.decay, *groups.no_decay}
    yield _same("trainable tensors", names, {name for name, _ in manifest.trainable or ()} or recorded_names)
    undecayed = {
        id(parameter)
        for group in model.attached.optimizer_groups(0.05)
        if not group["weight_decay"]
        for parameter in group["params"]  # type: ignore[attr-defined]
    }
    yield _same("weight decay", (n for n, p in names.items() if id(p) not in undecayed), groups.decay)
    yield _same("no weight decay", (n for n, p in names.items() if id(p) in undecayed), groups.no_decay)


@torch.no_grad()
def _evaluation(model: Rebuilt) -> list[Check]:
    """Logits in evaluation mode, also cloud by cloud and in reversed order where that was recorded."""
    model.model.eval()
    outputs = model.record.outputs
    rows = torch.arange(len(model.points))
    found = [Check("eval logits", _distance(model.scores(rows), outputs["logits_eval"]), EVAL_LOGITS)]
    alone, reverse = outputs.get("logits_eval_each_alone"), outputs.get("logits_eval_batch_reversed")
    bankless = outputs.get("logits_eval_no_cache")
    if bankless is not None:
        ours = model.scores_without_memory(rows)
        found.append(Check("eval logits, without memory", _distance(ours, bankless), EVAL_LOGITS))
    if alone is not None:
        ours = torch.cat([model.scores(row) for row in rows.split(1)])
        found.append(Check("eval logits, each cloud alone", _distance(ours, alone), EVAL_LOGITS))
    if reverse is not None:
        ours = model.scores(rows.flip(0)).flip(0)
        found.append(Check("eval logits, batch reversed", _distance(ours, reverse), EVAL_LOGITS))
    return found


def _training_pass(model: Rebuilt) -> Iterator[Check]:
    """Logits, loss, gradients and batch norms' statistics of one pass from the official state."""
    record = model.record
    scores, loss = model.backward()
    yield Check("train logits", _distance(scores, record.outputs["logits_train"]), TRAIN_LOGITS)
    yield Check("loss", _distance(loss.view(1), record.outputs["loss"].view(1)), LOSS)
    state = {model.names[key]: value for key, value in model.model.state_dict().items() if key in model.names}
    buffers = ((name, _distance(state[name], value, relative_above=1)) for name, value in record.buffers.items())
    yield from _worst([Check("batch norm statistics", error, BUFFERS, name) for name, error in buffers])
    yield from _gradients(model)


def _gradients(model: Rebuilt) -> Iterator[Check]:
    """Every gradient of a pass that has just been made, to a share of its largest value or as one that is zero."""
    record = model.record
    trainable = model.trainable()
    ours = {name: p.grad for name, p in trainable.items() if p.grad is not None}
    yield _same("tensors without gradient", trainable.keys() - ours, record.manifest.trainable_without_gradient)
    yield _same("tensors with gradient", ours, record.gradients)

    @cache
    def exact() -> dict[str, Tensor]:
        """All gradients in float64."""
        precise = Rebuilt(record, device=model.points.device, dtype=torch.float64)
        precise.backward()
        return {name: p.grad for name, p in precise.trainable().items() if p.grad is not None}

    listed = record.manifest.fp32_vs_fp64.analytically_zero_gradients_with_their_fp32_noise
    large, small, rounded = [], [], []
    for name, recorded in record.gradients.items():
        if name not in ours:
            continue
        error, largest = _distance(ours[name], recorded), recorded.abs().amax().item()
        zero, where, limit = name in listed, name, NEAR_TIE * largest + SMALL_GRADIENT
        tolerance = max(ZERO_GRADIENT, 2 * listed[name]) if zero else GRADIENT_SHARE * largest + GRADIENT_FLOOR
        if tolerance < error <= limit:
            if not zero and largest <= SMALL_GRADIENT and exact()[name].abs().amax() <= EXACTLY_ZERO:
                zero, tolerance = True, SMALL_GRADIENT
            if error > tolerance and (precise := _distance(exact()[name], recorded)) <= tolerance:
                rounded.append(Check("gradients that float64 confirms", error, limit, name))
                where, error = f"{name}, in float64", precise
        if zero or largest <= SMALL_GRADIENT:
            small.append(Check("gradients near zero", error, tolerance, where))
        else:
            large.append(Check("gradients, relative", error / largest, tolerance / largest, where))
    for group in (large, small, rounded):
        yield from _worst(group)


# Five steps of AdamW


def _five_steps(record: Record, device: torch.device, dtype: torch.dtype) -> Iterator[Check]:
    """The loss before each of five steps.

    Adam makes whole steps of the noise of gradients near zero, so where the record itself is noise after some steps,
    rounding says how far it may be off: twice the spread of our own runs that differ in nothing but rounding.
    """
    ours = _losses(record, device, dtype)
    recorded = record.manifest.adamw5_losses.losses_before_each_step
    errors = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(ours, recorded, strict=True)]
    tolerances, reason = [ADAMW] * len(errors), ""
    if not all(error <= ADAMW for error in errors):
        spread = _spread(record, device)
        tolerances = [max(ADAMW, 2 * part) for part in spread]
        reason = "tolerance: twice what rounding does here"
    for step, (error, tolerance) in enumerate(zip(errors, tolerances, strict=True), start=1):
        yield Check(f"AdamW loss {step}", error, tolerance, reason if tolerance > ADAMW else "")


def _spread(record: Record, device: torch.device) -> list[float]:
    """How far apart, relative to float64, rounding alone brings the losses up to each one.

    Of a run in float64, one in float32, and some in float32 from parameters that are one rounding away.
    """
    exact = _losses(record, device, torch.float64)
    runs = [_losses(record, device, torch.float32, nudge=seed) for seed in (None, *range(NEIGHBOURS))]
    apart = [(max(values) - min(values)) / max(abs(values[0]), 1e-12) for values in zip(exact, *runs, strict=True)]
    return list(accumulate(apart, max))


def _losses(record: Record, device: torch.device, dtype: torch.dtype, *, nudge: int | None = None) -> list[float]:
    """AdamW with rate 5e-4, decay 0.05 by the manifest's groups, clipped at 10: the loss before each of five steps.

    `nudge` seeds the directions in which every parameter is first moved to the next floating-point number.
    """
    model = Rebuilt(record, device=device, dtype=dtype)
    trainable = model.trainable()
    if nudge is not None:
        _nudge(model.model.parameters(), nudge)
    without = set(record.manifest.optimizer_groups.no_decay)
    groups = [
        {"params": [p for name, p in trainable.items() if name not in without], "weight_decay": 0.05},
        {"params": [p for name, p in trainable.items() if name in without], "weight_decay": 0.0},
    ]
    optimizer = AdamW([group for group in groups if group["params"]], lr=5e-4)
    losses = []
    for _ in range(5):
        losses.append(model.backward()[1].item())
        nn.utils.clip_grad_norm_(trainable.values(), 10)
        optimizer.step()
    return losses


@torch.no_grad()
def _nudge(parameters: Iterable[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        up = torch.rand(parameter.shape, generator=generator) < 0.5
        towards = torch.where(up, math.inf, -math.inf).to(parameter)
        parameter.copy_(torch.nextafter(parameter, towards))
