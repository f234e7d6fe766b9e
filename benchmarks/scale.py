"""Thousands of trials: `python benchmarks/scale.py trials|results [--count N]`.

`trials`: a run of N trials that do no work on two slots, through everything but training: Ray Tune, launchers, leases,
a forked process per trial (its trial writes its result when it is unpacked, and ends). Prints seconds per trial and
slot, the driver's memory at tenths of the run, and the seconds of the steps around it.

`results`: a suite of N finished trials as ten methods, five backbones and ten datasets leave them; what the commands
take that read them, as somebody who types them waits for it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from harness.result import Metrics, Parameters, Result, Storage, Time
from harness.run import remember_suite, run_suite, to_run
from harness.schedule import Observer
from harness.store import Store
from harness.suite import Suite, load_suite
from harness.trial import Trial
from harness.trial_folder import TrialWriter

SLOTS = 2
SUITE = """\
format: 1
name: scale
seeds: 1
datasets: [sweethome12]
backbones:
  point_mae: {preset: tiny, depth: 1, groups: 8, group_size: 8}
methods:
  linear_probe: {}
train: {epochs: 1, batch_size: 16, warmup_epochs: 0, drop_path: 0}
"""


def plausible(trial_spec: dict[str, Any], identity: str, seed: int) -> Result:
    """A finished trial's result with numbers drawn at random."""
    draw = random.Random(seed)
    accuracy = draw.uniform(0.6, 0.9)
    return Result(
        id=identity,
        spec=trial_spec,
        status="done",
        metrics=Metrics(accuracy=accuracy, class_accuracy=accuracy - 0.02, correct=int(1000 * accuracy), total=1000),
        parameters=Parameters(added=100_000, unfrozen=0, head=200_000, trainable=300_000, total=22_000_000),
        time=Time(step=draw.uniform(0.1, 0.2), data=0.001, throughput=200, evaluate=1, total=100, startup=1),
        storage=Storage(adapter=1_000_000),
        environment={"harness": "0.1.0", "python": "3.11", "torch": "2.13.0", "gpu": None, "cpu": "none", "threads": 1},
        digests={"data": "0" * 64, "weights": "1" * 64},
        attempts=[{"attempt": 1, "started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:40+00:00"}],
        reasons={"memory": "no GPU"},
    )


def finish_at_once(output: Path, identity: str, spec: dict[str, Any], seed: int) -> None:
    """What a trial without work does instead of training, in its own process."""
    folder = Store(output).trial(identity)
    lease = folder.lease()
    assert lease is not None
    TrialWriter(folder, lease.token).finish(plausible(spec, identity, seed))
    os._exit(0)


@dataclass(frozen=True)
class NoWork(Trial):
    """A trial that is done when its process unpacks it."""

    output: Path = Path()

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Any, ...]]:
        return finish_at_once, (self.output, self.identity, self.spec(), self.seed)


class Silent:
    """Counts finished trials."""

    def __init__(self) -> None:
        self.first, self.done = 0.0, 0

    def started(self, trial: Trial) -> None:
        """A slot took the trial."""
        self.first = self.first or time.monotonic()

    def finished(self, trial: Trial, result: Result) -> None:
        """The trial has its result."""
        self.done += 1

    def postponed(self, trial: Trial, why: str) -> None:
        """Must not happen here."""
        print(f"postponed: {trial.name}: {why}", file=sys.stderr)

    def stopping(self) -> None:
        """Nothing to do."""


