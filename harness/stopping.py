"""Ctrl-C once stops cleanly, twice at once; SIGTERM likewise."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

SHOW_CURSOR = "\x1b[?25h"


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Within, the first SIGINT or SIGTERM raises KeyboardInterrupt, and a second one ends the process on the spot.

    Nothing is lost by the second: whatever the run started dies with it, and finished results are on disk. Does
    nothing outside the main thread, where Python takes no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if seen:
            if sys.stderr.isatty():
                os.write(2, SHOW_CURSOR.encode())
            os._exit(128 + number)
        seen.append(number)
        os.write(2, b"\nstopping; once more stops at once\n")
        raise KeyboardInterrupt

    earlier = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
