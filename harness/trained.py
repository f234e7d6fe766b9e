"""A trained model, ready to use, and how to get a finished trial's: `from harness import load_trial`.

    TRIAL's folder -> result.json says what ran -> base weights + adapter -> model -> classes of new clouds

Only the trial's folder, the base weights and the plug-ins of its method and backbone are needed: no dataset, no suite.
What was recorded when the trial ran (digests, versions) is held against what is here, so that a model is the one that
the report speaks of, or an error says why it cannot be.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError
from torch import Tensor

from harness import registry
from harness.adapter import Advice, load_adapter, read_card
from harness.atomic import read_json
from harness.data.dataset import Declaration
from harness.data.reading import read_files
from harness.data.sampling import test_points
from harness.data.splits import EVALUATION_BATCH
from harness.errors import UserError
from harness.evaluation import OneProcess, precision_on
from harness.models.head import Classifier, Headed
from harness.models.weights import data_root
from harness.result import Result
from harness.store import Store
from harness.tasks import Outcome, task_of
from harness.tasks.definition import listed
from harness.trial import Trial, identity_of
from harness.trial_folder import ADAPTER, ADAPTER_CARD, ADAPTER_HEAD, TrialFolder

FILES = {"adapter": ADAPTER, "head": ADAPTER_HEAD}
"""The files that hold tensors, by the names of their digests."""
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class FilePrediction:
    """What a file came to: probabilities, or the reason of its refusal."""

    path: Path
    probabilities: Tensor | None = None
    """(n, K) float64, a row per cloud in the file: one, but for .npy and .h5 files that hold several."""
    refused: str | None = None


@dataclass(frozen=True)
class TrainedModel(ABC):
    """A trained model: a trial's, or an imported one. `predict` and `embed` are for classes of whole clouds."""

    model: Headed
    """In evaluation mode: points (B, N, 3) float32 on its device -> scores (B, K) before the softmax. It takes the
    points as they are; `predict` chooses among them first, as the trial's evaluation did. One for part segmentation
    takes points and categories (B,) int64 -> scores (B, N, parts)."""
    classes: tuple[str, ...]
    """Names of the K classes, in the order of the scores; for part segmentation, of the categories."""
    trial: Trial
    """Method, backbone and data as the model has them. The dataset is a declaration: its clouds may be elsewhere."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What it goes by: a trial's identity, an imported model's name."""

    @property
    @abstractmethod
    def title(self) -> str:
        """For people: what it is."""

    @property
    @abstractmethod
    def told(self) -> dict[str, float]:
        """Headline numbers on its own dataset, 0 to 1, by who says so."""

    @property
    def classifier(self) -> Classifier:
        """The model, where it tells classes of clouds. Raises UserError where it does not."""
        if not isinstance(self.model, Classifier):
            task = self.trial.dataset.task
            raise UserError(
                f"{self.name} ({self.title}) is for {task}: it tells no class of a cloud, and needs more than points; "
                "`harness evaluate` judges it, and docs/use_a_trained_model.md says how to call it from Python"
            )
        return self.model

    @property
    def points(self) -> int:
        """Points per cloud that the encoder sees; clouds hold as many or more."""
        count = self.trial.data.points
        assert count is not None
        return count

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def predict(self, points: Tensor | npt.ArrayLike) -> Tensor:
        """Class probabilities of clouds: (N, 3) or (B, N, 3) real numbers -> (B, K) float64 on the CPU.

        Clouds are taken as they are, so bring them as the dataset has them: the same vertical axis, and mean zero and
        radius 1 where it is normalised (`predict_files` sees to that). Of N points the encoder sees those that the
        trial's evaluation would choose, in the trial's precision. Raises ValueError for other shapes, fewer points
        than `points`, NaN and infinity.
        """
        return self._batched(self.classifier, points).double().softmax(1)

    def embed(self, points: Tensor | npt.ArrayLike) -> Tensor:
        """What the head sees of clouds: (N, 3) or (B, N, 3) -> (B, F) float32 on the CPU. Otherwise as `predict`."""
        return self._batched(self.classifier.features, points)

    def predict_files(self, paths: Sequence[str | Path]) -> list[FilePrediction]:
        """Class probabilities of the clouds in files (.ply .off .obj .xyz .npy .h5), in the files' order.

        A file is read as `harness data import` reads one, and normalised where the trial's dataset is: so many points
        as a cloud of that dataset has, or all when there are fewer, but at least `points`. It is read in a process of
        its own. A file that cannot be used is refused with a reason, and the others are predicted.
        """
        _ = self.classifier  # or nothing need be read
        files = [Path(path) for path in paths]
        dataset = self.trial.dataset
        outcomes = list(read_files(files, points=dataset.points, least=self.points, normalised=dataset.normalised))
        clouds = {index: outcome for index, outcome in enumerate(outcomes) if not isinstance(outcome, str)}
        found: dict[int, Tensor] = {}
        for size in sorted({cloud.shape[1] for cloud in clouds.values()}):  # one batch needs one number of points
            alike = [index for index, cloud in clouds.items() if cloud.shape[1] == size]
            probabilities = self.predict(np.concatenate([clouds[index] for index in alike]))
            found |= zip(alike, probabilities.split([len(clouds[index]) for index in alike]), strict=True)
        return [
            FilePrediction(path, refused=outcome) if isinstance(outcome, str) else FilePrediction(path, found[index])
            for index, (path, outcome) in enumerate(zip(files, outcomes, strict=True))
        ]

    def evaluate(self, dataset: str | None = None) -> Outcome:
        """The model on the test split of a dataset, its own when none is named, as a trial's end evaluates.

        Raises UserError when the clouds are not here, hold fewer points than the model sees, or have other classes.
        """
        declared: Declaration = registry.get("datasets", dataset or self.trial.dataset.name)
        if self.trial.fold is not None and declared.folds:
            declared = declared.with_fold(self.trial.fold)
        if task_of(declared) is not task_of(self.trial.dataset):
            raise UserError(f"dataset '{declared.name}' is for {declared.task}; the model, {self.trial.dataset.task}")
        if declared.classes != self.classes:
            raise UserError(
                f"dataset '{declared.name}' has other classes than the model: {listed(declared.classes)}; "
                f"the model tells {listed(self.classes)}"
            )
        if declared.points < self.points:
            raise UserError(
                f"dataset '{declared.name}' has {declared.points} points per cloud; the model sees {self.points}"
            )
        if problem := declared.missing(data_root()):
            raise UserError(problem)
        task = task_of(declared)
        test = task.load_test(declared, self.device)
        return task.evaluate(self.model, test, self.trial, OneProcess(self._precision))

    @torch.no_grad()
    def _batched(self, function: Callable[[Tensor], Tensor], points: Tensor | npt.ArrayLike) -> Tensor:
        """A function of what the encoder sees of clouds, in batches as evaluation makes them; float32 on the CPU."""
        found = []
        for batch in self._clouds(points).split(EVALUATION_BATCH):
            seen = test_points(batch.to(self.device), self.points, self.trial.data.sampling)
            with self._precision():
                found.append(function(seen).float().cpu())
        return torch.cat(found)

    def _clouds(self, points: Tensor | npt.ArrayLike) -> Tensor:
        """(B, N, 3) float32. Raises ValueError for what is no cloud for this model."""
        array = points.detach().cpu().numpy() if isinstance(points, Tensor) else np.asarray(points)
        if array.dtype.kind not in "fiu":
            raise ValueError(f"points are real numbers, got {array.dtype}")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused below
            clouds = torch.from_numpy(np.array(array[None] if array.ndim == 2 else array, dtype=np.float32))
        if clouds.ndim != 3 or clouds.shape[2] != 3 or not len(clouds):
            raise ValueError(f"points have shape (N, 3) or (B, N, 3), got {array.shape}")
        if clouds.shape[1] < self.points:
            raise ValueError(f"the model needs {self.points} points per cloud, got {clouds.shape[1]}")
        if not clouds.isfinite().all():
            raise ValueError("points hold NaN or infinite coordinates")
        return clouds

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """The trial's own; but 16-bit floats of a GPU are 32-bit ones on a CPU, which is not made for them."""
        precision = precision_on(self.device, self.trial.resources.precision)
        if precision == "fp32" or (precision == "fp16" and self.device.type == "cpu"):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=PRECISIONS[precision])


