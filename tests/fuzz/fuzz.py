"""``make fuzz``: mutate seeds, run commands on them, report broken promises, minimize and store them.

    python -m tests.fuzz.fuzz --seconds 60            # as long as it takes, from a random seed
    python -m tests.fuzz.fuzz --seed 7 --count 2000   # the same 2,000 cases each time
    python -m tests.fuzz.fuzz --seed 7 --only 123     # one of them again, with all that it printed
    python -m tests.fuzz.fuzz --summary LOG...        # what logs hold: counts by command, kind and outcome

A finding is stored in ``tests/fuzz/corpus/``, and ``make test`` fails until it is fixed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from tests.fuzz import inside as inside_process
from tests.fuzz import worker
from tests.fuzz.corpus import store
from tests.fuzz.minimize import minimize
from tests.fuzz.mutate import mutate
from tests.fuzz.mutate_onnx import is_sound
from tests.fuzz.seeds import Command, Seed, seeds
from tests.fuzz.worker import Finding, Outcome

#: How often each kind of file is mutated.
WEIGHTS = {
    **{"onnx": 50, "metadata": 4, "array": 11, "image": 11, "checkpoint": 9, "program": 3, "recipe": 4, "list": 2},
    **{"result": 3, "suite": 0.3, "sidecar": 2, "status": 2},
}
_BATCH = 50  # cases in one copy of this process
_STORED = 3  # cases of one finding; the first is minimized
_COSTLY = ("build", "--calibrate", "--suite")  # what takes seconds when it succeeds
_KEPT = 0.1  # share of those commands that are run


@dataclass(frozen=True)
class Case:
    """A mutated seed and one command; ``target`` is the file that was mutated."""

    seed: Seed
    target: str
    command: Command


def make_case(number: int, seed: int, all_seeds: tuple[Seed, ...]) -> Case:
    """The case with this number."""
    generator = random.Random(f"{seed}:{number}")
    kind = generator.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    of_kind = [it for it in all_seeds if it.kind == kind]
    chosen, other = generator.choice(of_kind), generator.choice(of_kind)
    target = generator.choice(chosen.targets)
    command = generator.choice(chosen.commands)
    if any(part in _COSTLY for part in command) and generator.random() > _KEPT:
        command = generator.choice(chosen.commands)
    donor = other.files[generator.choice(other.targets)]
    for _ in range(generator.choice((1, 4, 8))):  # most damage is refused at once: many cases shall get further
        content = mutate(target, chosen.files[target], generator, donor)
        if not target.endswith(".onnx") or is_sound(content):
            break
    return Case(replace(chosen, files={**chosen.files, target: content}), target, command)


def try_case(case: Case, scratch: Path, *, trial: bool, process: bool = False) -> tuple[Outcome, Finding | None]:
    """Run a case in a folder of its own."""
    folder = scratch / "case"
    folder.parent.mkdir(exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    case.seed.write(folder)
    outcome = worker.run(case.command, folder, trial=trial, process=process)
    finding = worker.judge(case.command, outcome)
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
    return outcome, finding


def confirmed(case: Case, scratch: Path, finding: Finding, trial: bool) -> Finding | None:
    """The finding as users meet it: where no trial was made, the command is started as a process with all guards."""
    if trial and finding.what not in ("slow", "memory"):
        return finding
    return try_case(case, scratch, trial=True, process=True)[1]


def smaller(case: Case, scratch: Path, finding: Finding, trial: bool, seconds: float) -> Case:
    """The case with its mutated file minimized."""

    def same(data: bytes) -> bool:
        changed = replace(case.seed, files={**case.seed.files, case.target: data})
        found = try_case(replace(case, seed=changed), scratch, trial=trial)[1]
        return found is not None and str(found) == str(finding)

    content = case.seed.files[case.target]
    if not same(content):
        return case
    content = minimize(content, same, seconds=seconds)
    return replace(case, seed=replace(case.seed, files={**case.seed.files, case.target: content}))


def _prepare(all_seeds: tuple[Seed, ...], scratch: Path) -> None:
    wanted: dict[tuple[str, str], tuple[Command, Seed]] = {}
    for seed in all_seeds:
        for command in seed.commands:
            if command[0] not in ("build", "bench", "cache") and "--calibrate" not in command:
                wanted.setdefault((seed.kind, command[0]), (command, seed))
    commands = []
    for index, (command, seed) in enumerate(wanted.values()):
        seed.write(scratch / f"prepare{index}")
        commands.append((command, scratch / f"prepare{index}"))
    worker.prepare(commands)


class Lane:
    """One of the processes that run cases, each every n-th."""

    def __init__(self, options: argparse.Namespace, all_seeds: tuple[Seed, ...], scratch: Path) -> None:
        self._options, self._seeds, self._scratch = options, all_seeds, scratch
        self._log = options.log.open("a") if options.log else None
        self.found: Counter[str] = Counter()
        self.done = 0

    def run(self, lane: int) -> None:
        """Run this lane's cases until the time is over."""
        options = self._options
        start = time.monotonic()
        numbers = options.only or range(options.start + lane, options.start + options.count, options.jobs)
        waiting: list[int] = []
        for number in numbers:
            if options.seconds and time.monotonic() - start > options.seconds:
                break
            if self._mode(number) == "inside":
                waiting.append(number)
            else:
                self._one(number)
            if len(waiting) == _BATCH:
                waiting = self._batch(waiting)
        while waiting:
            waiting = self._batch(waiting)
        for name, count in self.found.most_common():
            print(f"{count:6d}  {name}", flush=True)
        print(
            f"{self.done} cases in {time.monotonic() - start:.0f} s; {len(self.found)} different findings", flush=True
        )

    def _mode(self, number: int) -> str:
        """``process``: started as users do; ``trial``: in a copy of this process; ``inside``: without the trial."""
        options = self._options
        draw = random.Random(f"{options.seed}:{number}:mode").random()
        if draw < options.processes:
            return "process"
        return "trial" if draw < options.processes + options.trials or options.only else "inside"

    def _batch(self, numbers: list[int]) -> list[int]:
        """Run cases one after another in one copy of this process; returns those that it did not come to."""
        progress = self._scratch / "progress"
        self._scratch.mkdir(exist_ok=True)
        progress.write_text("")
        worker.run_batch([lambda number=number: self._one(number, inside=True) for number in numbers], progress)
        lines = progress.read_text().splitlines()
        again = [number for number, line in zip(numbers, lines, strict=False) if line != "done"]
        again += numbers[len(lines) : len(lines) + 1]  # the copy ended in the midst of it
        for number in again:
            self._one(number)
        self.done += lines.count("done")
        return numbers[len(lines) + 1 :]

    def _one(self, number: int, inside: bool = False) -> str:
        """Run a case and log it; with ``inside``, in this process, unless it finds something."""
        options = self._options
        case = make_case(number, options.seed, self._seeds)
        mode = self._mode(number)
        process, trial = mode == "process", mode != "inside"
        if inside:
            outcome = inside_process.run(case.command, case.seed, self._scratch / "case")
            if worker.judge(case.command, outcome):
                return "found"
            first = finding = None
        else:
            outcome, first = try_case(case, self._scratch, trial=trial, process=process)
            finding = confirmed(case, self._scratch, first, trial) if first else None
            self.done += 1
        entry = {
            **{"number": number, "seed": options.seed, "kind": case.seed.kind, "name": case.seed.name},
            **{"command": case.command[0], "mode": mode},
            **{"code": outcome.code, "seconds": round(outcome.seconds, 3), "gib": round(outcome.gib, 3)},
            **{"first": str(first or ""), "finding": str(finding or "")},
            "said": outcome.errors.strip().rpartition("\n")[2][:160],
        }
        if self._log:
            print(json.dumps(entry), file=self._log, flush=True)
        if options.only:
            print(" ".join(case.command), entry, outcome.output, outcome.trace, sep="\n")
            if options.keep:
                case.seed.write(options.keep)
        if finding:
            self.found[str(finding)] += 1
            if self.found[str(finding)] <= _STORED and options.minimize:
                self._store(number, case, finding, trial)
        return "done"

    def _store(self, number: int, case: Case, finding: Finding, trial: bool) -> None:
        print(f"{number}: {' '.join(case.command)}: {finding}", flush=True)
        if self.found[str(finding)] == 1:
            case = smaller(case, self._scratch, finding, trial, self._options.minimize)
        path = store(case.seed, case.target, case.command, finding, self._options.corpus, trial=trial)
        print(f"stored as {path}", flush=True)


