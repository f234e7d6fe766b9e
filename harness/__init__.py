"""Fair, fast comparison of parameter-efficient fine-tuning methods for pre-trained point-cloud models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.export import load_exported
    from harness.trained import TrainedTrial, load_trial

__version__ = "0.1.0"
__all__ = ["TrainedTrial", "load_exported", "load_trial"]


def __getattr__(name: str) -> Any:
    """What brings torch, which `import harness` must not, when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module("harness.export" if name == "load_exported" else "harness.trained"), name)
