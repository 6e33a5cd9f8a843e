"""Count the instructions that the CPU kernels execute for one call, with valgrind; the load does not affect them.

    python benchmarks/instructions.py

One process under valgrind makes `CALLS` calls of every case, and after each case forks a child that exits at once. When
a process exits, valgrind prints its number of instructions, and a child's number includes its parent's up to the fork.
So the children read the counter. The arguments of the calls and the fork are counted too; they are subtracted, as the
count of the same number of calls of an empty function.

This needs no symbols. pip installs a stripped library, for which callgrind attributes the library's entry to its
caller, so that `--toggle-collect=stn_run_cpu` never starts to collect. valgrind supports AVX2 and hides AVX-512, so the
AVX2 kernels are counted.
"""

from __future__ import annotations

import array
import ctypes
import gc
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from stn_infer import plugin

CALLS = 10
_TOTAL = re.compile(r"^==(\d+)== I +refs: +([\d,]+)$", re.MULTILINE)

Floats: TypeAlias = "array.array[float]"


def problems() -> Iterator[tuple[str, plugin.Problem, list[Floats]]]:
    """The name of each case, its problem, and the arrays that it points to; without numpy, a slow import here."""
    pool = [random.Random(0).random() for _ in range(997)]
    near = [1.0, 0.1, 0.05, -0.1, 0.9, 0.02, 0.05, -0.05, 1.0]

    def values(count: int) -> Floats:
        return (array.array("f", pool) * (count // len(pool) + 1))[:count]

    def make(batch: int, channels: int, size: int, rows: int, **fields: int) -> tuple[plugin.Problem, list[Floats]]:
        images, output = values(batch * channels * size * size), values(batch * channels * size * size)
        length = 9 if fields.get("kind") == 2 else 2 * rows
        theta = array.array("f", (near + [0.0] * length)[:length] * batch)
        basis = pixel_centers(size) if rows == 3 else values(rows * size * size)
        problem = plugin.Problem(
            rank=2,
            dtype=0,
            batch=batch,
            channels=channels,
            basis_rows=rows,
            points=size * size,
            theta_batch=batch,
            input_batch=batch,
            input=images.buffer_info()[0],
            theta=theta.buffer_info()[0],
            basis=basis.buffer_info()[0],
            output=output.buffer_info()[0],
            **fields,
        )
        for axis in range(2):
            problem.input_size[axis] = problem.output_size[axis] = size
        return problem, [images, output, theta, basis]

    yield "affine bilinear zeros, 16x1x28x28", *make(16, 1, 28, 3)
    yield "affine bilinear zeros, 1x3x128x128", *make(1, 3, 128, 3)
    yield "affine bilinear zeros, channels last, 1x32x28x28", *make(1, 32, 28, 3, input_layout=1, output_layout=1)
    yield "affine nearest border, 16x1x28x28", *make(16, 1, 28, 3, mode=1, padding=1)
    yield "affine bicubic reflection, 16x1x28x28", *make(16, 1, 28, 3, mode=2, padding=2)
    yield "spline of 16 points, bilinear border, 16x1x28x28", *make(16, 1, 28, 16, kind=1, padding=1)
    yield "projective bilinear zeros, 16x1x28x28", *make(16, 1, 28, 3, kind=2)
    bounded, kept = make(16, 1, 28, 3, kind=2, clamp_w=1)
    bounded.w_min, bounded.offset[0], bounded.offset[1] = 0.5, 0.1, -0.1
    yield "projective with w_min and offset, bilinear zeros, 16x1x28x28", bounded, kept


def pixel_centers(size: int) -> Floats:
    """The basis [3, size * size] of the affine and the projective kind: x, y and 1 at each output pixel."""
    centers = [(2 * index + 1) / size - 1 for index in range(size)]
    return array.array("f", centers * size + [y for y in centers for _ in centers] + [1.0] * size**2)


def run() -> None:
    """Make all calls under valgrind, in one thread, and print the names and the processes that read the counter."""
    library = plugin.load()
    # a function without parameters ignores its arguments
    nothing = library["stn_cpu_isa"]
    nothing.argtypes, nothing.restype = library.stn_run_cpu.argtypes, library.stn_run_cpu.restype
    names, problems_, arrays = zip(*problems(), strict=True)
    for problem in problems_:
        plugin.run_cpu(problem, 1)  # initialization, which happens only once
    gc.disable()
    _call(nothing, problems_[0])
    readers = [_read_counter()]
    _call(nothing, problems_[0])
    readers.append(_read_counter())
    for problem in problems_:
        _call(library.stn_run_cpu, problem)
        readers.append(_read_counter())
    print(json.dumps({"names": names, "readers": readers}))
    del arrays  # the problems point to them until here


def _call(function: Callable[..., int], problem: plugin.Problem) -> None:
    for _ in range(CALLS):
        function(ctypes.byref(problem), 1)


def _read_counter() -> int:
    """Fork a child whose printed count is this process's count up to here; returns its process ID."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def count() -> dict[str, int]:
    """The instructions of one call, by case; empty without valgrind.

    Raises:
        SystemExit: valgrind failed, or its output is not as expected.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return {}
    tool = [valgrind, "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command = [*tool, sys.executable, "-S", __file__, "--run"]  # -S: without site-packages, which are slow to import
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(Path(plugin.__file__).parents[1]),
        plugin.ENVIRONMENT: str(plugin.library_path()),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line and not line.startswith(("==", "--"))]
        raise SystemExit(f"valgrind failed: {words[-1] if words else f'exit code {done.returncode}'}")
    totals = {int(process): int(total.replace(",", "")) for process, total in _TOTAL.findall(done.stderr)}
    said = json.loads(done.stdout)
    if not totals.keys() >= set(said["readers"]):
        raise SystemExit(f"expected valgrind to print `I refs` for every process, it printed: {done.stderr[-200:]!r}")
    reading = [totals[reader] for reader in said["readers"]]
    nothing, *spent = (after - before for before, after in pairwise(reading))
    return {name: round((total - nothing) / CALLS) for name, total in zip(said["names"], spent, strict=True)}


if __name__ == "__main__":
    if "--run" in sys.argv:
        run()
    else:
        for case, instructions in count().items():
            print(f"{case:50} {instructions:12,}")
