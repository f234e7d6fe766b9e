"""What a run shows: a live table on a terminal, one line per event elsewhere. Only shows; decides nothing."""

from __future__ import annotations

import shlex
import statistics
import threading
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.result import Result
from harness.status import Cell, Status
from harness.store import Entry, Store, SuiteResults

if TYPE_CHECKING:
    from harness.trial import Trial  # that takes torch, for which somebody who asks for a status would wait


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def outcome(result: Result) -> str:
    """One trial's end in a few words."""
    if result.status == "done" and result.score is not None:
        return f"{result.headline.title} {100 * result.score:.1f} %"
    if result.status == "done":
        return "done"
    return f"{result.status}: {(result.error or '').splitlines()[0] if result.error else ''}"


MEMORIES = {"train_peak": "GPU (MB)", "estimated": "GPU, estimated (MB)"}
"""Columns of the short leaderboard, where there are such numbers."""


def leaderboard_table(results: SuiteResults) -> Table:
    """A short leaderboard for the terminal; the reports have the intervals and all the rest."""
    finished = [entry.result for entry in results.entries if entry.result is not None and entry.result.status == "done"]
    measures = " and ".join(sorted({result.headline.title for result in finished if result.score is not None}))
    datasets = list(dict.fromkeys(entry.dataset for entry in results.entries)) if measures else []
    memories = [key for key in MEMORIES if any(getattr(result.memory, key) is not None for result in finished)]
    title = f"{measures} in %, mean ± sd over seeds or folds" if measures else "costs"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    table.add_column("method")
    for dataset in datasets:
        table.add_column(dataset, justify="right")
    table.add_column("trainable", justify="right")
    for title in ("step (ms)", *(MEMORIES[key] for key in memories)):
        table.add_column(title, justify="right")
    rows: dict[tuple[bool, str, str], list[Entry]] = {}
    for entry in results.entries:
        rows.setdefault((entry.reference, entry.method, entry.backbone), []).append(entry)
    several = len({entry.backbone for entry in results.entries}) > 1
    for (reference, method, backbone), entries in rows.items():
        if all(entry.result is None for entry in entries):
            continue
        done = [entry.result for entry in entries if entry.result is not None and entry.result.status == "done"]
        counts = [result.parameters.trainable for result in done if result.parameters.trainable is not None]
        steps = [result.time.step for result in done if result.time.step is not None]
        table.add_row(
            Text(f"{method} ({backbone})" if several else method, style="dim" if reference else "bold"),
            *(_mean_and_deviation(entries, dataset) for dataset in datasets),
            f"{max(counts):,}" if counts else "–",
            f"{1000 * statistics.median(steps):.1f}" if steps else "–",
            *(_largest(done, key) for key in memories),
        )
    return table


def _largest(results: Sequence[Result], key: str) -> str:
    found = [size for result in results if (size := getattr(result.memory, key)) is not None]
    return f"{max(found) / 1e6:,.0f}" if found else "–"


def _mean_and_deviation(entries: Sequence[Entry], dataset: str) -> str:
    mine = [entry for entry in entries if entry.dataset == dataset]
    scores = [e.result.score for e in mine if e.result is not None and e.result.score is not None]
    if not scores:
        return "–"
    spread = f" ± {100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    missing = f" ({len(scores)}/{len(mine)})" if len(scores) < len(mine) else ""
    return f"{100 * statistics.mean(scores):.1f}{spread}{missing}"


def failure_lines(status: Status) -> list[Text]:
    """Failures by cause, with the commands that show one of each and that try them all again."""
    lines = []
    for cause in status.causes:
        many = f"{len(cause.entries)} x " if len(cause.entries) > 1 else ""
        lines.append(Text.assemble((f"{many}{cause.status}", "red"), f"  {cause.error}"))
        lines.append(Text(f"    {cause.names}: harness logs {cause.entries[0].id}{_elsewhere(status)}"))
    if status.retry:
        lines.append(Text(f"try again: {status.retry}"))
    return lines


def _elsewhere(status: Status) -> str:
    """The --output option of commands on the status's folder, where it is not the usual one."""
    at = status.command.index("--output") if "--output" in status.command else None
    folder = status.command[at + 1] if at is not None else "results"
    return "" if folder == "results" else f" --output {folder}"


def status_picture(*statuses: Status) -> Group:
    """Where suites stand: counts, a table of methods and datasets, what runs, what failed."""
    parts: list[Text | Table] = []
    for status in statuses:
        counts = ", ".join(f"{count} {state}" for state, count in status.statuses.items())
        left = f", about {duration(status.seconds_left)} left" if status.seconds_left is not None else ""
        parts.append(Text.assemble((status.suite, "bold"), f": {status.trials} trials: {counts}{left}"))
        parts.append(_status_table(status))
        for entry, lease in status.running:
            where = f"process {lease.pid} on {lease.host}"
            parts.append(Text(f"running   {entry.name}: epoch {lease.done}/{lease.epochs}, {where}  [{entry.id}]"))
        parts += failure_lines(status)
        if status.active and not status.running:
            parts.append(Text("a run goes on; no trial is running at the moment"))
        elif not status.active and not status.complete:
            parts.append(Text(f"no run goes on; this takes up what is left: {shlex.join(status.command)}"))
    return Group(*parts)


