"""What makes a row doubtful, in words: a figure that is not steady says so."""

from __future__ import annotations

from stn_infer.benchmarking.report.result import BenchResult, model_name

_DISTURBED = 0.1  # of all cores, by others


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
