"""Jobs that are killed, interrupted or run out of disk at random moments, and resumed: nothing may be lost or differ.

    python -m tests.support.faults run --count 140
    python -m tests.support.faults bench --count 60

Each trial disturbs a job once or several times, resumes it, and compares the folder byte by byte with that of the same
job undisturbed; a benchmark must have every round once, and keep those that it had. Two thirds of the lives end at a
random step (an operation on files, see ``forked.py``), the rest after a random time; every sixth is a process of
its own, with the imports. Prints the counts as JSON, and exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.forked import Ending, command, counted, preload, start

FORMATS = ("csv", "parquet", "npz", "jsonl")
KINDS = ("kill", "term", "full")
_ONE_LINE = ("error: interrupted", "error: cannot write ", "error: no space left ", "error: cannot ")


def write_model(path: Path, weight: float = 1.0) -> Path:
    """y = flatten(x) * w of images of 8 x 8, which every format stores."""
    values = numpy_helper.from_array(np.full((64,), weight, np.float32), "w")
    nodes = [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("Mul", ["flat", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])
    graph = helper.make_graph(nodes, "graph", [x], [y], [values])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def write_inputs(folder: Path, count: int) -> Path:
    """Arrays of one sample and of several, some of which are damaged."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count // 4):
        path = folder / f"{index:04d}.npy"
        if index % 17 == 3:
            path.write_bytes(b"\x93NUMPY\x01\x00 damaged")
        else:
            np.save(path, generator.normal(size=(1, 8, 8)).astype(np.float32))
    np.save(folder / "many.npy", generator.integers(0, 256, (count - count // 4, 8, 8), dtype=np.uint8))
    return folder


@dataclass
class Campaign:
    """The counts of a campaign, and its random numbers.

    Attributes:
        folder: an empty one.
        seed: of the random moments.
        count: trials.
    """

    folder: Path
    seed: int
    count: int
    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.said = self.folder / "said.txt"
        self.scratch = self.folder / "scratch"
        self.scratch.mkdir()
        self.environment = {
            "TMPDIR": str(self.scratch),
            "STN_TRIAL_SECONDS": "0",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def fail(self, trial: int, what: str) -> None:
        """Note a failure."""
        self.lost.append(f"trial {trial}: {what}")
        print(self.lost[-1], file=sys.stderr, flush=True)

    def whole(self, arguments: Sequence[str | Path]) -> tuple[float, int]:
        """An undisturbed life: its seconds and its steps."""
        steps = self.folder / "steps"
        began = time.monotonic()
        fork = start(counted(command(arguments), steps), self.said, environment=self.environment)
        code = fork.wait()
        assert code in (0, 4), (code, fork.lines)
        return time.monotonic() - began, int(steps.read_text())

    def resumed(self, trial: int, arguments: Sequence[str | Path], codes: tuple[int, ...] = (0, 4)) -> bool:
        """Whether a life to the end ends well."""
        fork = start(command(arguments), self.said, environment=self.environment)
        code = fork.wait()
        if code not in codes:
            self.fail(trial, f"resuming ended with {code}: {fork.lines[-3:]}")
        return code in codes

    def disturb(self, trial: int, kind: str, arguments: Sequence[str | Path], seconds: float, steps: int) -> None:
        """One life that ends before its time, or is at its end; checks how it ended."""
        limit = None
        if kind == "full":
            ending = None
            limit = int(10 ** self.random.uniform(3.0, 4.5))  # its messages go to a file too
        else:
            number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
            by_step = self.random.random() < 2 / 3
            ending = (
                Ending(number, step=self.random.randint(1, steps))
                if by_step
                else Ending(number, seconds=self.random.uniform(0, seconds))
            )
        if trial % 6 == 5 and kind != "full":
            assert ending is not None
            code, lines = self._apart(arguments, ending.number)
        else:
            fork = start(command(arguments), self.said, environment=self.environment, ending=ending, largest_file=limit)
            if ending is not None and ending.seconds is not None:
                time.sleep(ending.seconds)
                if not fork.poll():
                    os.kill(fork.pid, ending.number)
            began = time.monotonic()
            code, lines = fork.wait(), fork.lines
            timed = kind == "term" and ending is not None and ending.seconds is not None
            busy = os.getloadavg()[0] > (os.cpu_count() or 1)
            if timed and time.monotonic() - began > (20 if busy else 2):
                self.fail(trial, f"SIGTERM took {time.monotonic() - began:.1f} s")
        self._check_ending(trial, kind, code, [line for line in lines if line.startswith("error")], lines)

    def _apart(self, arguments: Sequence[str | Path], number: signal.Signals) -> tuple[int, list[str]]:
        """The same in a process of its own; the moment is in its whole life."""
        program = [sys.executable, "-P", "-m", "stn_infer.cli.main", *map(str, arguments)]
        environment = {**os.environ, **self.environment, "STN_TRIAL_SECONDS": "60"}
        environment["PYTHONPATH"] = os.getcwd()
        with self.said.open("w") as said:
            process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=said)
            time.sleep(self.random.uniform(0.05, 2.5))
            process.send_signal(number)
            code = process.wait(900)
        self.counts["in a process of its own"] += 1
        return code, self.said.read_text().splitlines()

    def _check_ending(self, trial: int, kind: str, code: int, errors: list[str], lines: list[str]) -> None:
        if code in (0, 4):
            self.counts[f"{kind}: had ended before"] += 1
            return
        self.counts[f"{kind}: ended"] += 1
        if kind == "kill" and code == -9:
            self._clear()
            return
        allowed = {"kill": (), "term": (143, -15), "full": (1,)}[kind]
        if code == -15:
            self.counts["term: before Python's own handler"] += 1
            return
        if code not in allowed or len(errors) != 1 or not errors[0].startswith(_ONE_LINE) or "Traceback" in str(lines):
            self.fail(trial, f"{kind} ended with {code}: {lines[-4:]}")
        left = [name for name in os.listdir(self.scratch) if not name.startswith((".ses", "torchinductor"))]
        if left and kind != "kill":
            self.fail(trial, f"{kind} left {left}")
        self._clear()

    def _clear(self) -> None:
        """Remove what a killed process could not remove."""
        for name in os.listdir(self.scratch):
            shutil.rmtree(self.scratch / name, ignore_errors=True)


@contextmanager
def small_disk(folder: Path, free: int) -> Iterator[bool]:
    """A file system of its own at ``folder``, with room for ``free`` bytes; False where none may be mounted."""
    size = max(4096, -(-free // 4096) * 4096)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def same_folders(found: Path, wanted: Path) -> str:
    """What differs, "" for nothing: names and bytes of all files."""
    names = [sorted(os.listdir(folder)) for folder in (found, wanted)]
    if names[0] != names[1]:
        return f"files {sorted(set(names[0]) ^ set(names[1]))[:5]}"
    different = [name for name in names[0] if (found / name).read_bytes() != (wanted / name).read_bytes()]
    return f"contents of {different[:5]}" if different else ""


def run_campaign(campaign: Campaign, rows: int = 240) -> None:
    """`run` in every output format."""
    model = write_model(campaign.folder / "model.onnx")
    inputs = write_inputs(campaign.folder / "inputs", rows)
    disk = campaign.folder / "disk"
    disk.mkdir()

    def job(out: Path, form: str) -> list[str | Path]:
        batches = ["--batch-size", "4", "--shard-rows", "12", "--workers", "2"]
        return ["run", model, inputs, "-o", out, "--format", form, *batches]

    lives = {}
    for form in FORMATS:
        lives[form] = campaign.whole(job(campaign.folder / f"whole-{form}", form))
    for trial in range(campaign.count):
        form, kind = FORMATS[trial % len(FORMATS)], KINDS[trial // len(FORMATS) % len(KINDS)]
        campaign.counts[f"{kind}, {form}"] += 1
        whole = campaign.folder / f"whole-{form}"
        out = campaign.folder / "out"
        mountable = kind == "full" and campaign.random.random() < 0.7
        if mountable:
            needed = sum(-(-path.stat().st_size // 4096) * 4096 for path in whole.iterdir())
            with small_disk(disk, int(campaign.random.uniform(0, needed * 1.1))) as mounted:
                if mounted:
                    _fill(campaign, trial, [*job(disk / "out", form), "--resume"])
                    campaign.counts["full: a disk of its own"] += 1
                    if (disk / "out").exists():
                        shutil.copytree(disk / "out", out)
        for _ in range(campaign.random.choice((1, 1, 1, 2, 3))):
            if not (mountable and out.exists()):
                campaign.disturb(trial, kind, [*job(out, form), "--resume"], *lives[form])
        if campaign.resumed(trial, [*job(out, form), "--resume"]) and (problem := same_folders(out, whole)):
            campaign.fail(trial, f"{kind}, {form}: {problem}")
        shutil.rmtree(out, ignore_errors=True)


def _fill(campaign: Campaign, trial: int, arguments: Sequence[str | Path]) -> None:
    fork = start(command(arguments), campaign.said, environment=campaign.environment)
    code = fork.wait()
    campaign._check_ending(trial, "full", code, [it for it in fork.lines if it.startswith("error")], fork.lines)


def bench_campaign(campaign: Campaign) -> None:
    """`bench`, whose result file is written after every round."""
    from stn_infer.benchmarking.result import read_result

    model = write_model(campaign.folder / "model.onnx")
    folder = campaign.folder / "results"
    folder.mkdir()
    output = folder / "result.json"
    lengths = ["--batch-sizes", "1", "--rounds", "3", "--seconds", "0.02", "--samples", "2"]
    job = ["bench", model, "--variant", "ort", *lengths, "-o", output]
    life = campaign.whole(job)
    whole = read_result(output)
    for trial in range(campaign.count):
        kind = KINDS[trial % len(KINDS)]
        campaign.counts[kind] += 1
        shutil.rmtree(folder)
        folder.mkdir()
        before: tuple[object, ...] = ()
        for _ in range(campaign.random.choice((1, 1, 2))):
            campaign.disturb(trial, kind, ["bench", "--resume", output] if output.exists() else job, *life)
            if output.exists():
                half = read_result(output)
                if half.measurements:
                    kept = half.measurements[0].rounds
                    if kept[: len(before)] != before:
                        campaign.fail(trial, "rounds that were measured have changed")
                    before = kept
        if not campaign.resumed(trial, ["bench", "--resume", output] if output.exists() else job):
            continue
        found = read_result(output)
        rounds = found.measurements[0].rounds
        if not found.complete or sorted(log.key for log in found.log) != sorted(log.key for log in whole.log):
            campaign.fail(trial, f"rounds {[log.key for log in found.log]}")
        if [row.key for row in found.measurements] != [row.key for row in whole.measurements]:
            campaign.fail(trial, "other rows than undisturbed")
        if len(rounds) != 3 or rounds[: len(before)] != before:
            campaign.fail(trial, "rounds that were measured have changed")
        if os.listdir(folder) != [output.name]:
            campaign.fail(trial, f"beside the result: {os.listdir(folder)}")


CAMPAIGNS = {"run": run_campaign, "bench": bench_campaign}


def run_campaigns(campaigns: Mapping[str, Callable[[Campaign], None]], description: str | None, unit: str) -> int:
    """The command line of a module of campaigns; returns its exit code, 1 if anything was lost.

    Args:
        campaigns: by the names that the command line takes.
        description: for the help.
        unit: what is counted, in the JSON line that is printed.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=campaigns)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory(prefix=f"stn-{unit}-") as folder:
        campaign = Campaign(Path(folder), arguments.seed, arguments.count)
        campaigns[arguments.campaign](campaign)
    print(json.dumps({unit: arguments.count, "lost": campaign.lost, **dict(sorted(campaign.counts.items()))}))
    return 1 if campaign.lost else 0


if __name__ == "__main__":
    sys.exit(run_campaigns(CAMPAIGNS, __doc__, "trials"))
