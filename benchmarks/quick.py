"""A regression check that works on a noisy machine: ratios of interleaved variants, and instruction counts.

    python benchmarks/quick.py                     # measure, and compare with the baseline (make bench-quick)
    python benchmarks/quick.py --update            # measure, and make that the baseline

It takes less than three minutes on two cores; on a busy machine it starts fewer processes. Absolute times are not
reliable on such a machine, so they are not compared:

- A **ratio** is of two variants that take turns (`turns.py`) every few milliseconds, in a random order each round. The
  fastest call of a process counts, because a disturbance only adds time. Calls take about a millisecond, so that some
  are undisturbed. Memory layout, clocks and other processes also affect a whole process. So several processes are
  started, and the process at the lower quartile represents each variant.
- An **instruction count** is the number of instructions that the CPU kernels execute for one call (`instructions.py`).
  It does not depend on the load.

Of five runs on two cores at loads of four to nine, four differed by at most 9 % in any ratio, and none in the counts.
In the fifth, at the highest load and with few processes, one case differed by 11 and 22 %. If a single ratio changes on
such a busy machine, measure again.

A figure is compared only under the baseline's conditions: ratios on the same processor and with the same library
versions, counts for a plugin library from the same compiler. Otherwise it is only shown; make your own baseline before
a change (`--baseline FILE --update`) to compare with.

Exit code 1: a figure is worse than the baseline allows. A speedup is reported; use `--update` to make it the baseline.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import instructions, quick_cases
from benchmarks.quick_cases import FUNCTION, FUSED, PLAIN, PYTORCH
from benchmarks.turns import Plan, interleave
from stn_infer import plugin
from stn_infer.benchmarking.machine.monitor import this_machine, versions

BASELINE = Path(__file__).parent / "baselines" / "quick.json"
SCHEMA_VERSION = 3
WORSE = 0.10  # of a ratio
MORE = 0.02  # of an instruction count, which may change slightly when the compiler lays out code differently
FEWEST, MOST = 5, 12  # processes
_SECONDS = 95.0  # no process starts after this time, once there are FEWEST
_ROUNDS = 40  # per process
_TURN_SECONDS = 0.012

# The ratios of each case, and the two variants of each: slower / faster.
_OVER_FUSED = {"fused / onnxruntime function": (FUNCTION, FUSED), "fused / PyTorch": (PYTORCH, FUSED)}
CASES = {
    "warp 32x1x28x28": _OVER_FUSED,
    "warp 1x3x128x128": _OVER_FUSED,
    "warp 1x32x28x28": _OVER_FUSED,
    "tutorial-stn, batch 4": {"function / plain export": (PLAIN, FUNCTION), "fused / plain export": (PLAIN, FUSED)},
}

Fastest = dict[str, dict[str, float]]
"""The fastest call of one process in milliseconds, by case and variant."""


@dataclass(frozen=True)
class Quick:
    """The figures of one run.

    Attributes:
        ratios: by name, a variant's speedup over another.
        instructions: by name, the number that the kernel executes for one call; empty without valgrind.
        cpu: the processor, and the instruction set of the timed kernels.
        libraries: the versions of PyTorch and onnxruntime.
        compiler: the compiler of the plugin library.
    """

    ratios: dict[str, float]
    instructions: dict[str, int]
    cpu: str
    libraries: str
    compiler: str
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Change:
    """One figure against the baseline; ``change`` is relative and positive for a speedup."""

    name: str
    before: float
    now: float
    change: float
    regressed: bool


def time_cases(folder: Path, rounds: int) -> Fastest:
    """Verify and time every case in this process, in one thread."""
    plan = Plan(rounds, calls=1, turn_seconds=_TURN_SECONDS, warmup_seconds=0.1)
    fastest = {}
    for case, pairs in CASES.items():
        calls = quick_cases.verified_calls(case, folder)
        used = {name: calls[name] for pair in pairs.values() for name in pair}
        fastest[case] = {name: min(timing.samples_ms) for name, timing in interleave(used, plan).items()}
    return fastest


def ratios(rounds: int) -> dict[str, float]:
    """Measure all ratios in several processes."""
    with tempfile.TemporaryDirectory() as folder:
        quick_cases.write_files(Path(folder))
        command = [sys.executable, __file__, "--time-cases", folder, "--rounds", str(rounds)]
        found: list[Fastest] = []
        start = time.monotonic()
        while len(found) < FEWEST or (len(found) < MOST and time.monotonic() - start < _SECONDS):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                raise SystemExit("the cases could not be timed")
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return ratios_of(found)


def ratios_of(processes: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, float]:
    """The ratios of two variants' fastest calls, each from the process at the lower quartile."""

    def settled(case: str, variant: str) -> float:
        return sorted(fastest[case][variant] for fastest in processes)[len(processes) // 4]

    return {
        f"{case}: {name}": settled(case, slow) / settled(case, fast)
        for case, pairs in CASES.items()
        for name, (slow, fast) in pairs.items()
    }


def compare(before: Quick, now: Quick) -> list[Change]:
    """Compare every figure that both have; only one that was measured under the same conditions can be a regression."""
    changes = []
    comparable = (before.cpu, before.libraries) == (now.cpu, now.libraries)
    for name in before.ratios.keys() & now.ratios.keys():
        change = now.ratios[name] / before.ratios[name] - 1
        changes.append(Change(name, before.ratios[name], now.ratios[name], change, comparable and change < -WORSE))
    comparable = before.compiler == now.compiler
    for name in before.instructions.keys() & now.instructions.keys():
        change = before.instructions[name] / now.instructions[name] - 1
        more = now.instructions[name] > before.instructions[name] * (1 + MORE)
        changes.append(Change(name, before.instructions[name], now.instructions[name], change, comparable and more))
    return sorted(changes, key=lambda change: change.name)


def remarks(before: Quick, now: Quick) -> list[str]:
    """The figures that were not compared, and why."""
    found = []
    if not now.instructions:
        found.append("no instruction counts: valgrind is not installed")
    elif now.compiler != before.compiler:
        found.append(f"counts not compared, another compiler: baseline {before.compiler}, now {now.compiler}")
    if now.cpu != before.cpu:
        found.append(f"ratios not compared, another machine: baseline {before.cpu}, now {now.cpu}")
    elif now.libraries != before.libraries:
        found.append(f"ratios not compared, other versions: baseline {before.libraries}, now {now.libraries}")
    return found


def load(path: Path) -> Quick:
    """Read a baseline file.

    Raises:
        SystemExit: it is missing or cannot be read.
    """
    try:
        found = Quick(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"no baseline in {path} ({error}); make one with --update") from None
    if found.schema_version != SCHEMA_VERSION:
        raise SystemExit(
            f"expected a baseline of version {SCHEMA_VERSION}, {path} has version {found.schema_version}; "
            "make one with --update"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--update", action="store_true", help="make this run the baseline")
    parser.add_argument("--rounds", type=int, default=_ROUNDS, help="turns of each variant in a process")
    parser.add_argument("--time-cases", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.time_cases:
        print(json.dumps(time_cases(arguments.time_cases, arguments.rounds)))
        return
    if not plugin.available():
        raise SystemExit("the plugin library is not built: run stn-infer plugin build")
    before = None if arguments.update else load(arguments.baseline)
    now = Quick(ratios(arguments.rounds), instructions.count(), _cpu(), _libraries(), compiler(plugin.library_path()))
    if before is None:
        arguments.baseline.parent.mkdir(exist_ok=True)
        arguments.baseline.write_text(json.dumps(asdict(now), indent=1) + "\n", encoding="utf-8")
        before = now
    changes = compare(before, now)
    for change in changes:
        verdict = "REGRESSION" if change.regressed else ""
        print(f"{change.name:62} {change.before:12.7g} -> {change.now:12.7g} {change.change:+7.1%} {verdict}")
    for remark in remarks(before, now):
        print(remark)
    raise SystemExit(any(change.regressed for change in changes))


def _cpu() -> str:
    return f"{this_machine().cpu}, {plugin.info().cpu_isa}"


def _libraries() -> str:
    found = versions()
    return ", ".join(f"{name} {found[name]}" for name in ("torch", "onnxruntime-gpu") if name in found)


def compiler(library: Path) -> str:
    """The compiler's own identification in the library, which stripping keeps."""
    found = re.findall(rb"GCC: [ -~]+|[ -~]*clang version [ -~]+", library.read_bytes())
    return "; ".join(sorted({name.decode() for name in found}))


if __name__ == "__main__":
    main()
