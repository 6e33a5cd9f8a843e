"""Check and measure everything on a GPU, within a given time.

    python -m benchmarks.gpu_check --limit 570 --results FOLDER
    python -m benchmarks.gpu_check --device cpu --tiny      # the same steps at small sizes, without a GPU

Each step is a program with a time limit of its own, and a step that fails or is killed costs no other. All write into
two files as they go, so that nothing is lost however the run ends: ``gpu-NAME.jsonl`` has a line for each figure and
each step, ``gpu-NAME.log`` the output of all programs. A step that measures case after case is started again after a
case that crashed or did not end, for the cases after it. ``steps.py`` lists the steps; those for which the time does
not suffice are reported as not run.

`python -m benchmarks.gpu_check.table FILE` puts the figures beside the predictions. Exit code 1: a step failed, was
killed or, on a GPU, was not run.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.gpu_check import process
from benchmarks.gpu_check.records import Records, words_of
from benchmarks.gpu_check.steps import LIBRARY, ROOT, Step, environment, steps
from benchmarks.gpu_check.table import summary

_PACKAGES = ("torch", "onnxruntime", "numpy", "tensorrt", "triton", "nvidia-nvimgcodec-cu13")
_GPU_FIELDS = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.max.sm", "clocks.max.mem", "power.limit")
_REMAINING = 2.0  # seconds for the summary
_BROKEN = "exit code 3"  # of gpu.py: a case broke the device's context, and its failure is recorded


@dataclass
class Check:
    """A run of all steps.

    Attributes:
        path: the file of figures; the log is beside it.
        run: the run's name.
        device: ``cpu`` or ``cuda:N``.
        limit: seconds in all.
    """

    path: Path
    run: str
    device: str
    limit: float
    _start: float = field(default_factory=time.monotonic, init=False)

    @property
    def log(self) -> Path:
        """The output of all programs."""
        return self.path.with_suffix(".log")

    def left(self) -> float:
        """The seconds that are left."""
        return self.limit - _REMAINING - (time.monotonic() - self._start)

    def seconds(self) -> float:
        """The seconds since the beginning."""
        return time.monotonic() - self._start

    def do(self, step: Step) -> str:
        """Run a step; its status: ``passed``, ``failed``, ``killed`` or ``not run``."""
        records = Records(self.path, self.run, step.name)
        if reason := self._why_not_run(step):
            return self._close(records, "not run", 0.0, reason)
        self._say(f"{step.name}: at most {min(step.limit, self.left()):.0f} s")
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n==== {self.run} {step.name}: {' '.join(step.command)}\n")
        begin, offset = time.monotonic(), self.log.stat().st_size
        ended = self._run(step, records, min(step.limit, self.left()))
        status = "killed" if ended.killed else "failed" if ended.problem else "passed"
        return self._close(records, status, time.monotonic() - begin, ended.problem, self._last_line(offset))

    def _why_not_run(self, step: Step) -> str:
        """Why a step cannot be run; empty: it can."""
        if step.gpu_only and self.device == "cpu":
            return "it needs a GPU"
        if shutil.which(step.command[0]) is None:
            return f"there is no {Path(step.command[0]).name}"
        if self.left() < min(step.least, step.limit):
            return f"{max(self.left(), 0):.0f} s are left"
        return ""

    def _run(self, step: Step, records: Records, limit: float) -> process.Ended:
        """Run the program of a step, again after a case at which it crashed or was killed."""
        end = time.monotonic() + limit
        command = list(step.command)
        if step.restarts:
            command += ["--output", str(self.path), "--run", self.run, "--step", step.name]
        first_problem = ""
        while True:
            ended = process.run(
                command,
                self.log,
                end - time.monotonic(),
                quiet=step.quiet,
                watched=(self.path,),
                environment=environment(),
                folder=ROOT,
            )
            unfinished = records.unfinished() if step.restarts else []
            for case in unfinished:
                records.append("failure", case, reason=ended.problem or "it ended without a result")
            first_problem = first_problem or ended.problem
            broken = step.restarts and ended.problem == _BROKEN  # its case has its record of the failure
            if not (unfinished or broken) or end - time.monotonic() < step.least:
                return process.Ended(ended.seconds, ended.killed, first_problem)

    def _last_line(self, offset: int) -> str:
        """The last line of the log after ``offset``."""
        with self.log.open("rb") as log:
            log.seek(max(offset, self.log.stat().st_size - 10_000))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def _close(self, records: Records, status: str, seconds: float, problem: str, said: str = "") -> str:
        records.append("step", status=status, seconds=round(seconds, 2), problem=problem, output=said)
        time_taken = "" if status == "not run" else f" in {seconds:.1f} s"
        self._say(
            f"{records.step}: {status}{time_taken}"
            + (f": {problem}" if problem else "")
            + (f" | {said}" if said else "")
        )
        return status

    def _say(self, text: str) -> None:
        print(f"[{self.seconds():6.1f} s] {text}", flush=True)


def about_gpu(index: str) -> dict[str, str]:
    """What nvidia-smi says of a GPU; empty if there is none."""
    command = ["nvidia-smi", "-i", index, f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = done.stdout.strip().splitlines()[:1]
    return dict(zip(_GPU_FIELDS, values[0].split(", "), strict=False)) if done.returncode == 0 and values else {}


def versions() -> dict[str, str]:
    """Versions of Python and of packages, without importing them."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run the steps; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the steps")
    parser.add_argument("--tiny", action="store_true", help="use small sizes")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds for the whole run (default: 570)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="the folder of the files")
    parser.add_argument("--step", action="append", help="only this step; repeatable")
    parser.add_argument("--after", help="only the steps after this one")
    arguments = parser.parse_args(argv)
    device = "cuda:0" if arguments.device == "cuda" else arguments.device
    gpu = {"name": "cpu"} if device == "cpu" else about_gpu(device.partition(":")[2])
    known = versions()
    stem = "gpu-" + words_of(gpu.get("name", "unknown"), "torch", known.get("torch", "none"))
    results = arguments.results.resolve()
    results.mkdir(parents=True, exist_ok=True)
    chosen = steps(device, results, stem, tiny=arguments.tiny)
    names = [step.name for step in chosen]
    for name in [*(arguments.step or ()), *([arguments.after] if arguments.after else [])]:
        if name not in names:
            parser.error(f"there is no step {name!r}; the steps are {', '.join(names)}")
    rest = names[names.index(arguments.after) + 1 :] if arguments.after else names
    chosen = tuple(step for step in chosen if step.name in (arguments.step or rest) and step.name in rest)

    check = Check(results / f"{stem}.jsonl", time.strftime("%Y-%m-%dT%H:%M:%S"), device, arguments.limit)
    Records(check.path, check.run).append(
        "head",
        gpu=gpu,
        versions=known,
        commit=_commit(),
        library=hashlib.sha256(LIBRARY.read_bytes()).hexdigest() if LIBRARY.exists() else "",
        steps=[step.name for step in chosen],
        limit=arguments.limit,
        tiny=arguments.tiny,
    )
    signal.signal(signal.SIGTERM, _interrupt)
    done: dict[str, str] = {}
    try:
        for step in chosen:
            done[step.name] = check.do(step)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    for step in chosen:
        done.setdefault(step.name, "not run")
    Records(check.path, check.run).append("end", seconds=round(check.seconds(), 2), steps=done)
    print(summary(check.path, check.run))
    print(*(f"{status:8} {name}" for name, status in done.items()), sep="\n")
    print(f"{check.seconds():.1f} s in all; {check.path} and {check.log.name}")
    fine = {"passed"} if device != "cpu" else {"passed", "not run"}
    return 0 if set(done.values()) <= fine else 1


if __name__ == "__main__":
    sys.exit(main())
