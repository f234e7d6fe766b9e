"""What one trial came to: the typed content of result.json. Names and units are docs/protocol.md's."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from harness.headline import ACCURACY, HEADLINES, Headline

Status = Literal["done", "failed", "oom", "diverged", "timeout", "lost", "interrupted"]
UNFINISHED: tuple[Status, ...] = ("lost", "interrupted")
"""Results with these statuses say that the trial is still to be run."""


class Record(BaseModel):
    """A part of a result. Unknown keys of a newer harness are ignored when reading."""

    model_config = ConfigDict(extra="ignore")


class Metrics(Record):
    """Fractions 0 to 1 and counts (docs/protocol.md)."""

    accuracy: float | None = None
    class_accuracy: float | None = None
    correct: int | None = None
    total: int | None = None
    loss: float | None = None
    validation_accuracy: float | None = None
    accuracy_best_on_test: float | None = None
    accuracy_vote: float | None = None
    instance_miou: float | None = None
    class_miou: float | None = None
    point_accuracy: float | None = None
    category_miou: dict[str, float] | None = None
    """Mean over a category's shapes, by its name; categories without shapes are left out."""
    validation_instance_miou: float | None = None
    instance_miou_best_on_test: float | None = None


class Parameters(Record):
    """Counts by origin."""

    added: int | None = None
    unfrozen: int | None = None
    head: int | None = None
    trainable: int | None = None
    total: int | None = None


class Memory(Record):
    """Bytes; of a trial of several processes the largest of them, and in `_sum` all of them together."""

    train_peak: int | None = None
    train_reserved: int | None = None
    device: int | None = None
    eval_peak: int | None = None
    total_peak: int | None = None
    estimated: int | None = None
    host_peak: int | None = None
    train_peak_sum: int | None = None
    host_peak_sum: int | None = None
    retries: int | None = None
    """How often the CUDA allocator had to give cached memory back and try again: then peaks say less."""


class Time(Record):
    """Seconds; throughput in samples per second."""

    step: float | None = None
    data: float | None = None
    throughput: float | None = None
    evaluate: float | None = None
    latency: float | None = None
    """Of one cloud, forward."""
    latency_32: float | None = None
    """Of 32 clouds."""
    total: float | None = None
    startup: float | None = None


class Compute(Record):
    """FLOPs; joules."""

    flops_forward: int | None = None
    flops_train: int | None = None
    energy: float | None = None


class Storage(Record):
    """Bytes."""

    adapter: int | None = None


SECTIONS = ("metrics", "parameters", "memory", "time", "compute", "storage")
"""The parts of a result that hold its numbers."""


class Result(Record):
    """What one trial came to. A failure is a result too. Where a value is null, `reasons` says why."""

    format: Literal[1] = 1
    id: str
    spec: dict[str, Any]
    status: Status
    task: str = "classification"
    """Of the dataset; says which metrics there are (harness.headline)."""
    metrics: Metrics = Metrics()
    parameters: Parameters = Parameters()
    memory: Memory = Memory()
    time: Time = Time()
    compute: Compute = Compute()
    storage: Storage = Storage()
    environment: dict[str, Any] = {}
    digests: dict[str, str] = {}
    """SHA-256 of the data, weights and final trainable state really used."""
    attempts: list[dict[str, Any]] = []
    """One entry per attempt: started, ended, status, error."""
    error: str | None = None
    reasons: dict[str, str] = {}

    @property
    def crowded(self) -> bool:
        """Out of memory on a part of a GPU: that says nothing of what it does with a whole one."""
        return self.status == "oom" and bool(self.environment.get("gpu_share"))

    @property
    def unfinished(self) -> bool:
        """Whether the trial is still to be run."""
        return self.status in UNFINISHED or self.crowded

    @property
    def on_a_shared_gpu(self) -> bool:
        """Whether others were on its GPU: trials of the harness (`gpus: shared`), or whoever was there before it."""
        return bool(self.environment.get("gpu_share") or self.environment.get("gpu_busy"))

    @property
    def for_costs(self) -> bool:
        """Whether it is done, and was never to have a score."""
        return self.status == "done" and not self.headline.scored

    @property
    def headline(self) -> Headline:
        """What results of this task are judged by; those of a task of a newer harness, by their accuracy."""
        return HEADLINES.get(self.task, ACCURACY)

    @property
    def score(self) -> float | None:
        """The headline number."""
        value: float | None = getattr(self.metrics, self.headline.key, None)
        return value


def trial_name(method: str, backbone: str, dataset: str, *, seed: int, fold: int | None = None) -> str:
    """For people: `lora point_mae sweethome12 seed 0`, with the fold where the dataset has some."""
    return f"{method} {backbone} {dataset} seed {seed}" + (f" fold {fold}" if fold is not None else "")