def fuzz(options: argparse.Namespace) -> int:
    """Run cases in ``options.jobs`` processes; returns whether anything was found."""
    with tempfile.TemporaryDirectory(prefix="stn-fuzz-") as folder:
        os.environ["XDG_CACHE_HOME"], os.environ["STN_TRIAL_SECONDS"] = folder, "0"
        all_seeds = seeds()
        _prepare(all_seeds, Path(folder))
        print(f"{len(all_seeds)} seeds, seed {options.seed}", flush=True)
        children = []
        for lane in range(options.jobs):
            child = os.fork()
            if child == 0:
                code = 2
                try:
                    mine = Lane(options, all_seeds, Path(folder) / f"lane{lane}")
                    mine.run(lane)
                    code = 1 if mine.found else 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    os._exit(code)
            children.append(child)
        return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def summarize(logs: list[Path]) -> None:
    """Print counts by mode, command, kind and outcome."""
    entries = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    print(f"{len(entries)} pairs; {sum(it['seconds'] for it in entries):.0f} CPU seconds")
    for key in ("mode", "command", "kind", "code"):
        print(
            f"by {key}:",
            ", ".join(f"{name} {count}" for name, count in Counter(it[key] for it in entries).most_common()),
        )
    print("most CPU seconds", max(it["seconds"] for it in entries), "most GiB", max(it["gib"] for it in entries))
    for name, count in Counter(it["finding"] for it in entries if it["finding"]).most_common():
        print(f"{count:6d}  {name}")
    refuted = Counter(re.sub(r":.*", "", it["first"]) for it in entries if it["first"] and not it["finding"])
    print("only without a trial:", dict(refuted))


