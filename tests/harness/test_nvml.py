"""What the driver tells of a GPU, and when it is not believed; a stand-in for the driver."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.measure import nvml
from harness.measure.nvml import GpuMeter

GPU = torch.device("cuda", 0)
OURS = SimpleNamespace(pid=1, usedGpuMemory=3 * 10**9)
OTHER = SimpleNamespace(pid=2, usedGpuMemory=10**9)


class Driver:
    """As pynvml answers."""

    def __init__(self, *, before: Any = (), after: Any = (OURS,), used: int = 5 * 10**8, old: bool = False) -> None:
        self.lists, self.used, self.old = [list(before), list(after)], used, old
        self.millijoules = 7_000

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert uuid == "GPU-1234"
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:
        return self.lists.pop(0)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(used=self.used)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if self.old:
            raise RuntimeError("Not Supported")
        self.millijoules += 5_000
        return self.millijoules


@pytest.fixture(autouse=True)
def _one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(nvml, "_ours", lambda device: 0)


def measured(driver: Driver, *, whole: bool = True) -> tuple[int | None, float | None, dict[str, str]]:
    meter = GpuMeter(GPU, nvml=driver)
    return meter.memory(), meter.energy(whole=whole), meter.reasons


def test_a_gpu_of_ones_own() -> None:
    assert measured(Driver()) == (3 * 10**9, 5.0, {})


@pytest.mark.parametrize("before", [{"before": (OTHER,)}, {"used": 2 * 10**9}])
def test_a_gpu_that_was_not_empty_is_named_and_not_measured(before: dict[str, Any]) -> None:
    meter = GpuMeter(GPU, nvml=Driver(**before))
    assert meter.busy is not None and "GB in use" in meter.busy
    assert (meter.memory(), meter.energy(whole=True)) == (None, None)
    assert all("not empty" in meter.reasons[field] for field in ("memory.device", "compute.energy"))


def test_ourselves_at_the_start_are_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_ours", lambda device: 1)
    assert GpuMeter(GPU, nvml=Driver(before=(OURS,))).busy is None


def test_what_cannot_be_told_is_null_with_a_reason() -> None:
    hidden = SimpleNamespace(pid=1, usedGpuMemory=None)
    for driver, whole, fields in (
        (Driver(after=(OURS, OTHER)), True, {"memory.device"}),
        (Driver(after=()), True, {"memory.device"}),
        (Driver(after=(hidden,)), True, {"memory.device"}),
        (Driver(old=True), True, {"compute.energy"}),
        (Driver(), False, {"compute.energy"}),
    ):
        memory, energy, reasons = measured(driver, whole=whole)
        assert set(reasons) == fields
        assert (memory is None, energy is None) == ("memory.device" in fields, "compute.energy" in fields)


def test_no_gpu_and_no_driver() -> None:
    assert GpuMeter(torch.device("cpu")).reasons["compute.energy"] == nvml.NO_GPU

    class Broken(Driver):
        def nvmlInit(self) -> None:
            raise RuntimeError("Driver Not Loaded")

    meter = GpuMeter(GPU, nvml=Broken())
    assert (meter.memory(), meter.energy(whole=True), meter.busy) == (None, None, None)
    assert meter.reasons["memory.device"] == "NVML: Driver Not Loaded"
