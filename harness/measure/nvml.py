"""What the driver tells of a trial's GPU: who else is on it, the memory of the process, energy (NVML).

It counts by process numbers of the host, which a container does not see, and by physical GPU, which CUDA may number
otherwise. So the GPU is found by its UUID, and what is said of processes is believed only where one is all there are.
"""

from __future__ import annotations

from typing import Any

import torch

IDLE = 1_000_000_000
"""Bytes in use on a GPU, by the driver itself too, below which it counts as empty."""
NO_GPU = "no GPU"


class GpuMeter:
    """The GPU of this process, from before its first tensor on; without one everything is None, and `reasons` say why.

    `nvml` is the module pynvml, or what stands in for it.
    """

    def __init__(self, device: torch.device, *, nvml: Any = None) -> None:
        self.reasons: dict[str, str] = {}
        self.busy: str | None = None
        """Who else was on the GPU at the start, for people; None when it was empty."""
        self._nvml, self._handle = nvml, None
        try:
            self._handle = self._find(device)
            others = max(0, len(self._processes()) - _ours(device))
            used = int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used) if self._handle is not None else 0
        except Exception as error:  # no driver, no permission, a GPU of another kind: NVML's own errors are many
            self._give_up(f"NVML: {error}")
            return
        if others or used > IDLE:
            self.busy = f"{others} other processes, {used / 1e9:.1f} GB in use"
        self._began = self._joules()

    def _find(self, device: torch.device) -> Any:
        if device.type != "cuda":
            self._give_up(NO_GPU)
            return None
        if self._nvml is None:
            import pynvml

            self._nvml = pynvml
        self._nvml.nvmlInit()
        return self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def _give_up(self, why: str) -> None:
        self._handle, self._began = None, None
        self.reasons = {"memory.device": why, "compute.energy": why}

    def _processes(self) -> list[Any]:
        return list(self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)) if self._handle is not None else []

    def _joules(self) -> float | None:
        """Since the driver was loaded; None for GPUs older than Volta."""
        if self._handle is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000
        except Exception as error:
            self.reasons["compute.energy"] = f"NVML: {error}"
            return None

    def memory(self) -> int | None:
        """Bytes of this process on its GPU now, CUDA's context included; reserved memory only grows while training."""
        if self._handle is None:
            return None
        if self.busy is not None:
            return self._unknown("memory.device", f"the GPU was not empty: {self.busy}")
        try:
            processes = self._processes()
        except Exception as error:
            return self._unknown("memory.device", f"NVML: {error}")
        if len(processes) != 1:
            return self._unknown("memory.device", f"the driver lists {len(processes)} processes, and only one is ours")
        used = processes[0].usedGpuMemory
        return int(used) if used is not None else self._unknown("memory.device", "the driver does not say")

    def energy(self, *, whole: bool) -> float | None:
        """Joules of the GPU since the start. `whole`: whether that is all of the trial, and the GPU was its own."""
        now = self._joules()
        if now is None or self._began is None:
            return None
        if self.busy is not None:
            return self._unknown("compute.energy", f"the GPU was not empty: {self.busy}")
        if not whole:
            return self._unknown("compute.energy", "counted from the last start of a trial that was cut off")
        return now - self._began

    def _unknown(self, field: str, why: str) -> Any:
        self.reasons[field] = why
        return None


def _ours(device: torch.device) -> int:
    """1 when this process is on the GPU already, as Accelerate puts it there before the first tensor."""
    return int(device.type == "cuda" and torch._C._cuda_hasPrimaryContext(device.index or 0))  # type: ignore[attr-defined]
