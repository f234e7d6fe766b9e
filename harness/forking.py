"""Starting a process from the fork server without running the main script again."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

_LOCK = threading.Lock()


@contextlib.contextmanager
def without_main() -> Iterator[None]:
    """Hide the main script while processes start.

    They would import it: a Ray worker's costs half a second, and a user's may have no guard and run all over again. One
    thread at a time.
    """
    with _LOCK:
        main: dict[str, Any] = vars(sys.modules["__main__"])
        hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
        main["__spec__"] = None
        try:
            yield
        finally:
            del main["__spec__"]
            main.update(hidden)
