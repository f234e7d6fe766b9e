"""What can be learnt from a dataset: one definition per task, found by the task that the dataset declares."""

from __future__ import annotations

from typing import Any

from harness.data.dataset import Declaration
from harness.tasks.classification import Classification
from harness.tasks.cost import Cost
from harness.tasks.definition import Batch, Outcome, Splits, TaskDefinition
from harness.tasks.part_segmentation import PartSegmentation

__all__ = ["TASKS", "Batch", "Outcome", "Splits", "TaskDefinition", "task_of"]

CLASSIFICATION = Classification()
TASKS: dict[str, TaskDefinition[Any]] = {
    "classification": CLASSIFICATION,
    "few-shot classification": CLASSIFICATION,
    "part segmentation": PartSegmentation(),
    "cost": Cost(),
}
"""By what datasets declare."""


def task_of(dataset: Declaration) -> TaskDefinition[Any]:
    """The task of a dataset. Raises KeyError for one that no suite trains on (suites refuse those)."""
    return TASKS[dataset.task]
