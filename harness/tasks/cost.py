"""What training costs, and nothing else: memory, time and FLOPs of a classification that has nothing to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from harness.data.dataset import Declaration, combined_digest
from harness.data.splits import Split
from harness.data.synthetic import Synthetic
from harness.evaluation import Evaluation, Processes
from harness.models.head import Headed
from harness.result import Metrics
from harness.tasks.classification import Classification
from harness.trial import Trial


class Cost(Classification):
    """Trains as classification does, on a GPU; without one a trial is only predicted. Its results have no score."""

    name: ClassVar[str] = "cost"
    baselines: ClassVar[bool] = False
    needs_gpu: ClassVar[bool] = True

    def problems(self, trial: Trial) -> list[tuple[str, str]]:
        """Nothing can be chosen by a score that there is not."""
        found = super().problems(trial)
        if trial.protocol.selection != "last":
            found.append(("protocol.selection", f"{trial.protocol.selection}: random clouds have no score; use last"))
        if trial.protocol.vote:
            found.append(("protocol.vote", "random clouds have no score; use 0"))
        return found

    def digest(self, dataset: Declaration) -> str:
        """Of what the clouds follow from."""
        assert isinstance(dataset, Synthetic)
        return combined_digest(dataset, dataset)

    def evaluate(self, model: Headed, split: Split, trial: Trial, processes: Processes) -> Evaluation:
        """Its time and memory; what the answers are worth is not told."""
        return _Unscored(**vars(super().evaluate(model, split, trial, processes)))


@dataclass(frozen=True)
class _Unscored(Evaluation):
    """Answers to random clouds."""

    def metrics(self) -> Metrics:
        return Metrics()
