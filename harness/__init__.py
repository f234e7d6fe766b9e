"""Fair, fast comparison of parameter-efficient fine-tuning methods for pre-trained point-cloud models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.trained import TrainedTrial, load_trial

__version__ = "0.1.0"
__all__ = ["TrainedTrial", "load_trial"]


def __getattr__(name: str) -> Any:
    """`load_trial` when it is asked for: it brings torch, which `import harness` must not."""
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from harness import trained

    return getattr(trained, name)
