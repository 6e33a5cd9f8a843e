"""A GPU through NVML (``nvidia-ml-py``, optional): clocks, power, temperature, throttling, other processes on it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stn_infer.backends.device import Device

# NVML's clock event reasons that hold a clock back; idle and settings of applications are not among them.
_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}
_POLICIES = ("NVML_PERF_POLICY_POWER", "NVML_PERF_POLICY_THERMAL", "NVML_PERF_POLICY_BOARD_LIMIT")
# The number that Linux gives the first process namespace: outside of containers, a process knows its own number.
_FIRST_NAMESPACE = "pid:[4026531836]"

_watched: dict[int, WatchedGpu] = {}


def watch_gpu(index: int, open_gpu: Callable[[], None]) -> WatchedGpu | None:
    """The GPU that CUDA calls ``index``; None where NVML cannot be asked.

    Args:
        index: among the visible GPUs.
        open_gpu: opens it in this process, of which only the first call for an index has any use.
    """
    gpu = _watched.get(index)
    if gpu is None:
        with suppress(Exception):  # no NVML, no driver, a container that hides it
            import pynvml

            pynvml.nvmlInit()
            gpu = _watched[index] = WatchedGpu(pynvml, _handle(pynvml, index))
    open_gpu()
    if gpu is not None:
        gpu.opened()
    return gpu


class WatchedGpu:
    """One GPU, watched from before this process opens it.

    NVML numbers processes as the host does, and in a container this process has another number there: it is the one
    that is new on the GPU once this process has opened it.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._own: frozenset[int] | None = frozenset({os.getpid()}) if _knows_its_number() else None
        self._before = frozenset() if self._own is not None else self._processes()

    def opened(self) -> None:
        """This process is on the GPU now: what is new there is this one, or came at the same moment."""
        if self._own is None:
            self._own = (self._processes() or frozenset()) - (self._before or frozenset())

    def read(self) -> dict[str, Any]:
        """The GPU's fields of a ``monitor.Reading``; what it does not report is left out."""
        nvml, handle = self._nvml, self._handle
        found: dict[str, Any] = {"gpu_others": self._others()}
        with suppress(Exception):
            found["gpu_sm_mhz"] = int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
            found["gpu_memory_mhz"] = int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))
        with suppress(Exception):
            found["gpu_watts"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        with suppress(Exception):
            found["gpu_celsius"] = int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        with suppress(Exception):
            ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
            bits = int((ask or nvml.nvmlDeviceGetCurrentClocksThrottleReasons)(handle))
            found["gpu_throttle"] = tuple(reason for bit, reason in _REASONS.items() if bits & bit)
        with suppress(Exception):
            policies = [getattr(nvml, name) for name in _POLICIES]
            held = [int(nvml.nvmlDeviceGetViolationStatus(handle, policy).violationTime) for policy in policies]
            found["gpu_held_back_ns"] = sum(held)
        return found

    def _others(self) -> int | None:
        """How many other processes compute on it; None where NVML lists not even this one, once it is there."""
        now = self._processes()
        if now is None or self._own is None:
            return None if now is None else len(now)
        if _knows_its_number():
            return len(now - self._own)
        return len(now) - 1 if now & self._own else None

    def _processes(self) -> frozenset[int] | None:
        with suppress(Exception):
            return frozenset(it.pid for it in self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle))
        return None


def _knows_its_number() -> bool:
    """Whether this process's number is the host's, which is NVML's."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()) == _FIRST_NAMESPACE
    except OSError:
        return False


def gpu_facts(device: str) -> dict[str, str]:
    """CUDA, cuDNN, the driver, and the GPU's name and limits, for a result; what is not known is left out."""
    if not device.startswith("cuda"):
        return {}
    found: dict[str, str] = {}
    with suppress(Exception):
        import torch

        found |= {"CUDA of PyTorch": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = _handle(pynvml, Device.parse(device).index)
        found |= {
            "NVIDIA driver": str(pynvml.nvmlSystemGetDriverVersion()),
            "GPU": str(pynvml.nvmlDeviceGetName(handle)),
            "GPU memory": f"{pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30:.0f} GiB",
            "GPU largest SM clock": f"{pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)} MHz",
        }
        with suppress(Exception):
            found["GPU power limit"] = f"{pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000:.0f} W"
        return found
    except Exception:  # NVML is missing or raises an error
        return found


def _pci_bus(index: int) -> str | None:
    """Where CUDA has the GPU that it calls ``index``, by the driver; no context is made for it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, text = ctypes.c_int(), ctypes.create_string_buffer(32)
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), index)
    if failed or driver.cuDeviceGetPCIBusId(text, len(text), device):
        return None
    return text.value.decode()


def _handle(nvml: Any, index: int) -> Any:
    """The GPU that CUDA calls ``index``: it orders GPUs by speed, and ``CUDA_VISIBLE_DEVICES`` may renumber them."""
    bus = _pci_bus(index)
    if bus is not None:
        with suppress(Exception):  # a part of a GPU, say, of which NVML knows the whole by another name
            return nvml.nvmlDeviceGetHandleByPciBusId(bus)
    visible = [text.strip() for text in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if text.strip()]
    if index < len(visible):
        if not visible[index].isdigit():
            return nvml.nvmlDeviceGetHandleByUUID(visible[index])
        index = int(visible[index])
    return nvml.nvmlDeviceGetHandleByIndex(index)
