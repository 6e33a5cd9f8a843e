"""How many instructions the CPU kernels execute for one call, as valgrind counts them: the same on a busy machine.

    python benchmarks/instructions.py

One process under valgrind makes `CALLS` calls of every case, and after each case forks a child that ends at once. At a
process's end valgrind says how many instructions it has executed, and a child has its parent's behind it: so the
children read the counter. The calls' arguments and the fork itself are counted too, and taken off again: they are what
as many calls of a function that does nothing take.

No symbol is asked for. What pip installs is stripped, and of that callgrind books the library's entry under the
function that called it: its `--toggle-collect=stn_run_cpu` never begins to collect. valgrind knows AVX2 and hides
AVX-512, so it is the AVX2 kernels that are counted.
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
    """Name, problem and the arrays that it points at of each case; without numpy, which takes long to start here."""
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


def pixel_centers(size: int) -> Floats:
    """The basis [3, size * size] of the affine and the projective kind: x, y and 1 at each output pixel."""
    centers = [(2 * index + 1) / size - 1 for index in range(size)]
    return array.array("f", centers * size + [y for y in centers for _ in centers] + [1.0] * size**2)


def run() -> None:
    """What valgrind watches: all calls, in one thread. Prints the processes that have read the counter, and where."""
    library = plugin.load()
    # a function without arguments leaves those that it is given where they are
    nothing = library["stn_cpu_isa"]
    nothing.argtypes, nothing.restype = library.stn_run_cpu.argtypes, library.stn_run_cpu.restype
    names, problems_, arrays = zip(*problems(), strict=True)
    for problem in problems_:
        plugin.run_cpu(problem, 1)  # what happens but once
    gc.disable()
    _call(nothing, problems_[0])
    readers = [_read_counter()]
    _call(nothing, problems_[0])
    readers.append(_read_counter())
    for problem in problems_:
        _call(library.stn_run_cpu, problem)
        readers.append(_read_counter())
    print(json.dumps({"names": names, "readers": readers}))
    del arrays  # until here the problems point at them


def _call(function: Callable[..., int], problem: plugin.Problem) -> None:
    for _ in range(CALLS):
        function(ctypes.byref(problem), 1)


def _read_counter() -> int:
    """The process whose last words are what this one has executed up to here."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def count() -> dict[str, int]:
    """Instructions of one call, by case; empty without valgrind.

    Raises:
        SystemExit: valgrind failed, or printed something else than expected; one line.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return {}
    tool = [valgrind, "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command = [*tool, sys.executable, "-S", __file__, "--run"]  # -S: site-packages would only cost time
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