def with_one_thread() -> None:
    """Start this program again with one thread per library: a process with threads cannot be copied."""
    wanted = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, sys.orig_argv, os.environ | wanted)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0, help="stop after so many seconds; 0: after --count cases")
    parser.add_argument("--count", type=int, default=10**9, help="the number of cases")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of all random numbers"
    )
    parser.add_argument("--start", type=int, default=0, help="the first case")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--only", type=int, nargs="*", help="these cases only, with what they print")
    parser.add_argument("--keep", type=Path, help="with --only: write the case's files to this folder")
    parser.add_argument("--trials", type=float, default=0.1, help="share of cases with the trial of third-party files")
    parser.add_argument("--processes", type=float, default=0.05, help="share of cases started as processes")
    parser.add_argument("--minimize", type=float, default=30, help="seconds to minimize a finding; 0: do not store it")
    parser.add_argument("--log", type=Path, help="append one JSON object per case")
    parser.add_argument("--corpus", type=Path, default=Path(__file__).parent / "corpus", help="where findings go")
    parser.add_argument("--summary", type=Path, nargs="+", help="print what these logs hold")
    options = parser.parse_args()
    if options.summary:
        summarize(options.summary)
    else:
        with_one_thread()
        sys.exit(fuzz(options))


if __name__ == "__main__":
    main()
