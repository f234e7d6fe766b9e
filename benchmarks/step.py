"""What one training step costs: `python -m benchmarks.step --method dapt --batch 32 [--threads 1] [--json]`.

A fresh process builds a model with random weights and trains it on noise of the right shape; nothing else runs in it,
so its high-water mark of memory is that of training. After every step the same process multiplies 4096 x 1536 by
1536 x 1536 in fp32: the yardstick of the machine, taken in the same minutes. Cost is step seconds times the yardstick's
GFLOP/s, so it compares across machines; the share is how much of the yardstick's speed a whole step reaches. Where
other work has the cores, CPU seconds say more of both (`cpu_cost`, `cpu_share`).

`--against OPTIONS` compares two settings: their processes take their steps in turn, one at a time, so that both see
the same noise. OPTIONS are what the other differs in, another checkout of this repository included:

    python -m benchmarks.step --method dapt --against "--method full"
    python -m benchmarks.step --method dapt --against "--checkout ../before"

On a GPU stages are those of a step of their own, as taking their times means waiting for the device.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
YARDSTICK = (4096, 1536, 1536)
"""Rows, inner, columns."""
STAGES = ("grouping", "tokenizer", "blocks", "head", "backward", "optimiser")
DATASET = "scanobjectnn_pb_t50_rs"
"""Its declaration alone: 15 classes, 11,416 training clouds, which some methods remember."""


def arguments() -> argparse.ArgumentParser:
    """The options, each with the papers' value as its default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--method", default="dapt")
    parser.add_argument("--settings", default="{}", help="the method's own, as JSON")
    parser.add_argument("--backbone", default="point_mae")
    parser.add_argument("--preset", default="base")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--points", type=int, help="per cloud; the backbone's own number unless given")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--frozen-batchnorm", choices=("batch", "running"), default="batch")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--activation-checkpointing", action="store_true", help="blocks run again in the backward pass")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--allocation", type=int, choices=(0, 1), default=1, help="memory as harness.launch gets it: 1")
    parser.add_argument("--checkout", default=str(HERE.parents[1]), help="whose harness and methods are measured")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--allocator", action="store_true", help="also the CPU allocator's peak, by torch's profiler")
    parser.add_argument("--predict", action="store_true", help="also the predicted peak (not of older checkouts)")
    parser.add_argument("--against", metavar="OPTIONS", help="take turns with another setting, and give the ratios")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Measure one setting or two, and print what was found."""
    parser = arguments()
    chosen = parser.parse_args()
    if chosen.worker:
        work(chosen)
        return
    settings = [chosen]
    if chosen.against:
        settings.append(parser.parse_args(shlex.split(chosen.against), namespace=copy.copy(chosen)))
    with_workers = [Worker(setting) for setting in settings]
    try:
        found = measure(with_workers, steps=chosen.steps)
    finally:
        for worker in with_workers:
            worker.end()
    ratios = compare(*found) if len(found) == 2 else None
    if chosen.json:
        print(json.dumps(found[0] if ratios is None else {"first": found[0], "other": found[1], "ratios": ratios}))
    else:
        print(table(found, ratios))


# In the process that is asked


class Worker:
    """A process that takes one step whenever it is told to."""

    def __init__(self, setting: argparse.Namespace) -> None:
        from harness.launch import ALLOCATION  # here: a worker may have the harness of another checkout

        options = [
            f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
            for name, value in vars(setting).items()
            if value is not None and value is not False and name != "against"
        ]
        self.setting, threads = setting, str(setting.threads)
        environment = os.environ | {
            "PYTHONPATH": str(Path(setting.checkout).resolve()),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        environment |= ALLOCATION if setting.allocation else {}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE), "--worker", *options],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ready = self.heard()

    def heard(self) -> dict[str, Any]:
        """What it says next. Exits when it has ended instead; its own error is on the screen."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self.setting.method} ended without an answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, what: str) -> dict[str, Any]:
        """Its answer to `step` or `memory`."""
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self.heard()

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(workers: list[Worker], *, steps: int) -> list[dict[str, Any]]:
    """Steps of all in turn; of each the medians."""
    taken: list[list[dict[str, Any]]] = [[] for _ in workers]
    for _ in range(steps):
        for worker, rows in zip(workers, taken, strict=True):
            rows.append(worker.ask("step"))
    return [summary(worker, rows) for worker, rows in zip(workers, taken, strict=True)]


