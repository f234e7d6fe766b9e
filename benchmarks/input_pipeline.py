"""What making a batch costs beside training on it: `python benchmarks/input_pipeline.py [--repetitions 3]`.

Random clouds in the shape of PB_T50_RS (11,416 x 2048) and DAPT on the base encoder, batch 32, the papers' point rule.
Everything is timed in turn, several times over, so that the ratios hold on a busy machine as well: how many samples
the input pipeline makes while the model takes one, the share of the encoder's own farthest points and neighbours in a
training step, and what the papers' loop over all points would take. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from harness import registry
from harness.build import set_training
from harness.data.augment import scale_translate
from harness.data.sampling import train_points
from harness.geometry import farthest_points, gather_points, group
from harness.method import Task, attach
from harness.models.head import classification_loss
from harness.models.point_mae import PointMAE
from harness.optimizer import AdamW

CLOUDS, POINTS, CLASSES, BATCH = 11_416, 2048, 15, 32


def main() -> None:
    """Time the parts in turn and print their medians in seconds and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.manual_seed(0)
    clouds = torch.rand(CLOUDS, POINTS, 3, device=device) - 0.5
    labels = torch.randint(CLASSES, (CLOUDS,), device=device)
    noise = torch.Generator(device=device).manual_seed(0)
    backbone = PointMAE(preset="base")
    method = registry.get("methods", "dapt")().on(backbone)
    attached = attach(method, backbone.build(drop_path=0.1), Task(CLASSES, CLOUDS), head=backbone.head)
    model = attached.model.to(device)
    set_training(model, frozen_batchnorm="batch")
    optimizer = AdamW(attached.optimizer_groups(0.05), lr=5e-4, fused=True)
    rows = torch.randperm(CLOUDS, device=device)[:BATCH]

    def pipeline() -> torch.Tensor:
        return scale_translate(train_points(clouds[rows], POINTS, "fps", noise), noise)

    batch = pipeline()

    def step() -> None:
        optimizer.zero_grad()
        classification_loss(model(batch), labels[rows], label_smoothing=0).backward()
        torch.nn.utils.clip_grad_norm_(attached.trainable.values(), 10)
        optimizer.step()

    parts: dict[str, Callable[[], object]] = {
        "pipeline": pipeline,
        "step": step,
        "geometry": lambda: group(batch, model.encoder.groups, model.encoder.group_size),
        "loop": lambda: gather_points(clouds[rows], farthest_points(clouds[rows], POINTS)),
    }
    taken = [{name: timed(part, device) for name, part in parts.items()} for _ in range(1 + arguments.repetitions)]
    seconds = {name: statistics.median(row[name] for row in taken[1:]) for name in parts}  # the first warms up
    print(
        json.dumps(
            {
                "device": device.type,
                "threads": torch.get_num_threads(),
                "seconds": {name: round(value, 4) for name, value in seconds.items()},
                "pipeline_speed_over_models": round(seconds["step"] / seconds["pipeline"], 1),
                "geometry_share_of_step": round(seconds["geometry"] / seconds["step"], 4),
                "loop_over_pipeline": round(seconds["loop"] / seconds["pipeline"], 1),
            }
        )
    )


def timed(part: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's work included."""
    began = time.perf_counter()
    part()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
