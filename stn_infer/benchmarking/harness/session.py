"""A benchmark from its request to its result: cases are prepared, rounds run and saved one by one."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from stn_infer.benchmarking.harness.processes import Crashed, Processes, Workers
from stn_infer.benchmarking.harness.round import RoundReport, RoundTask
from stn_infer.benchmarking.machine.monitor import cpu_facts, this_machine, versions
from stn_infer.benchmarking.machine.nvml import gpu_facts
from stn_infer.benchmarking.prepare.case import Resolver
from stn_infer.benchmarking.record import Measurement
from stn_infer.benchmarking.request import Progress, Request
from stn_infer.benchmarking.result import CALIBRATION, BenchResult, Model, RoundLog, read_result
from stn_infer.benchmarking.variants.names import possible
from stn_infer.errors import ModelError, OutputError, UsageError
from stn_infer.files import check_writable, remove_leftovers, temporary_folder, write_atomically
from stn_infer.pipeline.lock import JobLock
from stn_infer.sources.reference import Weights

# Opening a variant in a fresh process: seconds, for the estimate before anything is known.
_OPENING_S = 4.0
_PREPARING_S = 8.0
_COMPILING_S = 15.0  # torch.compile at one batch size, on two cores
_COMPILED_S = 1.0  # the same out of its cache
_LEAST_ROW_S = 0.01  # of samples, however little time is left
_COMPARED = ("weights", "network", "file", "external data", "plugin library", CALIBRATION)
_POOLS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS")


def measure(
    request: Request,
    workers: Workers,
    *,
    earlier: BenchResult | None = None,
    save: Callable[[BenchResult], None] = lambda result: None,
    command: str = "",
    say: Progress = lambda text: None,
    time_limit: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> BenchResult:
    """Run what a request asks for, or what of it is missing in ``earlier``.

    Args:
        request: what to measure.
        workers: runs it.
        earlier: an interrupted result of the same request.
        save: given the result after each round.
        command: written into the result.
        say: called with the progress and the remaining time, as text.
        time_limit: seconds in which rounds begin and rows take samples. The first round of each model is always run,
            with at least one call per row; rounds that do not fit are left out.
        clock: seconds, for ``time_limit``.

    Raises:
        UsageError: ``earlier`` was measured on something else.
        StnInferError: a model is not available.
    """
    started = clock()
    models = workers.prepare(request, say)
    result = BenchResult(
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        request=request,
        machine=this_machine(),
        versions={**versions(), **gpu_facts(request.device)},
        settings=settings(request),
        models=models,
    )
    if earlier is not None:
        check_same(earlier, result)
        result = earlier
    done = {log.key for log in result.log}
    todo = [
        (number, case)
        for number in range(request.method.rounds)
        for case in _order(len(models), number, request.method.seed)
        if (*models[case].key, number) not in done
    ]
    estimate = len(todo) * expected_seconds(request) / max(1, len(models)) + _compiled(request) * _COMPILING_S
    began = clock()
    ran = {log.key[:2] for log in result.log}
    for index, (number, case) in enumerate(todo):
        left = (clock() - began) / index * (len(todo) - index) if index else estimate
        allowed = None
        if time_limit is not None:
            remaining, each = time_limit - (clock() - started), left / (len(todo) - index)
            if remaining < each and models[case].key in ran:
                break
            allowed = remaining / max(1, min(len(todo) - index, int(remaining / max(each, 1e-9))))
        ran.add(models[case].key)
        title = f"round {number + 1} of {request.method.rounds}"
        if len(models) > 1:
            title = f"{models[case].name}, {title}"

        def tell(text: str, title: str = title, left: str = _duration(left)) -> None:
            say(f"{title}: {text} (about {left} to go)")

        task = RoundTask(models[case], _within(request, models[case], allowed), number, request.variants)
        result = _one(workers, result, case, task, tell)
        save(result)
    return result


def _within(request: Request, model: Model, seconds: float | None) -> Request:
    """The request with rows that share ``seconds`` of a round, without the time in which its process starts."""
    if seconds is None:
        return request
    rows = len(model.case.batch_sizes) * len(possible(request.variants, request.device))
    share = max(_LEAST_ROW_S, (seconds - _OPENING_S) / max(1, rows))
    method = request.method
    return replace(request, method=replace(method, row_limit=min(method.row_limit, share)))


def expected_seconds(request: Request) -> float:
    """The least time that one round of every case takes: its rows' seconds, warm-up and loading."""
    method = request.method
    load = method.traffic_seconds * (len(method.concurrency) + len(method.rates))
    per_row = (method.seconds + load) / method.rounds + method.warmup_seconds
    processes = len(request.cases) * (len(possible(request.variants, request.device)) if method.separate else 1)
    return _rows(request) * per_row + processes * _OPENING_S + _compiled(request) * _COMPILED_S


