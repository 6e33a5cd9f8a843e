"""What makes a row doubtful, in words: a figure that is not steady says so."""

from __future__ import annotations

from stn_infer.benchmarking import stats
from stn_infer.benchmarking.names import model_name
from stn_infer.benchmarking.result import BenchResult, Measurement

_SPREAD = 0.1  # between rounds
_DRIFT = 0.05  # from the first to the last third of a round
_OUTLIERS = 0.05
_DISTURBED = 0.1  # of all cores, by others


def flags(row: Measurement) -> tuple[str, ...]:
    """Each reason why a row's figures are not steady, one phrase each; empty for a row to be trusted."""
    samples = row.samples_ms
    if row.status != "timed" or not samples:
        return ()
    found = []
    if row.spread is not None and row.spread > _SPREAD:
        found.append(f"rounds differ by {row.spread:.0%}")
    modes = stats.two_modes(samples)
    if modes is not None:
        found.append(f"two modes, {modes[0]:.3g} and {modes[1]:.3g} ms")
    drift = _drift(row)
    if modes is None and abs(drift) > _DRIFT:
        found.append(f"drifts by {drift:+.0%} within a round")
    if row.outliers > _OUTLIERS * len(samples):
        found.append(f"{row.outliers / len(samples):.0%} outliers")
    unsettled = sum(not each.settled for each in row.rounds)
    if unsettled:
        found.append(f"warm-up did not settle in {unsettled} of {len(row.rounds)} rounds")
    if any(each.cut_short for each in row.rounds):
        found.append("cut short by the row's time limit")
    throttled = sum(len(each.throttled) for each in row.rounds)
    if throttled:
        found.append(f"{throttled / len(samples):.0%} taken while throttled")
    return tuple(found)


def notes(result: BenchResult) -> tuple[str, ...]:
    """What a reader must know before the figures: of the models, the method and the machine."""
    found = [
        f"{name}: {note}" if (name := model_name(result, model.name, model.case.precision)) else note
        for model in result.models
        for note in model.notes
    ]
    method = result.request.method
    if not result.complete:
        found.append(f"not finished: {len(result.log)} of {len(result.models) * method.rounds} rounds; see --resume")
    if method.quick:
        rounds = f"{method.rounds} rounds" if method.rounds > 1 else "1 round"
        found.append(
            f"a quick look ({rounds}, {method.seconds:g} s a row): nothing to quote; "
            f"6 rounds and 3 s are the least for that"
        )
    if not method.isolate:
        found.append("all rounds were made in one process")
    share = max((log.others for log in result.log), default=0.0)
    if share > _DISTURBED:
        found.append(f"others used up to {share:.0%} of the cores: measure again when the machine is idle")
    found += _unknown(result)
    on_gpu = max((reading.gpu_others or 0 for log in result.log for reading in log.readings), default=0)
    if on_gpu:
        found.append(f"up to {on_gpu} other processes were on the GPU")
    return tuple(found)


def _unknown(result: BenchResult) -> list[str]:
    """What of the machine could not be seen, so that nobody takes silence for a good sign."""
    readings = [reading for log in result.log for reading in log.readings]
    if not readings:
        return []
    if result.request.device == "cpu":
        if all(reading.cpu_throttles is None for reading in readings):
            return ["whether the processor was throttled is not known: the system does not say"]
        return []
    if all(reading.gpu_sm_mhz is None for reading in readings):
        return ["the GPU's clocks, throttling and other users could not be read: pip install nvidia-ml-py"]
    if all(reading.gpu_others is None for reading in readings):
        return ["whether others were on the GPU is not known: NVML does not list this benchmark's own process either"]
    return []


def _drift(row: Measurement) -> float:
    """The median over the rounds of how much slower the last third of a round is than its first."""
    changes = []
    for samples in row.by_round:
        third = len(samples) // 3
        if third >= 4:
            changes.append(stats.median(samples[-third:]) / stats.median(samples[:third]) - 1)
    return stats.median(changes) if changes else 0.0
