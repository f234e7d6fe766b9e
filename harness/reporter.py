"""What a reporter is: results in, a file or a folder out. Found by entry points, as all plug-ins are.

A plain function `write(results, path)` is one, too: it writes `leaderboard.NAME` at the end of every run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.store import SuiteResults

if TYPE_CHECKING:
    from harness.one_trial import OneTrial


@dataclass(frozen=True)
class Reporter:
    """How one format is written, under which name, and when."""

    write: Callable[[SuiteResults, Path], None]
    file: str
    """Its file, or folder, in the report's folder."""
    after_run: bool = True
    """Whether a run writes it at its end; what takes seconds is left to `harness report`."""
    one_trial: Callable[[OneTrial, Path], None] | None = None
    """Writes a page of one trial, where the format has such: what `harness show trial --html` asks for."""

    def __call__(self, results: SuiteResults, path: Path) -> None:
        """Write it."""
        self.write(results, path)


def as_reporter(name: str, plugin: Any) -> Reporter:
    """The reporter of that name."""
    return plugin if isinstance(plugin, Reporter) else Reporter(plugin, f"leaderboard.{name}")
