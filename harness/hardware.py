"""Processors that trials may run on, as far as a plan needs them: how much memory, how fast.

Peaks are those of NVIDIA's data sheets for dense products: fp32 without tensor cores (the harness leaves TF32 off), and
bf16 or fp16 with them. Memory is the data sheet's, in bytes of 10⁹ a GB: a little less than what the driver reports.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass

from harness.errors import UserError

GPU_EFFICIENCY = {"fp32": 0.2, "bf16": 0.04, "fp16": 0.04}
"""Share of the peak that a whole training step is assumed to reach; not measured (docs/measurements.md)."""
CPU_EFFICIENCY = 0.5
"""Of a core's own matrix product. The `tiny` models reach less: their time is that of many small operations."""


@dataclass(frozen=True)
class Hardware:
    """One GPU, or one core of a processor."""

    name: str
    memory: int
    """Bytes."""
    peak: dict[str, float]
    """FLOP per second by precision."""
    gpu: bool = True

    def seconds(self, flops: float, *, precision: str) -> float:
        """Time of so much work, assumed."""
        efficiency = GPU_EFFICIENCY[precision] if self.gpu else CPU_EFFICIENCY
        return flops / (self.peak[precision] * efficiency)

    @property
    def assumption(self) -> str:
        """What `seconds` takes for granted, for people."""
        if not self.gpu:
            return f"{CPU_EFFICIENCY:.0%} of its own matrix product ({self.peak['fp32'] / 1e9:.0f} GFLOP/s)"
        half = "bf16" if "bf16" in self.peak else "fp16"
        return (
            f"{GPU_EFFICIENCY['fp32']:.0%} of {self.peak['fp32'] / 1e12:g} TFLOP/s in fp32, "
            f"{GPU_EFFICIENCY[half]:.0%} of {self.peak[half] / 1e12:g} in half precision"
        )


def _gpu(name: str, gigabytes: float, fp32: float, half: float) -> Hardware:
    peak = {"fp32": fp32 * 1e12, "bf16": half * 1e12, "fp16": half * 1e12}
    return Hardware(name, int(gigabytes * 1e9), peak)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("T4", 16, 8.1, 65),
        _gpu("V100", 32, 15.7, 125),
        _gpu("RTX 3090", 24, 35.6, 71),
        _gpu("RTX 4090", 24, 82.6, 165),
        _gpu("A10", 24, 31.2, 125),
        _gpu("A40", 48, 37.4, 150),
        _gpu("A100 40GB", 40, 19.5, 312),
        _gpu("A100", 80, 19.5, 312),
        _gpu("L40S", 48, 91.6, 362),
        _gpu("H100", 80, 67, 989),
        _gpu("H200", 141, 67, 989),
    )
}
"""By the name that `harness plan --gpu` takes. T4 and V100 have no bf16; `precision: auto` is fp16 there."""


def find_gpu(name: str) -> Hardware:
    """A GPU of the table. Raises UserError for one that is not in it."""
    plain = {_plain(known): gpu for known, gpu in GPUS.items()}
    if (found := plain.get(_plain(name))) is None:
        raise UserError(f"--gpu {name}: not in the table; use {', '.join(GPUS)}, or --on this")
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def this_machine() -> Hardware:
    """The first GPU of this machine, or one of its cores, with the speed of its own matrix product (a second)."""
    import torch

    from harness.measure.environment import cpu_name

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        peak = {"fp32": _product("cuda", torch.float32), "bf16": _product("cuda", torch.bfloat16)}
        return Hardware(properties.name, properties.total_memory, peak | {"fp16": peak["bf16"]})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speed = _product("cpu", torch.float32)
    finally:
        torch.set_num_threads(threads)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Hardware(cpu_name(), memory, dict.fromkeys(("fp32", "bf16", "fp16"), speed), gpu=False)


def _product(device: str, dtype: object) -> float:
    """FLOP per second of a matrix product, median of a few."""
    import torch

    assert isinstance(dtype, torch.dtype)
    rows, width = (4096, 1536) if device == "cpu" else (8192, 8192)
    left = torch.randn(rows, width, device=device, dtype=dtype)
    right = torch.randn(width, width, device=device, dtype=dtype)
    rates = []
    for _ in range(7):
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * rows * width * width / (time.perf_counter() - began))
    return statistics.median(rates[2:])
