"""The memory figure: lines of trials that differ in nothing but the batch size."""

from typing import Any

from harness.result import Memory, Result
from harness.store import Entry
from reports.figures import batches


def entry(method: str, batch: int, size: int | None, *, points: int = 2048, label: str = "", **changes: Any) -> Entry:
    spec = {"train": {"batch_size": batch}, "data": {"points": points}}
    memory = Memory(estimated=size, train_peak=changes.get("peak"))
    result = Result(id="0" * 16, spec=spec, status=changes.get("status", "done"), task="cost", memory=memory)
    return Entry("0" * 16, method, label or f"batch_{batch}", "synthetic", 0, False, result)


def lines(entries: list[Entry]) -> dict[str, list[float]]:
    figure = batches.memory(entries)
    assert figure is not None
    return {
        str(line.get_label()): [*map(float, line.get_xdata()), *map(float, line.get_ydata())]
        for ax in figure.axes
        for line in ax.get_lines()
    }


def test_a_line_per_method_over_its_batch_sizes() -> None:
    found = lines(
        [
            entry("full", 64, 20 * 10**6),
            entry("full", 32, 10 * 10**6),
            entry("full", 32, 7 * 10**6, points=1024, label="points_1024"),
            entry("dapt", 32, 5 * 10**6),
            entry("dapt", 64, 8 * 10**6),
            entry("lora", 32, 5 * 10**6),
            entry("adapter", 32, None),
            entry("adapter", 64, 9 * 10**6),
        ]
    )
    assert found == {"full": [32, 64, 10, 20], "dapt": [32, 64, 5, 8]}


def test_a_panel_for_each_kind_of_memory_there_is() -> None:
    both = [entry("full", size, size * 10**6, peak=2 * size * 10**6) for size in (32, 64)]
    figure = batches.memory(both)
    assert figure is not None
    assert [ax.get_title(loc="left") or ax.get_title() for ax in figure.axes] == [
        "allocated on the GPU",
        "estimated, no GPU",
    ]


def test_nothing_to_draw() -> None:
    assert batches.memory([]) is None
    assert batches.memory([entry("full", 32, 1), entry("full", 64, 1, status="oom")]) is None
