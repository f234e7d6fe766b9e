"""What can be learnt from a dataset: one definition per task, found by the task that the dataset declares."""

from __future__ import annotations

from typing import Any

from harness.data.dataset import Declaration
from harness.tasks.classification import Classification
from harness.tasks.definition import Batch, Outcome, Splits, TaskDefinition
from harness.tasks.part_segmentation import PartSegmentation

__all__ = ["TASKS", "Batch", "Outcome", "Splits", "TaskDefinition", "task_of"]

TASKS: dict[str, TaskDefinition[Any]] = {task.name: task for task in (Classification(), PartSegmentation())}
"""By name."""


def task_of(dataset: Declaration) -> TaskDefinition[Any]:
    """The task of a dataset. Raises KeyError for one that no suite trains on (suites refuse those)."""
    return TASKS[dataset.task]
