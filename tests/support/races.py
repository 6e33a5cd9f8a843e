"""Two to four processes at once on one output folder, one result, one engine, one verdict: nothing mixed or unusable.

    python -m tests.support.races folder --count 250
    python -m tests.support.races engine --count 200
    python -m tests.support.races verdict --count 25
    python -m tests.support.races bench --count 8

Those who lose end with one line and exit code 1. In some races one process is killed at a random step, or a killed
owner has left its lock and temporary files; what is left over must then be usable by the next process. Prints the
counts as JSON, and exits with 1 if anything was mixed or unusable.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx

from tests.support.faults import FORMATS, Campaign, run_campaigns, same_folders, write_inputs, write_model
from tests.support.forked import Ending, Fork, command, start

LOSING = (
    "error: another job is ",
    "error: another process has continued ",
    "error: cannot resume another job: ",
)
NOT_EMPTY = "is not empty; give a new folder, --resume to continue the job in it"


def together(campaign: Campaign, trial: int, bodies: Sequence[Callable[[], int]], killed: int | None) -> list[Fork]:
    """Start all at once; the one with the number ``killed`` ends at a random step."""
    waiting, go = os.pipe()
    forks = []
    for index, body in enumerate(bodies):
        ending = Ending(signal.SIGKILL, step=campaign.random.randint(1, 150)) if index == killed else None
        said = campaign.folder / f"said-{index}.txt"
        forks.append(start(body, said, environment=campaign.environment, ending=ending, go=waiting))
    os.write(go, b"." * len(bodies))
    for fork in forks:
        fork.wait()
    os.close(waiting)
    os.close(go)
    for fork in forks:
        errors = [line for line in fork.lines if line.startswith("error")]
        if fork.code in (0, 4):
            campaign.counts["processes: won"] += 1
        elif fork.code == -signal.SIGKILL and killed is not None:
            campaign.counts["processes: killed"] += 1
        elif fork.code == 1 and len(errors) == 1 and (errors[0].startswith(LOSING) or NOT_EMPTY in errors[0]):
            campaign.counts["processes: lost, with one line"] += 1
        else:
            campaign.fail(trial, f"a process ended with {fork.code}: {fork.lines[-4:]}")
    return forks


def folder_campaign(campaign: Campaign) -> None:
    """`run` on one output folder: the same job or different ones, new or half done, with and without ``--resume``."""
    jobs: dict[str, list[str | Path]] = {}
    inputs = write_inputs(campaign.folder / "inputs", 80)
    for form in FORMATS:
        for weight in (1.0, 2.0):
            name = f"model-{weight:.0f}.onnx"
            model = write_model(campaign.folder / name, weight)
            jobs[f"{name} {form}"] = ["run", model, inputs, "--format", form, "--batch-size", "4", "--shard-rows", "12"]
    wholes = {}
    for key, job in jobs.items():
        wholes[key] = campaign.folder / f"whole {key}"
        campaign.whole([*job, "-o", wholes[key]])
    for trial in range(campaign.count):
        out = campaign.folder / "out"
        kind = ("the same job", "different jobs", "the same job, resumed", "different jobs, resumed")[trial % 4]
        campaign.counts[kind] += 1
        count = campaign.random.randint(2, 4)
        chosen = campaign.random.choices(list(jobs), k=1 if kind.startswith("the same") else count)
        resume = "resumed" in kind
        if resume:
            _half_done(campaign, [*jobs[chosen[0]], "-o", out])
        killed = 0 if trial % 8 >= 4 else None
        bodies = [
            command([*jobs[chosen[index % len(chosen)]], "-o", out, *(["--resume"] if resume else [])])
            for index in range(count)
        ]
        forks = together(campaign, trial, bodies, killed)
        winners = [fork for fork in forks if fork.code in (0, 4)]
        if not resume and len(winners) > 1:
            campaign.fail(trial, f"{len(winners)} processes finished one job")
        if killed is None and not winners:
            campaign.fail(trial, "nobody finished")
        owner = _owner(out, chosen)
        if campaign.resumed(trial, [*jobs[owner], "-o", out, "--resume"]) and (
            problem := same_folders(out, wholes[owner])
        ):
            campaign.fail(trial, f"{kind}: mixed or incomplete: {problem}")
        shutil.rmtree(out, ignore_errors=True)


def _half_done(campaign: Campaign, job: Sequence[str | Path]) -> None:
    """A job that was killed: a part of its files, its lock, and perhaps a temporary file."""
    ending = Ending(signal.SIGKILL, step=campaign.random.randint(30, 220))
    start(command(job), campaign.said, environment=campaign.environment, ending=ending).wait()


def _owner(out: Path, chosen: Sequence[str]) -> str:
    """Which of the jobs the folder holds; the first one if none has begun."""
    try:
        manifest = json.loads((out / "run.json").read_text())
    except FileNotFoundError:
        return chosen[0]
    return f"{manifest['model']} {manifest['format']}"


def engine_campaign(campaign: Campaign) -> None:
    """The engine cache: builders of one key and of others, `build -o` on one path, `cache clear`, readers."""
    from stn_infer.backends.tensorrt import engine as engines
    from stn_infer.backends.tensorrt.builder import Plan
    from stn_infer.backends.tensorrt.engine_cache import EngineCache, EngineKey, Sidecar, load_engine, write_engine
    from stn_infer.errors import ModelError

    def key(number: int) -> EngineKey:
        return EngineKey("g" * 64, f"{number}", "tensorrt", "11", "GPU", "sm89", "", (), "float32", ())

    def built(request: Any, timing: object, budget: object) -> tuple[Plan, Sidecar]:
        data = os.urandom(200_000)  # no two builds are alike
        now = datetime.now(UTC).isoformat()
        return Plan(data, ()), Sidecar(request.key, hashlib.sha256(data).hexdigest(), len(data), "m.onnx", now, 0.1)

    def build(folder: Path, number: int, rebuild: bool, output: Path, result: Path) -> Callable[[], int]:
        def body() -> int:
            engines._build = built
            request: Any = types.SimpleNamespace(
                key=key(number),
                source="m.onnx",
                notes=(),
                gpu="GPU",
                runtime=types.SimpleNamespace(name="tensorrt", version="11"),
                options=types.SimpleNamespace(timing_cache=None),
            )
            found = engines.build_or_reuse(request, EngineCache(folder), rebuild, None)
            digest = hashlib.sha256(found.data).hexdigest()
            assert digest == found.sidecar.engine_sha256 and found.sidecar.key == key(number), "mixed"
            write_engine(output, found.data, found.sidecar)
            result.write_text(digest)
            return 0

        return body

    def clear(folder: Path) -> Callable[[], int]:
        return lambda: len(EngineCache(folder).clear()) * 0

    def read(output: Path) -> Callable[[], int]:
        def body() -> int:
            for _ in range(20):
                try:
                    load_engine(output)
                except ModelError as error:
                    assert "No such file" in str(error), error
            return 0

        return body

    for trial in range(campaign.count):
        folder, outputs = campaign.folder / "cache" / str(trial), campaign.folder / f"outputs-{trial}"
        outputs.mkdir()
        kind = ("one key", "one path, different keys", "rebuilt", "one key and cache clear", "a damaged entry")[
            trial % 5
        ]
        campaign.counts[kind] += 1
        count = campaign.random.randint(2, 4)
        killed = 0 if trial % 10 >= 7 else None
        numbers = [index if kind.startswith("one path") else 0 for index in range(count)]
        path = EngineCache(folder).path(key(0))
        if kind == "a damaged entry":
            build(folder, 0, False, outputs / "first", outputs / "first.txt")()
            path.write_bytes(path.read_bytes()[: campaign.random.choice((0, 100, 199_999))])
        one = kind.startswith("one path")
        bodies = [
            build(folder, number, kind == "rebuilt", outputs / ("one" if one else f"{index}"), outputs / f"{index}.txt")
            for index, number in enumerate(numbers)
        ]
        bodies += [clear(folder)] if kind.endswith("clear") else [read(outputs / "one")] if one else []
        together(campaign, trial, bodies, killed)
        digests = [path.read_text() for index in range(count) if (path := outputs / f"{index}.txt").exists()]
        if kind in ("one key", "a damaged entry") and len(set(digests)) > 1:
            campaign.fail(trial, f"{kind}: {len(set(digests))} different engines of one key")
        if one and killed is None:
            load_engine(outputs / "one")
        for number in set(numbers):
            body = build(folder, number, False, outputs / "last", outputs / "last.txt")
            last = start(body, campaign.said, environment=campaign.environment)
            if last.wait() != 0:
                campaign.fail(trial, f"{kind}: the next build ended with {last.lines[-3:]}")
            if EngineCache(folder).find(key(number)) is None:
                campaign.fail(trial, f"{kind}: unusable")
        left = [entry.name for entry in folder.iterdir() if not entry.name.endswith((".engine", ".json", ".lock"))]
        if left and killed is None:
            campaign.fail(trial, f"{kind}: left {left}")
        shutil.rmtree(folder)
        shutil.rmtree(outputs)


def verdict_campaign(campaign: Campaign) -> None:
    """Files that several processes try at once, for the first time."""
    from stn_infer.api.trusted import try_once

    path = write_model(campaign.folder / "model.onnx")
    for trial in range(campaign.count):
        content = onnx.load(path)
        content.producer_name = f"race {trial}"
        data, home = content.SerializeToString(), campaign.folder / "home" / str(trial)
        campaign.environment |= {"XDG_CACHE_HOME": str(home), "STN_TRIAL_SECONDS": "60"}

        def body(data: bytes = data) -> int:
            try_once(data)
            return 0

        killed = 0 if trial % 3 == 2 else None
        forks = together(campaign, trial, [body] * campaign.random.randint(2, 4), killed)
        if any(fork.code not in (0, -signal.SIGKILL) for fork in forks):
            campaign.fail(trial, "a trial failed")
        tried = list((home / "stn-infer" / "tried").iterdir())
        if len(tried) != 1:
            campaign.fail(trial, f"{len(tried)} verdicts")


def bench_campaign(campaign: Campaign) -> None:
    """`bench` on one result file: new, or resumed."""
    from stn_infer.benchmarking.result import read_result

    model = write_model(campaign.folder / "model.onnx")
    lengths = ["--batch-sizes", "1", "--rounds", "2", "--seconds", "0.02", "--samples", "2"]
    job = ["bench", model, "--variant", "ort", *lengths, "-o"]
    whole = campaign.folder / "whole.json"
    campaign.whole([*job, whole])
    half = read_result(whole)
    row = half.measurements[0]
    half = replace(half, log=half.log[:1], measurements=(replace(row, rounds=row.rounds[:1]),))
    folder = campaign.folder / "results"
    for trial in range(campaign.count):
        folder.mkdir()
        output = folder / "result.json"
        if trial % 2:
            output.write_text(half.to_json())
        line = ["bench", "--resume", output] if trial % 2 else [*job, output]
        forks = together(campaign, trial, [command(line)] * campaign.random.randint(2, 4), None)
        if sum(fork.code == 0 for fork in forks) != 1:
            campaign.fail(trial, f"exit codes {[fork.code for fork in forks]}")
        found = read_result(output)
        if not found.complete or len(found.measurements[0].rounds) != 2 or os.listdir(folder) != [output.name]:
            campaign.fail(trial, f"{len(found.log)} rounds, {os.listdir(folder)}")
        shutil.rmtree(folder)


CAMPAIGNS = {
    "folder": folder_campaign,
    "engine": engine_campaign,
    "verdict": verdict_campaign,
    "bench": bench_campaign,
}


if __name__ == "__main__":
    sys.exit(run_campaigns(CAMPAIGNS, __doc__, "races"))
