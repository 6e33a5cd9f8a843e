"""What the three inspections share: how long they take, and how times add up to stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stn_infer.benchmarking.harness.variant import Inspection
from stn_infer.benchmarking.record import STAGES, SamplerPlacement

#: Calls that are profiled; the first ones are not counted.
UNRECORDED, RECORDED = 3, 15

#: An inspection starts no further call after this many seconds.
LONGEST_S = 5.0


def not_known(reason: str, samplers: Sequence[SamplerPlacement] = ()) -> Inspection:
    """An inspection without stages."""
    return Inspection(tuple(samplers), left_out={"stages": reason})


NO_SAMPLER = not_known("it has no sampler")


def add_up(
    times: Iterable[tuple[str, float]], samplers: Sequence[SamplerPlacement] = (), no_grid: str = ""
) -> Inspection:
    """The stages of a call.

    Args:
        times: a stage and milliseconds, for each operator, node or layer.
        samplers: where the samplers ran.
        no_grid: why the grid's share is not known, where it is not; its time is then in the rest.
    """
    sums = dict.fromkeys(STAGES, 0.0)
    for stage, taken in times:
        sums[stage] += taken
    if no_grid:
        sums["rest"] += sums.pop("grid")
    stages = {stage: round(value, 6) for stage, value in sums.items()}
    return Inspection(tuple(samplers), stages, {"the grid's share": no_grid} if no_grid else {})
