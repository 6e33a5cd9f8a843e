"""The GPU through a stand-in for NVML: clocks, throttling, and who else is on it, inside a container and outside."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator

import pytest

from stn_infer.benchmarking.machine import nvml
from stn_infer.benchmarking.machine.monitor import MachineMonitor, Reading
from stn_infer.benchmarking.machine.nvml import WatchedGpu


class FakeNvml(types.ModuleType):
    """As much of NVML as is read: GPUs that are too hot, with the processes ``on_gpu``."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL, NVML_PERF_POLICY_BOARD_LIMIT = 0, 1, 3

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.asked: list[object] = []
        self.on_gpu: set[int] = set()
        self.held_ns = 0

    def nvmlInit(self) -> None: ...

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.asked.append(index)
        return "gpu"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return "gpu"

    def nvmlDeviceGetHandleByPciBusId(self, bus: str) -> str:
        self.asked.append(bus)
        return "gpu"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return {1: 1500, 2: 2600}[kind]

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 312_500

    def nvmlDeviceGetTemperature(self, handle: str, kind: int) -> int:
        raise RuntimeError("not supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return 0x1 | 0x40  # idle is not throttling

    def nvmlDeviceGetViolationStatus(self, handle: str, policy: int) -> object:
        return types.SimpleNamespace(violationTime=self.held_ns if policy == 0 else 7)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[object]:
        return [types.SimpleNamespace(pid=pid) for pid in self.on_gpu]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    found = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", found)
    monkeypatch.setattr(nvml, "_watched", {})
    monkeypatch.setattr(nvml, "_pci_bus", lambda index: None)
    yield found


def in_container(monkeypatch: pytest.MonkeyPatch, inside: bool) -> None:
    monkeypatch.setattr(nvml, "_knows_its_number", lambda: not inside)


def test_a_gpu_is_read_through_nvml_where_there_is_one(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml) -> None:
    in_container(monkeypatch, False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
    fake.on_gpu = {os.getpid(), 1}
    reading = MachineMonitor("cuda:0").read(0.5)
    assert (reading.gpu_sm_mhz, reading.gpu_memory_mhz, reading.gpu_watts) == (1500, 2600, 312.5)
    assert reading.gpu_celsius is None and reading.gpu_others == 1
    assert reading.gpu_throttle == ("hardware thermal slowdown",)
    assert reading.gpu_held_back_ns == 14
    assert reading.throttled_since(Reading(0.0))
    MachineMonitor("cuda:1").read(0.5)
    assert fake.asked == [3, "GPU-abc"]  # CUDA's numbers, not NVML's


def test_cuda_says_where_its_gpu_is(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml) -> None:
    monkeypatch.setattr(nvml, "_pci_bus", lambda index: f"0000:0{index}:00.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    MachineMonitor("cuda:1")
    assert fake.asked == ["0000:01:00.0"]


def test_in_a_container_this_process_is_known_by_being_new(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml) -> None:
    """NVML gives the host's numbers: none of them is this process's own."""
    in_container(monkeypatch, True)
    fake.on_gpu = {4001}
    monitor = MachineMonitor("cuda:0", lambda: fake.on_gpu.add(4002))
    assert monitor.read(0.0).gpu_others == 1
    fake.on_gpu.remove(4001)
    assert monitor.read(1.0).gpu_others == 0  # and not 1, which this process itself would be
    fake.on_gpu |= {os.getpid(), 4003}  # another container's process may well have our number here
    assert monitor.read(2.0).gpu_others == 2
    # a second round in the same process opens nothing new
    assert MachineMonitor("cuda:0", lambda: None).read(3.0).gpu_others == 2


def test_one_that_comes_at_the_same_moment_is_still_counted(monkeypatch: pytest.MonkeyPatch, fake: FakeNvml) -> None:
    in_container(monkeypatch, True)
    monitor = MachineMonitor("cuda:0", lambda: fake.on_gpu.update({4002, 4003}))
    assert monitor.read(0.0).gpu_others == 1
    fake.on_gpu.remove(4003)
    assert monitor.read(1.0).gpu_others == 0


def test_where_nvml_hides_this_process_nothing_is_said_of_others(
    monkeypatch: pytest.MonkeyPatch, fake: FakeNvml
) -> None:
    in_container(monkeypatch, True)
    assert MachineMonitor("cuda:0").read(0.0).gpu_others is None
    monkeypatch.setattr(fake, "nvmlDeviceGetComputeRunningProcesses", lambda handle: 1 / 0)
    reading = WatchedGpu(fake, "gpu").read()
    assert reading["gpu_others"] is None and reading["gpu_sm_mhz"] == 1500


def test_clocks_that_were_held_back_between_two_looks_are_seen() -> None:
    before = Reading(1.0, gpu_held_back_ns=5_000_000)
    assert not Reading(2.0, gpu_held_back_ns=14_000_000).throttled_since(before)  # 9 ms of a second
    assert Reading(2.0, gpu_held_back_ns=16_000_000).throttled_since(before)
    assert not Reading(2.0).throttled_since(before)
