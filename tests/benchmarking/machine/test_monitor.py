"""What is recorded of the machine."""

from __future__ import annotations

import numpy as np

from stn_infer.benchmarking.machine.monitor import (
    MachineMonitor,
    Reading,
    busy_processes,
    cpu_share_in_use,
    this_machine,
    versions,
)


def test_the_machine_is_described_and_monitored() -> None:
    machine = this_machine()
    assert machine.cores >= 1 and machine.memory_gib > 0.1 and machine.cpu
    assert 0 <= cpu_share_in_use(0.05) <= 1 and busy_processes(0.05) >= 0
    assert versions()["numpy"] == np.__version__
    reading = MachineMonitor("cpu").read(1.0)
    assert reading.at_s == 1.0 and reading.gpu_watts is None and not reading.throttled_since(reading)
    assert Reading(0.0, cpu_throttles=3).throttled_since(Reading(0.0, cpu_throttles=2))
    assert Reading(0.0, gpu_throttle=("hardware slowdown",)).throttled_since(Reading(0.0))
