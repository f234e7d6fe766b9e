"""One trial as lines of text, for `harness show trial`. What files say is made printable, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.one_trial import OneTrial
from harness.result import Result
from harness.text import flatten, printable

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40
"""Characters of a curve."""
ERROR_LINES = 12
NUMBERS = {
    "parameters.trainable": ("trainable parameters", 1.0, "{:,.0f}"),
    "parameters.total": ("of all", 1.0, "{:,.0f}"),
    "memory.train_peak": ("GPU peak", 1e-6, "{:,.0f} MB"),
    "memory.estimated": ("GPU peak, estimated", 1e-6, "{:,.0f} MB"),
    "memory.host_peak": ("host peak", 1e-6, "{:,.0f} MB"),
    "time.step": ("step", 1e3, "{:.1f} ms"),
    "time.total": ("whole trial", 1.0, "{:,.0f} s"),
    "storage.adapter": ("adapter", 1e-3, "{:,.1f} KB"),
}
"""Of a result: the words, the factor and the format."""


def trial_lines(trial: OneTrial) -> Iterator[str]:
    """What there is to tell, by section."""
    yield printable(f"{trial.entry.name}  ({trial.entry.id})")
    yield from _outcome(trial)
    yield from _curves(trial)
    yield from _mistakes(trial)
    if trial.spec:
        yield "\nconfiguration"
        yield from (printable(f"  {key}: {value}") for key, value in flatten(trial.spec).items())


def _outcome(trial: OneTrial) -> Iterator[str]:
    result = trial.result
    if trial.status == "running" and trial.done is not None:
        yield f"running: {trial.done[0]} of {trial.done[1]} epochs done"
        return
    if result is None:
        yield "no result: it has not run to its end, and nothing works on it now; `harness run` of its suite does it"
        return
    if result.status != "done":
        lines = (result.error or "no reason is known").strip().splitlines()
        yield printable(f"{result.status}: {lines[0] if lines else ''}")
        yield from (printable(f"  {line}") for line in lines[1:][-ERROR_LINES:])
        yield f"  its log: harness logs {trial.entry.id}"
    else:
        yield f"done: {', '.join(_scores(result)) or 'a trial for its costs, without a score'}"
    numbers = [text for key in NUMBERS if (text := _number(result, key))]
    if numbers:
        yield ", ".join(numbers)


def _scores(result: Result) -> Iterator[str]:
    headline, metrics = result.headline, result.metrics
    for key, title in ((headline.key, headline.title), (headline.mean_key, headline.mean_title)):
        value = getattr(metrics, key, None)
        if value is not None:
            counted = f" ({metrics.correct} of {metrics.total})" if key == headline.key and headline.counted else ""
            yield f"{title} {100 * value:.2f} %{counted}"
    for key, words in ((headline.best_on_test, "best on test"), (headline.vote, "by vote")):
        value = getattr(metrics, key, None)
        if value is not None:
            yield f"{words} {100 * value:.2f} %"


def _number(result: Result, key: str) -> str | None:
    part, _, name = key.partition(".")
    value = getattr(getattr(result, part), name)
    words, factor, shape = NUMBERS[key]
    return f"{words} {shape.format(value * factor)}" if value is not None else None


def _curves(trial: OneTrial) -> Iterator[str]:
    curves = {name: [value for _, value in curve] for name, curve in trial.curves.items() if len(curve) > 1}
    if not curves:
        return
    yield "\ncurves"
    longest = max(map(len, curves))
    for name, values in curves.items():
        name = printable(name).ljust(longest)
        yield f"  {name}  {values[0]:.4g} {sparkline(values)} {values[-1]:.4g}  ({len(values)} epochs)"


def sparkline(values: Sequence[float]) -> str:
    """A curve as blocks, lowest to highest; of long ones evenly spaced values."""
    if len(values) > WIDTH:
        values = [values[round(k * (len(values) - 1) / (WIDTH - 1))] for k in range(WIDTH)]
    low, high = min(values), max(values)
    if high == low:
        return BLOCKS[0] * len(values)
    return "".join(BLOCKS[min(7, int(8 * (value - low) / (high - low)))] for value in values)


def _mistakes(trial: OneTrial) -> Iterator[str]:
    if trial.confused:
        yield "\nmost often confused"
        for pair in trial.confused:
            names = f"{trial.class_name(pair.true)} taken for {trial.class_name(pair.predicted)}"
            yield printable(f"  {pair.items:>4}  {names}")
    if trial.wrong:
        yield f"\n{_title(trial)}"
        for wrong in trial.wrong:
            words = trial.class_name(wrong.true)
            if wrong.predicted is not None:
                words += f" taken for {trial.class_name(wrong.predicted)}"
            words += f", {100 * wrong.confidence:.1f} % sure" if wrong.confidence is not None else ""
            words += f", mIoU {100 * wrong.miou:.1f} %" if wrong.miou is not None else ""
            yield printable(f"  item {wrong.item}: {words}")
    elif trial.status == "done" and trial.predictions is None and trial.result is not None and trial.result.score:
        yield "\nits predictions are not here (predictions.npz): what it got wrong cannot be told"
    elif trial.status == "done" and trial.predictions is not None:
        yield "\nit got everything right"


def _title(trial: OneTrial) -> str:
    if trial.count is None:
        return "clouds with the smallest mIoU"
    sure = any(wrong.confidence is not None for wrong in trial.wrong)
    order = "those it was surest of" if sure else "those of frequent mistakes (how sure it was is not stored)"
    return f"{len(trial.wrong)} of {trial.count} wrong items, {order} first"
