"""The thread pool uses the process's processors, whatever the calling thread is pinned to."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from stn_infer import plugin

pytestmark = [
    pytest.mark.skipif(not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor: there is nothing to share"),
]

PROGRAM = """
import array, ctypes, os, sys, threading, time
from stn_infer import plugin

everything = os.sched_getaffinity(0)
one = {min(everything)}

def tasks():
    return set(map(int, os.listdir("/proc/self/task")))

size = 1024
image, output = (array.array("f", [0.0]) * (size * size) for _ in range(2))
theta = array.array("f", [1, 0, 0, 0, 1, 0])
problem = plugin.Problem(
    rank=2, batch=1, channels=1, basis_rows=3, theta_batch=1, input_batch=1, input=image.buffer_info()[0],
    theta=theta.buffer_info()[0], output=output.buffer_info()[0],
)
for axis in range(2):
    problem.input_size[axis] = problem.output_size[axis] = size

def pinned():
    os.sched_setaffinity(0, one)
    plugin.run_cpu(problem)

plugin.load()
before = tasks()
if sys.argv[1] == "thread":
    caller = threading.Thread(target=pinned)
    caller.start()
    caller.join()
    before.add(caller.native_id)
else:
    pinned()
    if sys.argv[1] == "restored":
        assert tasks() == before, "no thread may be seen that could run elsewhere"
        os.sched_setaffinity(0, everything)
        plugin.run_cpu(problem)
expected = 0 if sys.argv[1] == "process" else len(everything) - 1
for attempt in range(100):
    helpers = tasks() - before
    if len(helpers) == expected:
        break
    time.sleep(0.01)  # the list of threads is incomplete while one of them, such as the caller, is ending
assert len(helpers) == expected, helpers
for helper in helpers:
    assert os.sched_getaffinity(helper) == everything, os.sched_getaffinity(helper)
"""


@pytest.mark.parametrize("caller", ["thread", "restored", "process"])
def test_a_pinned_callers_mask_is_not_the_processes(caller: str) -> None:
    """A thread that is pinned at the first call; a process that is pinned only then; and a process that stays pinned.

    The last one must not crowd a processor with helpers.
    """
    command = [sys.executable, "-c", PROGRAM, caller]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