@dataclass(frozen=True)
class TrainedTrial(TrainedModel):
    """The trained model of a trial; `load_trial` makes one."""

    result: Result
    """What the trial came to, as result.json holds it."""

    @property
    def name(self) -> str:
        """The trial's identity."""
        return self.result.id

    @property
    def title(self) -> str:
        """`lora point_mae sweethome12 seed 0`."""
        return self.trial.name

    @property
    def told(self) -> dict[str, float]:
        """What the trial's result says."""
        return {} if self.result.score is None else {"recorded": self.result.score}

    @property
    def spec(self) -> dict[str, Any]:
        """The trial's resolved specification."""
        return self.result.spec


def load_trial(
    trial: str | Path, *, output: str | Path = "results", device: str | torch.device = "cpu"
) -> TrainedTrial:
    """The trained model of a finished trial, for clouds of your own.

    `trial` is the path of a trial's folder, wherever it was copied to; or a trial's identity, or the beginning of one
    that no other has, in the output folder of its run (`harness plan SUITE --json` lists them).

    Raises UserError when there is no such trial, or several; it is not done, is a baseline, or kept no adapter; when a
    file is damaged or not the recorded one; and when the base weights, or the method's or backbone's plug-in, are not
    here or are others.
    """
    place = usable_device(device)
    path = _find(trial, Path(output))
    result = _result(path)
    card = read_card(path / ADAPTER_CARD)
    if (card.trial, card.spec, card.base_weights) != (result.id, result.spec, result.digests.get("weights")):
        raise UserError(f"{path / ADAPTER_CARD}: is not of trial {result.id}; get the whole folder again")
    files = {path / file: result.digests.get(name) for name, file in FILES.items()}
    method = result.spec["method"]["name"]
    advice = Advice(
        what=f"trial {result.id} ({path})",
        vouching="result.json",
        absent="the suite says `keep: none`, or it was removed; say `keep: adapter` and run the trial again into "
        "another --output",
        again="get it again, or run the trial again into another --output",
        made_on="was trained on",
        base="put those in place that it was trained on",
        changed=f"method '{method}' or the harness has changed since then, without saying so in its version",
    )
    resolved, attached = load_adapter(card, result.spec, files, advice)
    return TrainedTrial(attached.model.to(place).eval(), card.classes, resolved, result)