def summary(worker: Worker, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the table."""

    def median(key: str) -> float:
        return statistics.median(row[key] for row in rows)

    seconds, gflops, flops = median("step_time_s"), median("gemm_gflops"), worker.ready["flops_step"]
    setting = worker.setting
    return {
        "method": setting.method,
        "backbone": setting.backbone,
        "preset": setting.preset,
        "batch": setting.batch,
        "points": worker.ready["points"],
        "precision": setting.precision,
        "frozen_batchnorm": setting.frozen_batchnorm,
        "activation_checkpointing": setting.activation_checkpointing,
        "device": worker.ready["device"],
        "threads": setting.threads,
        "torch": worker.ready["torch"],
        "steps": len(rows),
        "step_time_s": seconds,
        "cpu_time_s": median("cpu_time_s"),
        "gemm_gflops": gflops,
        "cost": seconds * gflops,
        "cpu_cost": median("cpu_time_s") * median("gemm_cpu_gflops"),
        "flops_step": flops,
        "share": flops / 1e9 / seconds / gflops,
        "cpu_share": flops / 1e9 / (median("cpu_time_s") * median("gemm_cpu_gflops")),
        **worker.ask("memory"),
        "stages": medians(row["stages"] for row in rows),
        "stages_cpu": medians(row["stages_cpu"] for row in rows),
        "times": [row["step_time_s"] for row in rows],
    }


def medians(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Of each number its median over rows."""
    rows = list(rows)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def compare(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The first's numbers over the other's; time as the median over pairs of steps."""
    pairs = [a / b for a, b in zip(first["times"], other["times"], strict=True)]
    ratios: dict[str, Any] = {"step_time_s": statistics.median(pairs)}
    keys = ["cpu_time_s", "flops_step", *(key for key in first if key.endswith("_bytes"))]
    ratios |= {key: first[key] / other[key] for key in keys if first.get(key) and other.get(key)}
    return ratios


def table(found: list[dict[str, Any]], ratios: dict[str, Any] | None) -> str:
    """Markdown: one column per setting."""
    lines = ["| | " + " | ".join(f"{row['method']}, batch {row['batch']}" for row in found) + " |"]
    lines.append("|---" * (1 + len(found)) + "|")

    def line(name: str, say: Callable[[dict[str, Any]], str]) -> None:
        lines.append(f"| {name} | " + " | ".join(map(say, found)) + " |")

    line("step, s", lambda row: f"{row['step_time_s']:.3f}")
    line("of that CPU, s", lambda row: f"{row['cpu_time_s']:.3f}")
    for stage in found[0]["stages"]:
        line(
            f"- {stage}, s (CPU)",
            lambda row, stage=stage: f"{row['stages'][stage]:.3f} ({row['stages_cpu'].get(stage, 0):.3f})",
        )
    line("yardstick, GFLOP/s", lambda row: f"{row['gemm_gflops']:.1f}")
    line("cost, s x GFLOP/s", lambda row: f"{row['cost']:.0f}")
    line("cost by CPU seconds", lambda row: f"{row['cpu_cost']:.0f}")
    line("arithmetic, GFLOP", lambda row: f"{row['flops_step'] / 1e9:.1f}")
    line("share of the yardstick", lambda row: f"{row['share']:.1%}")
    line("share by CPU seconds", lambda row: f"{row['cpu_share']:.1%}")
    line("host memory's peak, GB", lambda row: f"{(row['peak_host_memory_bytes'] or 0) / 1e9:.2f}")
    for key, name in (
        ("peak_allocator_bytes", "allocator's peak"),
        ("peak_device_memory_bytes", "device memory's peak"),
        ("reserved_device_memory_bytes", "reserved"),
        ("predicted_memory_bytes", "predicted peak"),
    ):
        if found[0].get(key):
            line(f"{name}, GB", lambda row, key=key: f"{(row.get(key) or 0) / 1e9:.2f}")
    if ratios:
        lines += ["", "first / other: " + ", ".join(f"{name} {value:.3f}" for name, value in ratios.items())]
    return "\n".join(lines)


# In the process that trains


def work(chosen: argparse.Namespace) -> None:
    """Build, warm up, then take a step, or tell of memory, per line of stdin."""
    answers, sys.stdout = sys.stdout, sys.stderr
    bench = Bench(chosen)
    print(json.dumps(bench.ready), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps({"step": bench.timed, "memory": bench.memory}[line.strip()]()), file=answers, flush=True)


class Bench:
    """A model in training."""

    yardstick: tuple[Any, Any, Any] | None = None

    def __init__(self, chosen: argparse.Namespace) -> None:
        import torch

        from harness import registry
        from harness.build import set_training
        from harness.measure.flops import StepFlops
        from harness.optimizer import AdamW
        from harness.settings import Data, Protocol, Resources, Train
        from harness.tasks import task_of
        from harness.trial import Trial

        prepare = torch.set_num_threads
        if (Path(chosen.checkout) / "harness" / "processor.py").exists():  # older checkouts have none
            from harness.processor import prepare
        prepare(chosen.threads)
        torch.manual_seed(0)
        self.torch, self.chosen, self.device = torch, chosen, torch.device(chosen.device)
        backbone = registry.get("backbones", chosen.backbone)(preset=chosen.preset)
        self.trial = Trial(
            method_label=chosen.method,
            backbone_label=chosen.backbone,
            method_name=chosen.method,
            method=registry.get("methods", chosen.method).model_validate(json.loads(chosen.settings)).on(backbone),
            backbone_name=chosen.backbone,
            backbone=backbone,
            dataset=registry.get("datasets", DATASET),
            train=Train(batch_size=chosen.batch),
            protocol=Protocol(frozen_batchnorm=chosen.frozen_batchnorm),
            data=Data(points=chosen.points or backbone.default_points),
            # Older checkouts know no such setting.
            resources=Resources(activation_checkpointing=True) if chosen.activation_checkpointing else Resources(),
        )
        settings, self.task = self.trial.train, task_of(self.trial.dataset)
        encoder = backbone.build(drop_path=settings.drop_path)
        encoder.activation_checkpointing = chosen.activation_checkpointing
        self.attached = self.task.attach(
            self.trial, encoder, train_items=self.trial.dataset.train_items, head_dropout=settings.head_dropout
        )
        self.model = self.attached.model.to(self.device)
        set_training(self.model, frozen_batchnorm=chosen.frozen_batchnorm)
        self.optimizer = AdamW(self.attached.optimizer_groups(settings.weight_decay), lr=1e-4, fused=True)
        batch = self.task.random_batch(self.trial, chosen.batch)
        self.inputs = tuple(part.to(self.device) for part in batch.inputs)
        self.targets = batch.targets.to(self.device)
        self.clock, self.flops = Clock(self.now), StepFlops()
        self._watch()
        for _ in range(chosen.warmup):
            self.step()
        if self.flops.counted is None:  # no step of warming up
            self.step()
        self.ready = {
            "points": self.trial.data.points,
            "device": torch.cuda.get_device_name() if self.device.type == "cuda" else processor(),
            "torch": torch.__version__,
            "flops_step": self.flops.counted.train,
        }
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self.yardstick = self.factors()  # kept, as new memory takes time here

    def _watch(self) -> None:
        """Take the time of the encoder's three steps (of the instance that trains, not of copies) and of the head."""
        from harness.models.encoder import Encoder

        owner = next(part for part in self.model.modules() if isinstance(part, Encoder))
        for name, stage in (("patches", "grouping"), ("embed", "tokenizer"), ("transform", "blocks")):
            setattr(owner, name, self.clock.around(getattr(owner, name), stage))
        self.model.head.forward = self.clock.around(self.model.head.forward, "head")

    def now(self) -> float:
        """A clock that waits for the device."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()

    def step(self) -> None:
        """As the training loop takes it (harness.train)."""
        torch, trial = self.torch, self.trial
        torch.set_float32_matmul_precision("high" if self.chosen.precision == "tf32" else "highest")
        with self.flops.counting():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.chosen.precision == "bf16"):
                loss = self.task.loss(self.model(*self.inputs), self.targets, trial.train)
            self.flops.after_forward(trial.train.batch_size)
            with self.clock.stage("backward"):
                self.optimizer.zero_grad()
                loss.backward()
        with self.clock.stage("optimiser"):
            torch.nn.utils.clip_grad_norm_(self.attached.trainable.values(), trial.train.clip_norm)
            self.optimizer.step()

    def timed(self) -> dict[str, Any]:
        """Seconds of a step and of its stages, and the yardstick right after it."""
        on_cpu = self.device.type == "cpu"
        taken, cpu = self.taken(stages=on_cpu)
        staged = taken if on_cpu else self.taken(stages=True)[0]
        stages = {name: self.clock.seconds.get(name, 0.0) for name in STAGES}
        stages["rest"] = staged - sum(stages.values())
        product, product_cpu = self.product()
        work = 2e-9 * YARDSTICK[0] * YARDSTICK[1] * YARDSTICK[2]
        return {
            "step_time_s": taken,
            "cpu_time_s": cpu,
            "gemm_gflops": work / product,
            "gemm_cpu_gflops": work / product_cpu,
            "stages": stages,
            "stages_cpu": {name: self.clock.cpu.get(name, 0.0) for name in STAGES},
        }

    def taken(self, *, stages: bool) -> tuple[float, float]:
        """Seconds of a step, and CPU seconds."""
        self.clock.reset(running=stages)
        began, cpu = self.now(), time.process_time()
        self.step()
        return self.now() - began, time.process_time() - cpu

    def factors(self) -> tuple[Any, Any, Any]:
        """Of the yardstick, and room for their product."""
        shapes = YARDSTICK[:2], YARDSTICK[1:], YARDSTICK[::2]
        first, second, outcome = (self.torch.rand(shape, device=self.device) for shape in shapes)
        return first, second, outcome

    def product(self) -> tuple[float, float]:
        """Seconds of the yardstick, and CPU seconds; medians of three. By torch's own kernel, whatever trials take."""
        self.torch.set_float32_matmul_precision("highest")
        first, second, outcome = self.yardstick or self.factors()
        taken = []
        for _ in range(3):
            began, cpu = self.now(), time.process_time()
            self.torch.mm(first, second, out=outcome)
            taken.append((self.now() - began, time.process_time() - cpu))
        return statistics.median(row[0] for row in taken), statistics.median(row[1] for row in taken)

    def memory(self) -> dict[str, Any]:
        """Peaks in bytes: of the process, of the device's allocator, and of the CPU's if that was asked for."""
        from harness.measure.memory import host_peak

        found: dict[str, Any] = {"peak_host_memory_bytes": host_peak()}  # first: a profiler needs memory of its own
        if self.device.type == "cuda":
            found["peak_device_memory_bytes"] = self.torch.cuda.max_memory_allocated()
            found["reserved_device_memory_bytes"] = self.torch.cuda.max_memory_reserved()
        elif self.chosen.allocator:
            found["peak_allocator_bytes"] = self.allocator_peak()
        if self.chosen.predict:
            from harness.measure.estimate import estimate_memory

            precision = "bf16" if self.chosen.precision == "bf16" else "fp32"
            found["predicted_memory_bytes"] = estimate_memory(
                self.trial, precision=precision, device=self.device.type
            ).total
        return found

    def allocator_peak(self) -> int:
        """Of the CPU's allocator over a step: what lives before it, and the highest sum of the profiler's events."""
        from torch.profiler import ProfilerActivity, profile

        states = [value for state in self.optimizer.state.values() for value in state.values()]
        parts = [*self.model.parameters(), *self.model.buffers(), *states, *self.inputs, self.targets]
        parts += [p.grad for p in self.model.parameters() if p.grad is not None]
        alive = peak = sum(part.untyped_storage().nbytes() for part in parts)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            alive += event.nbytes()
            peak = max(peak, alive)
        return peak


class Clock:
    """Adds up the seconds of named stages."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.reset(running=True)

    def reset(self, *, running: bool) -> None:
        """Begin at zero; one that does not run stands there."""
        self.running = running
        self.seconds, self.cpu = defaultdict[str, float](float), defaultdict[str, float](float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Around what belongs to a stage."""
        if not self.running:
            yield
            return
        began, cpu = self.now(), time.process_time()
        yield
        self.seconds[name] += self.now() - began
        self.cpu[name] += time.process_time() - cpu

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, timed."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return timed


def processor() -> str:
    """What /proc calls it, with the number of cores."""
    from harness.measure.environment import cpu_name

    return f"{cpu_name()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
