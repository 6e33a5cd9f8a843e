"""What the machine does while it is measured: clocks, power, temperature, reasons for throttling, other users.

Everything is only read. GPUs are read through NVML (``nvidia-ml-py``, optional).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_CPUS = Path("/sys/devices/system/cpu")
_BUSY = 0.05  # of a core

# NVML's clock event reasons that hold a clock back; idle and settings of applications are not among them.
_REASONS = {
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
}


@dataclass(frozen=True)
class Reading:
    """One look at the machine.

    Attributes:
        at_s: seconds since the round began.
        cpu_mhz: mean clock of the cores; None where the system does not say.
        cpu_throttles: how often cores were throttled since the system started; None likewise.
        load: load average of the last minute.
        gpu_sm_mhz, gpu_memory_mhz, gpu_watts, gpu_celsius: the GPU's; None without one, or without NVML.
        gpu_throttle: why its clocks are held back; empty when they are not.
        gpu_others: processes on it besides this one.
    """

    at_s: float
    cpu_mhz: float | None = None
    cpu_throttles: int | None = None
    load: float | None = None
    gpu_sm_mhz: int | None = None
    gpu_memory_mhz: int | None = None
    gpu_watts: float | None = None
    gpu_celsius: int | None = None
    gpu_throttle: tuple[str, ...] = ()
    gpu_others: int | None = None

    def throttled_since(self, before: Reading) -> bool:
        """Whether clocks are held back now, or were at some time since ``before``."""
        if self.gpu_throttle:
            return True
        return None not in (self.cpu_throttles, before.cpu_throttles) and self.cpu_throttles != before.cpu_throttles


class Monitor(Protocol):
    """Reads the machine; tests have one that makes things up."""

    def read(self, at_s: float) -> Reading:
        """A look now, which is ``at_s`` seconds after the round began."""
        ...


class MachineMonitor:
    """The real one.

    Args:
        device: ``cpu`` or ``cuda:N``; a GPU is read only where it is measured.
    """

    def __init__(self, device: str) -> None:
        self._gpu: Any = None
        self._nvml: Any = None
        if device.startswith("cuda"):
            with suppress(Exception):  # no NVML, no driver, a container that hides it: figures stay None
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml
                self._gpu = _handle(pynvml, int(device.partition(":")[2] or 0))

    def read(self, at_s: float) -> Reading:
        """See :class:`Monitor`."""
        gpu = _read_gpu(self._nvml, self._gpu) if self._gpu is not None else {}
        return Reading(round(at_s, 3), _cpu_mhz(), _cpu_throttles(), round(os.getloadavg()[0], 2), **gpu)


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
        handle = _handle(pynvml, int(device.partition(":")[2] or 0))
        found |= {
            "NVIDIA driver": str(pynvml.nvmlSystemGetDriverVersion()),
            "GPU": str(pynvml.nvmlDeviceGetName(handle)),
            "GPU memory": f"{pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30:.0f} GiB",
            "GPU largest SM clock": f"{pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)} MHz",
        }
        with suppress(Exception):
            found["GPU power limit"] = f"{pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000:.0f} W"
        return found
    except Exception:  # whatever NVML raises, or its absence
        return found


def cpu_facts() -> dict[str, str]:
    """The frequency governor and whether turbo is allowed, where the system says."""
    found = {}
    for name, path in (
        ("CPU governor", _CPUS / "cpu0/cpufreq/scaling_governor"),
        ("CPU turbo off", _CPUS / "intel_pstate/no_turbo"),
        ("CPU boost", _CPUS / "cpufreq/boost"),
    ):
        with suppress(OSError):
            found[name] = path.read_text(encoding="utf-8").strip()
    return found


def busy_processes(seconds: float = 0.2) -> int:
    """How many other processes use more than 5 % of a core; their names stay private."""
    before = _process_ticks()
    time.sleep(seconds)
    limit = _BUSY * seconds * os.sysconf("SC_CLK_TCK")
    return sum(ticks - before.get(pid, ticks) > limit for pid, ticks in _process_ticks().items())


def _process_ticks() -> dict[int, int]:
    ticks = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        pid = int(path.parent.name)
        if pid in (os.getpid(), os.getppid()):
            continue
        with suppress(OSError, IndexError):
            # after the name, which may hold blanks and brackets: fields 14 and 15 of proc(5)
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            ticks[pid] = int(fields[11]) + int(fields[12])
    return ticks


def _cpu_mhz() -> float | None:
    kilohertz = []
    for path in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        with suppress(OSError, ValueError):
            kilohertz.append(int(path.read_text(encoding="utf-8")))
    if kilohertz:
        return round(sum(kilohertz) / len(kilohertz) / 1000, 1)
    with suppress(OSError, ValueError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        megahertz = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
        if megahertz:
            return round(sum(megahertz) / len(megahertz), 1)
    return None


def _cpu_throttles() -> int | None:
    counts = []
    for path in _CPUS.glob("cpu[0-9]*/thermal_throttle/core_throttle_count"):
        with suppress(OSError, ValueError):
            counts.append(int(path.read_text(encoding="utf-8")))
    return sum(counts) if counts else None


def _handle(nvml: Any, index: int) -> Any:
    """The GPU that CUDA calls ``index``, which ``CUDA_VISIBLE_DEVICES`` may renumber."""
    visible = [text.strip() for text in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if text.strip()]
    if index < len(visible):
        if not visible[index].isdigit():
            return nvml.nvmlDeviceGetHandleByUUID(visible[index])
        index = int(visible[index])
    return nvml.nvmlDeviceGetHandleByIndex(index)


def _read_gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    """The GPU's fields of a :class:`Reading`; one that this GPU does not have stays None."""
    found: dict[str, Any] = {}
    with suppress(Exception):
        found["gpu_sm_mhz"] = int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        found["gpu_memory_mhz"] = int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM))
    with suppress(Exception):
        found["gpu_watts"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
    with suppress(Exception):
        found["gpu_celsius"] = int(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
    with suppress(Exception):
        bits = int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
        found["gpu_throttle"] = tuple(reason for bit, reason in _REASONS.items() if bits & bit)
    with suppress(Exception):
        running = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        found["gpu_others"] = len(running - {os.getpid()})
    return found
