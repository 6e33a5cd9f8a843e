"""What the machine does while it is measured: clocks, power, temperature, reasons for throttling, other users.

Everything is only read. GPUs are read through NVML (``nvml.py``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stn_infer.benchmarking.nvml import Gpu, watch_gpu

_CPUS = Path("/sys/devices/system/cpu")
_BUSY = 0.05  # of a core
_HELD_BACK = 0.01  # of the time between two readings


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
        gpu_others: processes on it besides this benchmark's own; None where they cannot be told apart.
        gpu_held_back_ns: for how long power or heat held its clocks back since its driver was loaded; None where it
            does not say.
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
    gpu_held_back_ns: int | None = field(default=None, metadata={"since": 3})

    def throttled_since(self, before: Reading) -> bool:
        """Whether clocks are held back now, or were at some time since ``before``."""
        if None not in (self.cpu_throttles, before.cpu_throttles) and self.cpu_throttles != before.cpu_throttles:
            return True
        if self.gpu_held_back_ns is not None and before.gpu_held_back_ns is not None:
            held_s = (self.gpu_held_back_ns - before.gpu_held_back_ns) / 1e9
            return bool(self.gpu_throttle) or held_s > _HELD_BACK * (self.at_s - before.at_s)
        return bool(self.gpu_throttle)


class Monitor(Protocol):
    """Reads the machine; tests have one that makes things up."""

    def read(self, at_s: float) -> Reading:
        """A look now, which is ``at_s`` seconds after the round began."""
        ...


class MachineMonitor:
    """The real one.

    Args:
        device: ``cpu`` or ``cuda:N``; a GPU is read only where it is measured.
        open_gpu: opens that GPU in this process; who is on it is asked before and after.
    """

    def __init__(self, device: str, open_gpu: Callable[[], None] = lambda: None) -> None:
        self._gpu: Gpu | None = None
        if device.startswith("cuda"):
            self._gpu = watch_gpu(int(device.partition(":")[2] or 0), open_gpu)

    def read(self, at_s: float) -> Reading:
        """See :class:`Monitor`."""
        gpu = self._gpu.read() if self._gpu is not None else {}
        return Reading(round(at_s, 3), _cpu_mhz(), _cpu_throttles(), round(os.getloadavg()[0], 2), **gpu)


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
