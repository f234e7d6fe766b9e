"""What only a GPU can tell, in one command of some ten minutes: `python -m benchmarks.gpu [--output FILE]`.

Training steps of four methods at two batch sizes in fp32, TF32 and bf16, each in a process of its own: time, allocated
and reserved peak, beside the predicted one. DAPT's peak over full fine-tuning's, beside the paper's. Farthest points by
the kernel and by plain torch: whether they pick the same, and their times. Markdown for docs/measurements.md goes to
stdout as it is found, all numbers to FILE, line by line.

    python -m benchmarks.gpu --device cpu --preset tiny --batches 4 --clouds 4       does it work? no figures
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.step import Worker, measure
from benchmarks.step import arguments as step_arguments
from harness.geometry import farthest_points, sampling
from harness.measure.latency import latency

PAPER = {"full": 16.0, "dapt": 10.4}
"""GB at batch 512 (DAPT, arXiv 2403.01439, figure 2c, which names neither data nor tool)."""
POINTS = 2048
SAMPLES = ((POINTS, 128), (8192, 512))
"""Points of a cloud, and picks."""


def main() -> None:
    """Measure, and print as it goes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--methods", nargs="+", default=["full", "dapt", "lora", "point_peft"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 512])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "tf32", "bf16"])
    parser.add_argument("--preset", default="base")
    parser.add_argument("--clouds", nargs="+", type=int, default=[32, 512], help="to sample at a time")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, help="a file for all numbers, one JSON object a line")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu only tries whether this works")
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else chosen.device
    print(f"{name}, torch {torch.__version__}, Point-MAE `{chosen.preset}`, {POINTS} points\n", flush=True)
    steps(chosen)
    samples(chosen)


def keep(chosen: argparse.Namespace, **found: Any) -> None:
    """A line of the output file."""
    if chosen.output is not None:
        with chosen.output.open("a") as file:
            print(json.dumps(found), file=file)


def row(*cells: object, head: bool = False) -> None:
    """A line of a table; a number that is missing is an empty cell."""
    print("|", " | ".join("" if cell is None else str(cell) for cell in cells), "|")
    if head:
        print("|---" * len(cells) + "|")
    sys.stdout.flush()


def steps(chosen: argparse.Namespace) -> None:
    """The table of training steps, and what DAPT saves."""
    row("method", "batch", "precision", "step, ms", "allocated, MB", "reserved, MB", "predicted, MB", head=True)
    peaks: dict[tuple[int, str], dict[str, int]] = defaultdict(dict)
    for batch, precision, method in product(chosen.batches, chosen.precisions, chosen.methods):
        options = ["--method", method, "--batch", str(batch), "--precision", precision, "--device", chosen.device]
        options += ["--points", str(POINTS), "--preset", chosen.preset, "--predict"]
        found = step(step_arguments().parse_args(options), chosen.steps)
        if found is None:
            row(method, batch, precision, "did not end, see above", *[None] * 3)
            continue
        keep(chosen, what="step", **found)
        sizes = [found.get(f"{key}_memory_bytes") for key in ("peak_device", "reserved_device", "predicted")]
        megabytes = (None if size is None else f"{size / 1e6:,.0f}" for size in sizes)
        row(method, batch, precision, f"{1e3 * found['step_time_s']:.1f}", *megabytes)
        peaks[batch, precision][method] = sizes[0] or sizes[2]
    print(f"\nDAPT's peak over full fine-tuning's; the paper's at batch 512 is {PAPER['dapt'] / PAPER['full']:.2f}:\n")
    for (batch, precision), of in peaks.items():
        if {"dapt", "full"} <= of.keys():
            print(f"- batch {batch}, {precision}: {of['dapt'] / of['full']:.2f}")
    print()


def step(setting: argparse.Namespace, count: int) -> dict[str, Any] | None:
    """What steps cost, in a process of their own; None if it ended before it could tell."""
    try:
        worker = Worker(setting)
        try:
            return measure([worker], steps=count)[0]
        finally:
            worker.end()
    except (SystemExit, BrokenPipeError):
        return None


def samples(chosen: argparse.Namespace) -> None:
    """The table of farthest points."""
    row("clouds", "points", "picks", "plain torch, ms", "as trials take them, ms", "kernel", "same picks", head=True)
    chooses = sampling._sampler
    for clouds, (points, picks) in product(chosen.clouds, SAMPLES):
        cloud = torch.rand(clouds, points, 3, generator=torch.Generator().manual_seed(0)).to(chosen.device) - 0.5
        kernel = chooses(cloud.permute(2, 0, 1)) is not sampling._plain
        sample = partial(farthest_points, count=picks)
        taken, as_taken = latency(sample, [cloud]), sample(cloud)
        sampling._sampler = lambda planes: sampling._plain
        plain, as_plain = latency(sample, [cloud]), sample(cloud)
        sampling._sampler = chooses
        same = torch.equal(as_plain, as_taken)
        keep(chosen, what="farthest", clouds=clouds, points=points, picks=picks, plain=plain, taken=taken, same=same)
        row(clouds, points, picks, f"{1e3 * plain:.2f}", f"{1e3 * taken:.2f}", kernel, same)


if __name__ == "__main__":
    main()
