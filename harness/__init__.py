"""Fair, fast comparison of parameter-efficient fine-tuning methods for pre-trained point-cloud models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.export import load_exported
    from harness.importing.loading import load_model
    from harness.trained import TrainedModel, TrainedTrial, load_trial

__version__ = "0.1.0"
__all__ = ["TrainedModel", "TrainedTrial", "load_exported", "load_model", "load_trial"]
PLACES = {"load_exported": "harness.export", "load_model": "harness.importing.loading"}


def __getattr__(name: str) -> Any:
    """What brings torch, which `import harness` must not, when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(PLACES.get(name, "harness.trained")), name)
