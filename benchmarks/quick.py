"""A regression guard that holds on a noisy machine: ratios of neighbours in time, and instruction counts.

    python benchmarks/quick.py                     # measure, and compare with the baseline (make bench-quick)
    python benchmarks/quick.py --update            # measure, and make that the baseline

Under three minutes on two cores. A time means little on a machine that others use, so none is compared:

- A **ratio** is of two variants that take turns every few milliseconds, in an order drawn anew each round. Of each
  the fastest turn counts, because a disturbance can only add time, and both are judged in the same moments: a round
  in which the machine was slow is slow for both. Processes are started anew, because where memory happens to lie
  decides too. `WORSE` is what a ratio may lose before it is called a regression.
- An **instruction count** is what the CPU kernels execute for one call, as valgrind counts it: the same to the last
  digit however busy the machine is. valgrind knows AVX2 and hides AVX-512, so it is the AVX2 kernels that are counted.
  A compiler of another version gives other counts; the baseline says which one made it.

Exit code 1: something is slower than the baseline allows. A speed-up is reported, and is a reason to `--update`.
"""

from __future__ import annotations

import argparse
import array
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from stn_infer import plugin

BASELINE = Path(__file__).parent / "baselines" / "quick.json"
SCHEMA_VERSION = 1
WORSE = 0.10  # of a ratio
MORE = 0.02  # of an instruction count: the kernels' own may move by a few when the compiler lays out code anew
_ROUNDS = 20  # a process
_PROCESSES = 3
_TURN_SECONDS = 0.012


@dataclass(frozen=True)
class Quick:
    """What one run measured.

    Attributes:
        ratios: by name, how many times as fast as its rival a variant is.
        instructions: by name, how many the kernel executes for one call; empty without valgrind.
        compiler: the C++ compiler that is installed, by which counts may differ.
        cpu_isa: the instruction set that the timed kernels used.
    """

    ratios: dict[str, float]
    instructions: dict[str, int]
    compiler: str
    cpu_isa: str
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Change:
    """One figure against the baseline; ``change`` is relative, positive where it got faster."""

    name: str
    before: float
    now: float
    change: float
    regressed: bool