def usable_device(name: str | torch.device) -> torch.device:
    """A device by name. Raises UserError when it cannot be used here."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise UserError(f"device '{name}' cannot be used here: {reason}; 'cpu' always can") from None
    return device


def _find(trial: str | Path, output: Path) -> Path:
    """The folder of a trial. Raises UserError when there is none, or more than one."""
    path, text = Path(trial), str(trial)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path}: is a file; name the folder of a trial, or its identity")
    if isinstance(trial, Path) or "/" in text:
        raise UserError(f"{path}: no such folder; name the folder of a trial, or its identity")
    return Store(output).find(text).path


def _result(path: Path) -> Result:
    """The result of a trial that is done and trained something. Raises UserError when it is not."""
    file = path / "result.json"
    if not file.exists():
        running = TrialFolder(path).running() is not None
        why = "the trial is still running" if running else "no trial has finished here; name the folder of a trial"
        raise UserError(f"{file}: no such file; {why}")
    try:
        result = Result.model_validate(read_json(file))
    except ValidationError:
        raise UserError(f"{file}: damaged; get it again, or `harness run` the suite again") from None
    if identity_of(result.spec) != result.id:
        raise UserError(f"{file}: damaged: its specification is not that of trial {result.id}; get it again")
    if result.status != "done":
        said = (result.error or "no reason is known").strip().splitlines()[0]
        retry = "" if result.unfinished else f" --retry {result.status}"
        raise UserError(
            f"trial {result.id} ({path}) ended as {result.status}: {said}\n- to run it again: harness run SUITE{retry}"
        )
    if "baseline" in result.spec:
        raise UserError(
            f"trial {result.id} ({path}) is the baseline '{result.spec['baseline']}', which trains nothing; "
            "choose the trial of a method"
        )
    return result