def describe_request(request: Request, earlier: BenchResult | None = None) -> str:
    """What will be measured and how long that takes at least, in one line."""
    method = request.method
    rounds = method.rounds - len(earlier.log) / max(1, len(request.cases)) if earlier else method.rounds
    compiling = _compiled(request) * _COMPILING_S
    least = rounds * expected_seconds(request) + _PREPARING_S * len(request.cases) + compiling
    rows = f"{_rows(request)} rows in {method.rounds} rounds"
    return (
        f"{rows}, at least {method.seconds:g} s and {method.samples} samples each: about {_duration(least)}, "
        + (f"of which torch.compile takes about {_duration(compiling)}, " if compiling else "")
        + "more where calls are slow or the machine is busy"
    )


def _rows(request: Request) -> int:
    return sum(len(case.batch_sizes) for case in request.cases) * len(possible(request.variants, request.device))


def _compiled(request: Request) -> int:
    """How many rows torch.compile has to compile for."""
    variants = sum(name.startswith("compile") for name in request.variants)
    return variants * sum(len(case.batch_sizes) for case in request.cases if case.precision != "int8")


def settings(request: Request) -> dict[str, str]:
    """What times depend on besides versions: TF32, threads, pools' variables, the CPU's governor."""
    pools = {name: os.environ[name] for name in _POOLS if name in os.environ}
    return {"threads": str(request.threads), "TF32": "off", **cpu_facts(), **pools}


def check_same(earlier: BenchResult, now: BenchResult) -> None:
    """Raise unless what is here now is what ``earlier`` measured.

    Raises:
        UsageError: another machine, other versions, settings, weights, file, inputs or plugin library.
    """
    for what, before, after in (
        ("machine", asdict(earlier.machine), asdict(now.machine)),
        ("versions", dict(earlier.versions), dict(now.versions)),
        ("settings", dict(earlier.settings), dict(now.settings)),
    ):
        if before != after:
            different = [
                f"{name} was {before.get(name, 'none')}, now {after.get(name, 'none')}"
                for name in sorted({*before, *after})
                if before.get(name) != after.get(name)
            ]
            raise UsageError(f"--resume needs the same {what}: {'; '.join(different)}; measure again")
    if [model.key for model in earlier.models] != [model.key for model in now.models]:
        raise UsageError("--resume needs the same models, and their names or precisions have changed; measure again")
    for old, new in zip(earlier.models, now.models, strict=True):
        changed = _changes(old, new)
        if changed and not _changes(replace(old, sha256={**new.sha256, **old.sha256}), new):
            raise UsageError("--resume needs the same models, and an older version wrote this result: measure again")
        if changed:
            raise UsageError(
                f"--resume needs the same models, and of {new.name} the {changed[0]} changed; measure again"
            )


def merge(result: BenchResult, measurements: Sequence[Measurement], log: RoundLog) -> BenchResult:
    """``result`` with one more round."""
    rows = {row.key: row for row in result.measurements}
    for found in measurements:
        known = rows.get(found.key)
        rows[found.key] = known.joined(found) if known else found
    order = [
        (*model.key, batch, variant)
        for model in result.models
        for batch in model.case.batch_sizes
        for variant in result.request.variants
    ]
    return replace(result, measurements=tuple(rows[key] for key in order if key in rows), log=(*result.log, log))


