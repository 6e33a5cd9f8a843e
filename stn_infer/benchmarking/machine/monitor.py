"""The machine that is measured on, and what it does meanwhile: clocks, power, temperature, throttling, other users.

Everything is only read. GPUs are read through NVML (``nvml.py``).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Protocol

from stn_infer import extras
from stn_infer.backends.device import Device
from stn_infer.benchmarking.machine.nvml import WatchedGpu, watch_gpu

#: What a time depends on.
PACKAGES = (
    "stn-infer",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "pillow",
)

_CPUS = Path("/sys/devices/system/cpu")
_BUSY = 0.05  # of a core
_HELD_BACK = 0.01  # of the time between two readings


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a reader of figures needs to know about a machine.

    Attributes:
        cpu: the processor's name.
        cores: how many logical cores this process may use.
        memory_gib: main memory.
        gpus: the name of each NVIDIA GPU.
        system: operating system and Python.
    """

    cpu: str
    cores: int
    memory_gib: float
    gpus: tuple[str, ...]
    system: str


def this_machine() -> Machine:
    """The machine this process runs on."""
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        gpus=gpu_names(),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    )


def versions() -> dict[str, str]:
    """The installed packages that a time depends on, name to version."""
    return extras.versions(PACKAGES)


def gpu_names() -> tuple[str, ...]:
    """Each NVIDIA GPU as the kernel's driver lists it; no CUDA context is made for it."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                names.append(value.strip())
    return tuple(names)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


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


@dataclass(frozen=True)
class Reading:
    """One look at the machine.

    Attributes:
        at_s: seconds since the round began in its process.
        cpu_mhz: mean clock of the cores; None where the system does not say.
        cpu_throttles: how often cores were throttled since the system started; None likewise.
        load: load average of the last minute.
        gpu_sm_mhz, gpu_memory_mhz, gpu_watts, gpu_celsius: the GPU's; None without one, or without NVML.
        gpu_throttle: why its clocks are held back; empty when they are not.
        gpu_others: processes on it other than this benchmark's own; None where it is not clear which is its own.
        gpu_held_back_ns: for how long power or heat held its clocks back since its driver was loaded; None where it
            does not say.
    """

    at_s: float
    _: KW_ONLY
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
    """Reads the machine; tests have a simulated one."""

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
        self._gpu: WatchedGpu | None = None
        target = Device.parse(device)
        if target.kind == "cuda":
            self._gpu = watch_gpu(target.index, open_gpu)

    def read(self, at_s: float) -> Reading:
        """See :class:`Monitor`."""
        gpu = self._gpu.read() if self._gpu is not None else {}
        return Reading(
            round(at_s, 3),
            cpu_mhz=_cpu_mhz(),
            cpu_throttles=_cpu_throttles(),
            load=round(os.getloadavg()[0], 2),
            **gpu,
        )


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


def cpu_share_in_use(seconds: float = 0.5) -> float:
    """The share of all cores' time, 0 to 1, that other processes use: what would disturb a measurement made now."""
    busy, total = _cpu_times()
    own = time.process_time()
    time.sleep(seconds)
    busy_after, total_after = _cpu_times()
    own_ticks = (time.process_time() - own) * os.sysconf("SC_CLK_TCK")
    return round(max(0.0, busy_after - busy - own_ticks) / max(1, total_after - total), 3)


def _cpu_times() -> tuple[int, int]:
    """Clock ticks spent busy and altogether, all cores together, since the system started (proc(5), /proc/stat)."""
    ticks = [int(text) for text in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


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
