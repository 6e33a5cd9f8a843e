"""A regression guard that holds on a noisy machine: ratios of neighbors in time, and instruction counts.

    python benchmarks/quick.py                     # measure, and compare with the baseline (make bench-quick)
    python benchmarks/quick.py --update            # measure, and make that the baseline

Under three minutes on two cores; when others keep them busy, fewer processes are started. A time means little on such a
machine, so none is compared:

- A **ratio** is of two variants that take turns (`turns.py`) every few milliseconds, in a random order each round. The
  fastest call of a process counts, because a disturbance only adds time; calls take about a millisecond, so that some
  stay undisturbed. Where memory happens to lie matters too, and now and then a process is lucky with its clock or its
  neighbors. So processes start afresh, and the process at the lower quartile stands for each variant.
- An **instruction count** is what the CPU kernels execute for one call (`instructions.py`): the same however busy the
  machine is.

Of five runs on two cores at loads of four to nine, four differed by at most 9 % in any ratio, and none in the counts.
In the fifth, at the highest load and with few processes, one case was off by 11 and 22 %: where a lone ratio moves on
a machine as busy as that, measure again.

A figure is judged where it can be: ratios on the processor and against the library versions that the baseline names,
counts of a plugin library that the same compiler made. Elsewhere they are only shown; your own baseline
(`--baseline FILE --update`, before a change) judges them.

Exit code 1: something is slower than the baseline allows. A speedup is reported, and is a reason to `--update`.
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
MORE = 0.02  # of an instruction count: the kernels' own may move by a few when the compiler lays out code differently
FEWEST, MOST = 5, 12  # processes
_SECONDS = 95.0  # after which none begins, once there are the fewest
_ROUNDS = 40  # per process
_TURN_SECONDS = 0.012

# A case, and of which two variants each of its ratios is: slower / faster.
_OVER_FUSED = {"fused / onnxruntime function": (FUNCTION, FUSED), "fused / PyTorch": (PYTORCH, FUSED)}
CASES = {
    "warp 32x1x28x28": _OVER_FUSED,
    "warp 1x3x128x128": _OVER_FUSED,
    "warp 1x32x28x28": _OVER_FUSED,
    "tutorial-stn, batch 4": {"function / plain export": (PLAIN, FUNCTION), "fused / plain export": (PLAIN, FUSED)},
}

Fastest = dict[str, dict[str, float]]
"""Milliseconds of the fastest call that one process made, by case and variant."""


@dataclass(frozen=True)
class Quick:
    """What one run measured.

    Attributes:
        ratios: by name, a variant's speedup over another.
        instructions: by name, how many the kernel executes for one call; empty without valgrind.
        cpu: the processor, and the instruction set that the timed kernels used.
        libraries: the versions of PyTorch and onnxruntime.
        compiler: what made the library.
    """

    ratios: dict[str, float]
    instructions: dict[str, int]
    cpu: str
    libraries: str
    compiler: str
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Change:
    """One figure against the baseline; ``change`` is relative, positive where it got faster."""

    name: str
    before: float
    now: float
    change: float
    regressed: bool


def time_cases(folder: Path, rounds: int) -> Fastest:
    """Every case in this process, in one thread, verified before it is timed."""
    plan = Plan(rounds, calls=1, turn_seconds=_TURN_SECONDS, warmup_seconds=0.1)
    fastest = {}
    for case, pairs in CASES.items():
        calls = quick_cases.verified_calls(case, folder)
        used = {name: calls[name] for pair in pairs.values() for name in pair}
        fastest[case] = {name: min(timing.samples_ms) for name, timing in interleave(used, plan).items()}
    return fastest


def ratios(rounds: int) -> dict[str, float]:
    """Ours against the other variants, in processes that start afresh."""
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
    """Each ratio of two variants' fastest calls, each in the process at the lower quartile."""

    def settled(case: str, variant: str) -> float:
        return sorted(fastest[case][variant] for fastest in processes)[len(processes) // 4]

    return {
        f"{case}: {name}": settled(case, slow) / settled(case, fast)
        for case, pairs in CASES.items()
        for name, (slow, fast) in pairs.items()
    }


def compare(before: Quick, now: Quick) -> list[Change]:
    """Every figure that both have; only what was measured in the same circumstances can have regressed."""
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
    """What was not judged, and why."""
    found = []
    if not now.instructions:
        found.append("no instruction counts: valgrind is not installed")
    elif now.compiler != before.compiler:
        found.append(f"counts not judged, another compiler: {before.compiler} then, {now.compiler} now")
    if now.cpu != before.cpu:
        found.append(f"ratios not judged, another machine: {before.cpu} then, {now.cpu} now")
    elif now.libraries != before.libraries:
        found.append(f"ratios not judged, other versions: {before.libraries} then, {now.libraries} now")
    return found


def load(path: Path) -> Quick:
    """A baseline file.

    Raises:
        SystemExit: there is none that can be read; one line.
    """
    try:
        found = Quick(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SystemExit(f"no baseline in {path} ({error}); make one with --update") from None
    if found.schema_version != SCHEMA_VERSION:
        raise SystemExit(f"expected a baseline of version {SCHEMA_VERSION}, given {path}; make one with --update")
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
        raise SystemExit("the plugin library is not built: stn-infer plugin build")
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
    """What compilers write of themselves into the files that they make; stripping leaves it."""
    found = re.findall(rb"GCC: [ -~]+|[ -~]*clang version [ -~]+", library.read_bytes())
    return "; ".join(sorted({name.decode() for name in found}))


if __name__ == "__main__":
    main()