def best_turns(
    rivals: Mapping[str, Callable[[], object]],
    rounds: int = _ROUNDS,
    turn_seconds: float = _TURN_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> dict[str, float]:
    """Seconds a call of each, in its fastest turn; the rivals take turns, ``rounds`` each, in an order drawn anew."""
    order = random.Random(seed)
    calls: dict[str, int] = {}
    for name, call in rivals.items():
        call()
        begin = clock()
        call()
        calls[name] = max(1, math.ceil(turn_seconds / max(clock() - begin, 1e-9)))
    best = dict.fromkeys(rivals, math.inf)
    names = list(rivals)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            call = rivals[name]
            call()  # brings back to the caches what the rival's turn has driven out
            begin = clock()
            for _ in range(calls[name]):
                call()
            best[name] = min(best[name], (clock() - begin) / calls[name])
    return best


# A case, and of which two variants each of its ratios is: slower / faster.
_FUSED = "onnxruntime, fused"
_OVER_FUSED = {
    "fused / onnxruntime function": ("onnxruntime, function", _FUSED),
    "fused / PyTorch": ("PyTorch, grid_sample", _FUSED),
}
_OVER_PLAIN = {
    "function / plain export": ("onnxruntime, plain export", "onnxruntime, function"),
    "fused / plain export": ("onnxruntime, plain export", _FUSED),
}
CASES = {
    "warp 256x1x28x28": _OVER_FUSED,
    "warp 4x3x224x224": _OVER_FUSED,
    "warp 16x32x28x28": _OVER_FUSED,
    "tutorial-stn, batch 32": _OVER_PLAIN,
}


def time_case(case: str, rounds: int) -> dict[str, float]:
    """Seconds a call of each variant, in this process and one thread."""
    import torch
    from warp import tutorial, warps

    torch.set_num_threads(1)
    kind, _, size = case.partition(" ")
    calls, *_ = warps(tuple(map(int, size.split("x"))), 1) if kind == "warp" else tutorial(1, int(size.split()[-1]))
    return best_turns(calls, rounds)


def ratios(rounds: int) -> dict[str, float]:
    """Ours against its rivals. Where memory happens to lie decides too, so every case starts over in new processes."""
    found = {}
    for case, pairs in CASES.items():
        best: dict[str, float] = {}
        for _ in range(_PROCESSES):
            command = [sys.executable, __file__, "--time-case", case, "--rounds", str(rounds)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit(f"{case}: could not be timed")
            for variant, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                best[variant] = min(seconds, best.get(variant, math.inf))
        found.update({f"{case}: {name}": best[slow] / best[fast] for name, (slow, fast) in pairs.items()})
    return found


def kernel_cases() -> Iterator[tuple[str, plugin.Problem, list[object]]]:
    """Name, problem and the arrays that it points at, of the kernels that are counted; without numpy, for valgrind."""
    generator = random.Random(0)

    def values(count: int) -> array.array[float]:
        return array.array("f", [generator.random() for _ in range(count)])

    def make(batch: int, channels: int, size: int, rows: int, **fields: int) -> tuple[plugin.Problem, list[object]]:
        images, output = values(batch * channels * size * size), values(batch * channels * size * size)
        near = [1.0, 0.1, 0.05, -0.1, 0.9, 0.02, 0.05, -0.05, 1.0]
        length = 9 if fields.get("kind") == 2 else 2 * rows
        theta = array.array("f", [(near[i] if i < 9 else 0.0) for _ in range(batch) for i in range(length)])
        basis = values(rows * size * size)
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


def run_kernels() -> None:
    """What valgrind watches: every case once, in one thread."""
    for _, problem, _arrays in kernel_cases():
        plugin.run_cpu(problem, 1)


def count_instructions() -> dict[str, int]:
    """Instructions a case, counted by valgrind between entry and return of the library's one CPU function."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        # two spellings of one name: of two options with the same pattern callgrind obeys the first
        tool = [valgrind, "--tool=callgrind", "--toggle-collect=stn_run_cpu*", "--dump-after=*stn_run_cpu*"]
        tool.append(f"--callgrind-out-file={folder}/calls")
        ours = [sys.executable, __file__, "--run-kernels"]
        done = subprocess.run([*tool, *ours], capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "0"})
        if done.returncode:
            raise SystemExit(f"valgrind failed: {done.stderr.strip().splitlines()[-1]}")
        names = [name for name, *_ in kernel_cases()]
        counts = [_total(Path(folder) / f"calls.{part}") for part in range(1, len(names) + 1)]
    return dict(zip(names, counts, strict=True))


def _total(dump: Path) -> int:
    if not dump.exists():
        raise SystemExit(f"valgrind wrote no {dump.name}: is stn_run_cpu still the library's entry?")
    found = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(), re.MULTILINE)
    if found is None or int(found[1]) == 0:
        raise SystemExit(f"valgrind counted nothing in {dump.name}: is stn_run_cpu still the library's entry?")
    return int(found[1])


def compare(before: Quick, now: Quick) -> list[Change]:
    """Every figure that both have."""
    changes = []
    for name in before.ratios.keys() & now.ratios.keys():
        change = now.ratios[name] / before.ratios[name] - 1
        changes.append(Change(name, before.ratios[name], now.ratios[name], change, change < -WORSE))
    for name in before.instructions.keys() & now.instructions.keys():
        change = before.instructions[name] / now.instructions[name] - 1
        regressed = now.instructions[name] > before.instructions[name] * (1 + MORE)
        changes.append(Change(name, before.instructions[name], now.instructions[name], change, regressed))
    return sorted(changes, key=lambda change: change.name)


def load(path: Path) -> Quick:
    """A baseline file."""
    try:
        return Quick(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"no baseline in {path} ({error}); make one with --update") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--update", action="store_true", help="make this run the baseline")
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--run-kernels", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--time-case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_kernels:
        run_kernels()
        return
    if arguments.time_case:
        print(json.dumps(time_case(arguments.time_case, arguments.rounds)))
        return
    if not plugin.available():
        raise SystemExit("the plugin library is not built: stn-infer plugin build")
    before = None if arguments.update else load(arguments.baseline)
    now = Quick(ratios(arguments.rounds), count_instructions(), _compiler(), plugin.info().cpu_isa or "")
    if before is None:
        arguments.baseline.parent.mkdir(exist_ok=True)
        arguments.baseline.write_text(json.dumps(asdict(now), indent=1) + "\n", encoding="utf-8")
        before = now
    changes = compare(before, now)
    for change in changes:
        verdict = "REGRESSION" if change.regressed else ""
        print(f"{change.name:62} {change.before:12.7g} -> {change.now:12.7g} {change.change:+7.1%} {verdict}")
    if not now.instructions:
        print("no instruction counts: valgrind is not installed")
    if now.cpu_isa != before.cpu_isa:
        print(f"ratios are of another machine: {before.cpu_isa} then, {now.cpu_isa} now")
    if now.compiler != before.compiler:
        print(f"counts are of another compiler: {before.compiler} then, {now.compiler} now")
    raise SystemExit(any(change.regressed for change in changes))


def _compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        return ""
    lines = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()
    return lines[0] if lines else ""


if __name__ == "__main__":
    main()