def _status_table(status: Status) -> Table:
    datasets = list(dict.fromkeys(dataset for _, _, dataset in status.cells))
    backbones = {backbone for _, backbone, _ in status.cells}
    table = Table(box=None, padding=(0, 2))
    table.add_column("method")
    for dataset in datasets:
        table.add_column(f"{dataset}\ndone  best", justify="right")
    for method, backbone in dict.fromkeys((method, backbone) for method, backbone, _ in status.cells):
        row = []
        for dataset in datasets:
            cell = status.cells.get((method, backbone, dataset))
            row.append(Text() if cell is None else _status_cell(cell))
        table.add_row(f"{method} ({backbone})" if len(backbones) > 1 else method, *row)
    return table


def _status_cell(cell: Cell) -> Text:
    return Text.assemble(
        (f"{cell.running} running  " if cell.running else "", "cyan"),
        (f"{cell.failed} failed  " if cell.failed else "", "red"),
        (f"{cell.done}/{cell.trials}", "green" if cell.done == cell.trials else ""),
        f"  {100 * cell.best:.1f} %" if cell.best is not None else "      –",
    )


class RunDisplay:
    """Follows the trials of a run. Use as a context manager; `started` and `finished` may come from any thread."""

    def __init__(self, trials: Sequence[Trial], *, store: Store, console: Console) -> None:
        self.trials, self.store, self.console = trials, store, console
        self.running: dict[str, Trial] = {}
        self.statuses: Counter[str] = Counter()
        self.scores: dict[tuple[str, str], list[float]] = {}
        self.began = time.monotonic()
        self.live: Live | None = None
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live = Live(get_renderable=self._picture, console=self.console, refresh_per_second=4)
            self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.__exit__(kind, value, trace)

    @property
    def elapsed(self) -> float:
        """Seconds since the display was made."""
        return time.monotonic() - self.began

    def started(self, trial: Trial) -> None:
        """A slot took the trial."""
        with self.lock:
            self.running[trial.identity] = trial
        if self.live is None:
            self.console.print(f"started   {trial.name}", highlight=False, markup=False)

    def finished(self, trial: Trial, result: Result) -> None:
        """The trial has its result."""
        with self.lock:
            self.running.pop(trial.identity, None)
            self.statuses[result.status] += 1
            if result.score is not None:
                cell = (trial.method_label, trial.dataset.name)
                self.scores.setdefault(cell, []).append(result.score)
        done = sum(self.statuses.values())
        if self.live is None or result.status != "done":
            line = f"finished  {trial.name}: {outcome(result)} [{done}/{len(self.trials)}, {self._left()}]"
            self.console.print(line, highlight=False, markup=False)

    def postponed(self, trial: Trial, why: str) -> None:
        """The trial left its slot without a result."""
        with self.lock:
            self.running.pop(trial.identity, None)
        self.console.print(f"later     {trial.name}: {why}", highlight=False, markup=False)

    def stopping(self) -> None:
        """Ctrl-C came."""
        with self.lock:
            self.running.clear()
        self.console.print("stopping; once more stops at once")

    def _left(self) -> str:
        done = sum(self.statuses.values())
        if not done:
            return "time left not known yet"
        elapsed = self.elapsed
        return f"about {duration(elapsed / done * (len(self.trials) - done))} left"

    def _picture(self) -> Group:
        with self.lock:
            running, statuses = list(self.running.values()), Counter(self.statuses)
            accuracies = {cell: list(values) for cell, values in self.scores.items()}
        done, total = sum(statuses.values()), len(self.trials)
        elapsed = self.elapsed
        rate = f"{60 * done / elapsed:.1f} trials/min" if done else "starting"
        failed = sum(count for status, count in statuses.items() if status != "done")
        head = Text.assemble(
            (f"{done}/{total} trials", "bold"),
            f"   {duration(elapsed)}   {rate}   {self._left()}",
            (f"   {failed} failed" if failed else "", "red"),
        )
        bar = Table.grid()  # a bare bar does not end its line
        bar.add_row(ProgressBar(total=total, completed=done, width=60))
        return Group(head, bar, self._cells(accuracies), self._slots(running))

    def _cells(self, accuracies: dict[tuple[str, str], list[float]]) -> Table:
        datasets = list(dict.fromkeys(trial.dataset.name for trial in self.trials))
        expected = Counter((trial.method_label, trial.dataset.name) for trial in self.trials)
        table = Table(box=None, padding=(0, 2))
        table.add_column("method")
        for dataset in datasets:
            table.add_column(dataset, justify="right")
        for method in dict.fromkeys(trial.method_label for trial in self.trials):
            cells = []
            for dataset in datasets:
                values, wanted = accuracies.get((method, dataset), []), expected[method, dataset]
                mean = f"{100 * sum(values) / len(values):.1f} %" if values else "–"
                cells.append(f"{mean}  {len(values)}/{wanted}" if wanted else "")
            table.add_row(method, *cells)
        return table

    def _slots(self, running: Sequence[Trial]) -> Table:
        table = Table(box=None, padding=(0, 2), show_header=False)
        for trial in running:
            lease = self.store.trial(trial.identity).lease()
            done, epochs = (lease.done, lease.epochs) if lease is not None else (0, 0)
            bar = ProgressBar(total=epochs or 1, completed=done, width=20)
            table.add_row("running", Text(trial.name), bar, f"epoch {done}/{epochs}" if epochs else "starting")
        return table
