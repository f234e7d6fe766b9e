"""The columns of the leaderboard: what each cost means, its unit, how trials are put together, how it is
written.

Markdown and HTML show the same text for a number; CSV and JSON hold the number itself, in the unit of
result.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from harness.headline import ACCURACY, HEADLINES, INSTANCE_MIOU
from reports.statistics import Summary

NOTHING = "–"


@dataclass(frozen=True)
class Column:
    """A cost of a method. `scale` turns the stored unit into the shown one."""

    key: str
    """Path in result.json, or `parameters.percent`."""
    title: str
    unit: str
    group: Literal["Parameters", "Cost"]
    meaning: str
    over_trials: Literal["max", "median"]
    scale: float = 1.0
    decimals: int = 0
    shown: Literal["always", "filled", "never"] = "always"
    """In markdown and HTML: always, where a row has a value, or in CSV and JSON alone."""

    @property
    def name(self) -> str:
        """The column's name in a tidy table: time_step."""
        return self.key.replace(".", "_")

    def show(self, value: float | None) -> str:
        """The value in the shown unit: 1,234.5."""
        return NOTHING if value is None else f"{value * self.scale:,.{self.decimals}f}"


_MB = 1e-6
# fmt: off
COLUMNS: tuple[Column, ...] = (
    Column("parameters.trainable", "Trainable", "", "Parameters",
           "parameters that the optimiser holds: added + unfrozen + head", "max"),
    Column("parameters.percent", "Share", "%", "Parameters",
           "trainable in percent of backbone + added + head", "max", decimals=2),
    Column("parameters.added", "Added", "", "Parameters", "parameters that the method adds", "max"),
    Column("parameters.unfrozen", "Unfrozen", "", "Parameters",
           "parameters of the backbone that train", "max"),
    Column("parameters.head", "Head", "", "Parameters", "parameters of the head", "max"),
    Column("parameters.total", "Total", "", "Parameters", "backbone + added + head", "max"),
    Column("storage.adapter", "Adapter", "KB", "Cost",
           "size on disk of all that training changed, head included; 1 KB = 1000 bytes", "max", 1e-3, 1),
    Column("time.step", "Step", "ms", "Cost",
           "one training step, making its batch included, median over trials", "median", 1e3, 1),
    Column("time.throughput", "Throughput", "clouds/s", "Cost",
           "training samples per second, median over trials", "median"),
    Column("time.total", "Trial", "s", "Cost",
           "a whole trial from start to result, median over trials", "median", 1, 1, shown="never"),
    Column("memory.host_peak", "Host peak", "MB", "Cost",
           "largest resident memory of the trial's process (VmHWM), maximum over trials; 1 MB = 10⁶ bytes",
           "max", _MB),
    Column("memory.train_peak", "GPU peak", "MB", "Cost",
           "peak of memory allocated on the GPU while training, maximum over trials", "max", _MB),
    Column("memory.train_reserved", "GPU reserved", "MB", "Cost",
           "peak of memory that PyTorch reserved on the GPU while training", "max", _MB, shown="filled"),
    Column("memory.device", "GPU process", "MB", "Cost",
           "GPU memory of the process as the driver counts it", "max", _MB, shown="filled"),
    Column("memory.eval_peak", "GPU evaluation", "MB", "Cost",
           "peak of memory allocated on the GPU while evaluating", "max", _MB, shown="filled"),
    Column("memory.total_peak", "GPU whole run", "MB", "Cost",
           "peak of memory allocated on the GPU in the life of the process", "max", _MB, shown="filled"),
    Column("memory.estimated", "GPU estimated", "MB", "Cost",
           "training peak predicted without a GPU; never mixed with measurements", "max", _MB, shown="filled"),
    Column("compute.flops_forward", "Forward", "MFLOP", "Cost",
           "floating-point operations of one cloud forward (2 per multiply-add)",
           "max", 1e-6, 1, shown="filled"),
    Column("compute.flops_train", "Training", "GFLOP", "Cost",
           "floating-point operations of one training step, counted", "max", 1e-9, 2, shown="filled"),
    Column("compute.energy", "Energy", "kJ", "Cost",
           "energy of the GPU over the trial, median over trials", "median", 1e-3, 1, shown="filled"),
)
# fmt: on
BY_KEY = {column.key: column for column in COLUMNS}


@dataclass(frozen=True)
class Aside:
    """A number beside the headline: in a column of its own per dataset, where there is one, and never ranked."""

    key: str
    """Field of result.json's `metrics`."""
    title: str
    meaning: str


BEST_ON_TEST = "the best of all epochs, chosen on the very test split it is measured on, and so too high"
ASIDES: tuple[Aside, ...] = (
    Aside(
        INSTANCE_MIOU.mean_key,
        INSTANCE_MIOU.mean_title,
        "mean over categories of the mean over their shapes: rare categories count as much as frequent ones",
    ),
    Aside(ACCURACY.best_on_test, "⚠ best on test", f"the papers' number: {BEST_ON_TEST}"),
    Aside(INSTANCE_MIOU.best_on_test, "⚠ best on test", f"the papers' instance mIoU: {BEST_ON_TEST}"),
    Aside(
        ACCURACY.vote,
        "by vote",
        "accuracy of scores averaged over several passes with random points and the training augmentation",
    ),
)
CHOSEN_ON_TEST = {headline.best_on_test for headline in HEADLINES.values()}
VOTES = {headline.vote for headline in HEADLINES.values()}


def percent(fraction: float) -> str:
    """A fraction as percent with one decimal, without the sign: 74.8."""
    return f"{100 * fraction:.1f}"


def points(difference: float) -> str:
    """A difference of fractions in percentage points, signed: +1.4."""
    return f"{100 * difference + 0.0:+.1f}"


def mean_and_sd(summary: Summary) -> str:
    """`74.8 ± 1.4`, or `74.8` for one value."""
    return percent(summary.mean) if summary.sd is None else f"{percent(summary.mean)} ± {percent(summary.sd)}"


def n_and_interval(summary: Summary, *, separator: str = " · ") -> str:
    """`n 3 · 71.3–78.3`: seeds and the 95 % interval in percent."""
    text = f"n {summary.n}"
    if summary.interval is None:
        return text
    return f"{text}{separator}{percent(summary.interval.low)}{NOTHING}{percent(summary.interval.high)}"


def beside(summary: Summary, votes: Sequence[int]) -> str:
    """An aside's score, its seeds and, for a vote, its passes: `75.2 ± 1.3 (n 3, 10 passes)`."""
    passes = f", {'/'.join(map(str, votes))} passes" if votes else ""
    return f"{mean_and_sd(summary)} (n {summary.n}{passes})"


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