def run_request(
    request: Request,
    resolve: Resolver,
    *,
    output: Path | None = None,
    earlier: BenchResult | None = None,
    command: str = "",
    say: Progress = lambda text: None,
    time_limit: float | None = None,
) -> BenchResult:
    """Measure with real runtimes; with ``output``, the result is there after every round. Raises as :func:`measure`.

    Args:
        request, earlier, command, say, time_limit: as for :func:`measure`.
        resolve: loads the model that a case names.
        output: a JSON file.

    Raises:
        OutputError: ``output`` cannot be written, or another benchmark is writing it; said before anything is measured.
    """

    def save(result: BenchResult) -> None:
        if output is not None:
            write_atomically(output, result.to_json().encode())

    with ExitStack() as stack:
        if output is not None:
            check_writable(output, inputs=_read(request))
            stack.enter_context(JobLock.of_file(output))
            remove_leftovers(output.parent, output.name)
            _check_current(output, earlier)
        folder = stack.enter_context(temporary_folder())
        workers = Processes(folder, resolve)
        result = measure(request, workers, earlier=earlier, save=save, command=command, say=say, time_limit=time_limit)
        save(result)
    return result


def _read(request: Request) -> Iterator[object]:
    """What the models and inputs of a request are read from."""
    for case in request.cases:
        yield case.model
        yield from case.inputs or ()
        if case.weights is not None:
            yield Weights.of(case.weights).file


def _check_current(output: Path, earlier: BenchResult | None) -> None:
    """Raise if another process has resumed ``earlier`` since it was read from ``output``."""
    if earlier is None or not output.exists():
        return
    try:
        now = read_result(output)
    except UsageError:  # another file, which the result replaces
        return
    if now.created == earlier.created and now.request == earlier.request and now.log != earlier.log:
        raise OutputError(f"another process has continued {output} meanwhile; run the command again")


def _one(workers: Workers, result: BenchResult, case: int, task: RoundTask, say: Progress) -> BenchResult:
    """One round of one model, again without a variant that crashes it."""
    model = task.model
    rows = result.rows(model)
    timed = {row.variant for row in rows if row.status == "timed"}
    given_up = {row.variant for row in rows} - timed
    variants = [name for name in task.variants if name not in given_up]
    crashed: list[Measurement] = []
    began = time.monotonic()
    others, busy = workers.disturbance()
    reports: list[RoundReport] = []
    processes = _processes(variants, task)
    while processes:  # of a model that nothing here can run, later rounds are over at once
        names = processes.pop()
        try:
            reports.append(workers.run(case, replace(task, variants=names), say))
        except Crashed as crash:
            if not crash.variant:
                raise ModelError(f"a round of {model.name} died ({crash.how}); run with fewer --variant") from None
            rest = tuple(name for name in names if name != crash.variant)
            processes += [rest] if rest else []
            crashed += [
                task.untimed(crash.variant, batch, "failed", f"it crashed its process ({crash.how})")
                for batch in model.case.batch_sizes
            ]
    log = RoundLog(
        model=model.name,
        precision=model.case.precision,
        round=task.number,
        seconds=round(time.monotonic() - began, 3),
        others=others,
        busy_processes=busy,
        readings=tuple(reading for report in reports for reading in report.readings),
    )
    return merge(result, [*(row for report in reports for row in report.measurements), *crashed], log)


def _processes(variants: list[str], task: RoundTask) -> list[tuple[str, ...]]:
    """The variants that each process of a round runs."""
    if not task.request.method.separate:
        return [tuple(variants)] if variants else []
    order = random.Random(f"variants/{task.request.method.seed}/{task.model.name}/{task.number}")
    return [(name,) for name in order.sample(variants, len(variants))]


def _changes(old: Model, new: Model) -> list[str]:
    """What was hashed of a model and is not the same, the cause first."""
    changed = [name for name in _COMPARED if old.sha256.get(name) != new.sha256.get(name)]
    if old.inputs_sha256 != new.inputs_sha256:
        changed.append("inputs")
    return changed


def _order(count: int, number: int, seed: int) -> Sequence[int]:
    return random.Random(f"cases/{seed}/{number}").sample(range(count), count)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def default_threads() -> int:
    """PyTorch's default, one per physical core, which every other runtime then gets too."""
    import torch

    return int(torch.get_num_threads())
