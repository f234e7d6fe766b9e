"""Memory against the batch size, a line per method: the papers' memory figure, of the suite `cost` above all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure

from harness.result import Result
from harness.store import Entry
from reports.figures.style import COLOURS, DASHES, EDGE, MARKERS, grid, legend_below, log_x, log_y, short
from reports.provenance import section

KINDS = {
    "train_peak": "allocated on the GPU",
    "train_reserved": "reserved on the GPU",
    "estimated": "estimated, no GPU",
}
"""Panels, where there are such numbers: fields of result.json's `memory`."""
MB = 1e6

Lines = dict[str, dict[int, int]]
"""By method: bytes at each batch size."""


def memory(entries: Iterable[Entry]) -> Figure | None:
    """A panel per kind of memory; None where no method has two batch sizes."""
    results = [
        (entry.method, entry.result)
        for entry in entries
        if entry.result is not None and entry.result.status == "done" and not entry.reference
    ]
    panels = {kind: lines for kind in KINDS if (lines := _lines(results, kind))}
    if not panels:
        return None
    figure, axes = grid(len(panels), height=3.3, width=4.2)
    methods = sorted({method for lines in panels.values() for method in lines})
    for ax, (kind, lines) in zip(axes, panels.items(), strict=True):
        for method, sizes in sorted(lines.items()):
            number = methods.index(method)
            ax.plot(
                list(sizes),
                [size / MB for size in sizes.values()],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                linestyle=DASHES[number % len(DASHES)],
                markersize=5,
                **EDGE,
                label=short(method),
            )
        batches = sorted({batch for sizes in lines.values() for batch in sizes})
        values = [size / MB for sizes in lines.values() for size in sizes.values()]
        log_x(ax, batches)
        ax.set_xticks(batches, [str(batch) for batch in batches])
        log_y(ax, min(values), max(values))
        ax.set_title(KINDS[kind])
        ax.set_xlabel("batch size (log)")
        ax.set_ylabel("peak of training, MB (log)")
    legend_below(figure, axes)
    return figure


def _lines(results: list[tuple[str, Result]], kind: str) -> Lines:
    """Of trials that differ in batch size only; of several with one size the largest."""
    found: dict[str, dict[str, dict[int, int]]] = {}
    for method, result in results:
        size, batch = getattr(result.memory, kind), section(result.spec, "train").get("batch_size")
        if size is not None and isinstance(batch, int):
            sizes = found.setdefault(method, {}).setdefault(_apart_from_batch(result.spec), {})
            sizes[batch] = max(size, sizes.get(batch, 0))
    longest = {method: max(by.values(), key=len) for method, by in found.items()}
    return {method: dict(sorted(sizes.items())) for method, sizes in longest.items() if len(sizes) > 1}


def _apart_from_batch(spec: Any) -> str:
    kept = {key: section(spec, key) for key in ("data", "dataset", "resources", "backbone")}
    return str(sorted((key, sorted((k, str(v)) for k, v in part.items())) for key, part in kept.items()))
