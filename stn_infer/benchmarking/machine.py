"""What a measurement was made on: processor, memory, GPUs, versions, who else is using it. No host or user names."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "stn-infer",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Machine:
    """A machine as a reader of figures needs to know it.

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
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def gpu_names() -> tuple[str, ...]:
    """Each NVIDIA GPU as the kernel's driver lists it; no CUDA context is made for it."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                names.append(value.strip())
    return tuple(names)


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


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