@dataclass
class Meter:
    """The driver's resident memory by finished trials."""

    observer: Silent
    count: int
    found: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Tenth of the run -> MB, seconds since the first trial started."""

    def watch(self) -> None:
        """Look five times a second, for ever."""
        process = psutil.Process()
        while True:
            tenth = 10 * self.observer.done // self.count
            if self.observer.done and tenth not in self.found:
                since = time.monotonic() - self.observer.first
                self.found[tenth] = (round(process.memory_info().rss / 1e6, 1), round(since, 1))
            time.sleep(0.2)


def no_work(count: int, output: Path, *, track: bool) -> dict[str, Any]:
    """Run trials without work."""
    suite = one_trial_suite(output)
    (trial,) = suite.trials
    values = {name: getattr(trial, name) for name in trial.__dataclass_fields__}
    trials = tuple(NoWork(**values | {"seed": seed, "output": output}) for seed in range(count))
    suite = Suite(**vars(suite) | {"trials": trials})
    store, observer = Store(output), Silent()
    store.prepare()
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.monotonic()
        found = work()
        seconds[name] = round(time.monotonic() - began, 2)
        return found

    jobs = timed("what is left", lambda: to_run(trials, store))
    meter = Meter(observer, count)
    threading.Thread(target=meter.watch, daemon=True).start()
    observing: Observer = observer
    summary = timed(
        "run",
        lambda: run_suite(
            suite,
            jobs,
            asked=trials,
            store=store,
            display=observing,
            remember=lambda: remember_suite(suite, store, chosen=trials, command=["scale"]),
            max_concurrent=SLOTS,
            track=track,
        ),
    )
    last = max(meter.found.values(), key=lambda pair: pair[1])
    return {
        "trials": count,
        "done": summary.done,
        "seconds": seconds,
        "per trial and slot": round(SLOTS * last[1] / observer.done, 3),
        "memory MB, seconds at tenths": meter.found,
        "mlflow": str(summary.tracking),
    }


def one_trial_suite(folder: Path) -> Suite:
    """A suite to make others of."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.yaml").write_text(SUITE)
    return load_suite(str(folder / "suite.yaml"))


def many_results(count: int, output: Path) -> dict[str, Any]:
    """Make results of a big comparison and time what reads them."""
    suite = one_trial_suite(output)
    (trial,) = suite.trials
    rows = []
    for index in range(count):
        seed, rest = index % (count // 500), index // (count // 500)
        method, backbone, dataset = f"method{rest % 10}", f"backbone{rest // 10 % 5}", f"dataset{rest // 50}"
        one = trial.with_seed(index)
        spec = one.spec() | {"seed": seed}
        spec["method"] = spec["method"] | {"name": method}
        spec["dataset"] = spec["dataset"] | {"name": dataset}
        spec["backbone"] = spec["backbone"] | {"name": backbone}
        names = {"method": method, "backbone": backbone, "dataset": dataset, "seed": seed}
        rows.append({"id": one.identity, "reference": False} | names)
        folder = output / "trials" / one.identity
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(plausible(spec, one.identity, index).model_dump_json(indent=1))
    Store(output).write_suite(name="scale", description="", digest="0", text=SUITE, trials=rows)
    commands = {
        "nothing": ["--version"],
        "status": ["status", "scale", "--output", str(output)],
        "report": ["report", "scale", "--output", str(output)],
    }
    return {"results": count} | {name: _run_command(words) for name, words in commands.items()}


def _run_command(words: list[str]) -> dict[str, float]:
    """What `harness WORDS` takes: seconds of wall and CPU, and the peak of its memory."""
    began = time.monotonic()
    process = subprocess.Popen(["harness", *words], stdout=subprocess.DEVNULL)
    _, code, used = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    assert code == 0, f"harness {words[0]} ended with {os.waitstatus_to_exitcode(code)}"
    cpu = used.ru_utime + used.ru_stime
    return {"wall": round(wall, 2), "cpu": round(cpu, 2), "peak MB": round(used.ru_maxrss / 1024)}


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["trials", "results"])
    parser.add_argument("--count", type=int)
    parser.add_argument("--mlflow", action="store_true", help="mirror the trials into MLflow")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "results"
        if arguments.what == "trials":
            found = no_work(arguments.count or 2000, output, track=arguments.mlflow)
        else:
            found = many_results(arguments.count or 10_000, output)
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    import scale  # trials are unpacked in processes that do not know this one's main module

    scale.main()
