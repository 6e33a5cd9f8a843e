"""What stands below the tables: how it was measured, what was not, and what makes a figure doubtful."""

from __future__ import annotations

from stn_infer.benchmarking.record import Measurement
from stn_infer.benchmarking.report.explain import explanation
from stn_infer.benchmarking.request import BOUNDARIES
from stn_infer.benchmarking.result import BenchResult
from stn_infer.benchmarking.stats import FLOORS
from stn_infer.benchmarking.variants.names import VARIANTS
from stn_infer.printing import counted

_DISTURBED = 0.1  # of all cores, by others


def lines_below(result: BenchResult) -> list[str]:
    """All that a reader of the figures must know, a line each."""
    request = result.request
    gpus = "".join(f", {gpu}" for gpu in result.machine.gpus if request.device != "cpu")
    lines = [
        f"{result.machine.cpu}, {counted(result.machine.cores, 'core')}, {counted(request.threads, 'thread')}{gpus}",
        f"{request.method.boundary}: {BOUNDARIES[request.method.boundary]}",
        *_verified(result),
        "spread: how far the rounds' medians lie apart",
    ]
    if any(row.samples_ms and 99 not in row.percentiles for row in result.measurements):
        lines.append(f"p90/p99 need at least {FLOORS[90]}/{FLOORS[99]} samples")
    lines += left_out(result)
    lines += [
        f"* unstable measurement, low confidence: {result.row_name(row)} at batch {row.batch_size}: "
        + "; ".join(row.flags)
        for row in result.measurements
        if row.flags
    ]
    lines += [f"note: {note}" for note in notes(result)]
    timed = dict.fromkeys(row.variant for row in result.measurements if row.status == "timed")
    lines += [f"{name}: {VARIANTS[name]}" for name in timed if name in VARIANTS]
    return lines + explanation(result)


def _verified(result: BenchResult) -> list[str]:
    """What was fed, and what outputs were compared with: one line for all models that share it."""
    found: dict[str, list[str]] = {}
    for model in result.models:
        text = (
            f"inputs: {model.inputs}; outputs verified against {model.reference} to {model.tolerance:.0e} before timing"
        )
        precision = "" if model.case.precision == "fp32" else f" in {model.case.precision}"
        found.setdefault(text, []).append(f"{model.name}{precision}")
    return [text if len(found) == 1 else f"{', '.join(names)}: {text}" for text, names in found.items()]


def left_out(result: BenchResult) -> list[str]:
    """What was not timed or not measured, with its reason: one line per reason."""
    untimed: dict[str, list[Measurement]] = {}
    missing: dict[tuple[str, str], list[Measurement]] = {}
    for row in result.measurements:
        if row.status != "timed":
            untimed.setdefault(row.reason, []).append(row)
        else:
            for what, reason in row.left_out.items():
                missing.setdefault((what, reason), []).append(row)
    lines = [f"not timed: {', '.join(_names(result, rows))}: {reason}" for reason, rows in untimed.items()]
    lines += [f"without {what}: {'; '.join(_names(result, rows))}: {why}" for (what, why), rows in missing.items()]
    return lines


def _names(result: BenchResult, rows: list[Measurement]) -> dict[str, None]:
    """Each row's variant, once; with its model and batch size where other rows of the variant ended otherwise."""
    return dict.fromkeys(_called(result, row) for row in rows)


def _called(result: BenchResult, row: Measurement) -> str:
    def ended(other: Measurement) -> tuple[object, ...]:
        return other.status, other.reason, other.left_out

    others = [other for other in result.measurements if other.variant == row.variant and ended(other) != ended(row)]
    if not others:
        return row.variant
    if all(other.case_key != row.case_key for other in others):
        return result.row_name(row)
    return f"{result.row_name(row)} at batch {row.batch_size}"


def notes(result: BenchResult) -> tuple[str, ...]:
    """What a reader must know before the figures: about the models, the method and the machine."""
    found = [
        f"{name}: {note}" if (name := result.case_name(model.key)) else note
        for model in result.models
        for note in model.notes
    ]
    method = result.request.method
    if not result.complete:
        rounds = len(result.models) * method.rounds
        found.append(f"not finished: {len(result.log)} of {rounds} rounds; resume with --resume")
    if method.quick:
        rounds_taken = f"{method.rounds} rounds" if method.rounds > 1 else "1 round"
        found.append(
            f"a quick look ({rounds_taken}, {method.seconds:g} s per row) is not for publication, "
            "which needs at least 6 rounds and 3 s per row"
        )
    if not method.isolate:
        found.append("all rounds were made in one process")
    if method.separate:
        found.append("each variant ran in processes of its own, whose idle threads may spin")
    share = max((log.others for log in result.log), default=0.0)
    if share > _DISTURBED:
        found.append(f"others used up to {share:.0%} of the cores: measure again when the machine is idle")
    found += _unknown(result)
    on_gpu = max((reading.gpu_others or 0 for log in result.log for reading in log.readings), default=0)
    if on_gpu:
        found.append(f"up to {on_gpu} other processes were on the GPU")
    return tuple(found)


def _unknown(result: BenchResult) -> list[str]:
    """What of the machine could not be seen, so that silence is not taken for a good sign."""
    readings = [reading for log in result.log for reading in log.readings]
    if not readings:
        return []
    if result.request.device == "cpu":
        if all(reading.cpu_throttles is None for reading in readings):
            return ["whether the processor was throttled is not known: the system does not report it"]
        return []
    if all(reading.gpu_sm_mhz is None for reading in readings):
        return ["the GPU's clocks, throttling and other users could not be read: pip install nvidia-ml-py"]
    if all(reading.gpu_others is None for reading in readings):
        return ["whether others were on the GPU is not known: NVML does not list this benchmark's own process either"]
    return []
