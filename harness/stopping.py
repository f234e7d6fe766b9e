"""Ctrl-C once stops cleanly, twice at once; SIGTERM likewise."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import psutil

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TWICE = 0.02
"""Seconds below which a second signal is the first one delivered to the process and to its group."""
SHOW_CURSOR = b"\x1b[?25h"


@contextlib.contextmanager
def stop_on_signals(announce: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Within, the first SIGINT or SIGTERM raises KeyboardInterrupt, and a second one ends the process on the spot.

    `announce` is called at once after the first, from another thread. Nothing is lost by the second: whatever the
    process started is killed with it, and finished results are on disk. Yields a function that takes the signals
    again when a library has taken them away. Does nothing outside the main thread, where Python takes no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    # A handler runs when the main thread gets back to Python, which may take seconds; a thread that reads the signals'
    # numbers from a pipe knows at once.
    receive, send = os.pipe()
    os.set_blocking(send, False)
    watcher = threading.Thread(target=_watch, args=(receive, announce), daemon=True)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    pipe_before = signal.set_wakeup_fd(send, warn_on_full_buffer=False)

    def take() -> None:
        for number in SIGNALS:
            signal.signal(number, _interrupt)

    take()
    watcher.start()
    try:
        yield take
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(pipe_before)
        os.close(send)
        watcher.join()
        os.close(receive)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _watch(receive: int, announce: Callable[[], None]) -> None:
    first: float | None = None
    begun: set[psutil.Process] = set()
    while number := os.read(receive, 1):
        if number[0] not in SIGNALS:
            continue
        if first is None:
            first = time.monotonic()
            begun = _descendants()  # an orderly end that is cut short leaves orphans
            with contextlib.suppress(Exception):  # nobody may be there to read it
                announce()
        elif time.monotonic() - first > TWICE:
            if sys.stderr.isatty():
                os.write(2, SHOW_CURSOR)
            for process in begun | _descendants():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            os._exit(128 + number[0])


def _descendants() -> set[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return set(psutil.Process().children(recursive=True))
    return set()
