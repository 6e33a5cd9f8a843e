"""Benchmark results with figures that are given, as ``bench`` returns them."""

from __future__ import annotations

from collections.abc import Sequence

from stn_infer.benchmarking.machine.monitor import Machine
from stn_infer.benchmarking.record import Measurement, Round, Status, Throughput
from stn_infer.benchmarking.request import Case, Method, Request
from stn_infer.benchmarking.result import BenchResult


def row(
    variant: str,
    batch_size: int,
    ms: Sequence[float],
    *,
    error: float = 0.0,
    wall_s: float | None = None,
    together: Throughput | None = None,
    status: Status = "timed",
    reason: str = "",
) -> Measurement:
    """A row whose calls took ``ms`` each, in one round that took their sum unless ``wall_s`` is given."""
    measured = Round(
        round=0,
        load_s=0.1,
        first_call_ms=1.0,
        warmup_calls=1,
        settled=True,
        samples_ms=tuple(ms),
        wall_s=sum(ms) / 1000 if wall_s is None else wall_s,
        throughput=() if together is None else (together,),
    )
    return Measurement(
        model="model",
        precision="fp32",
        variant=variant,
        batch_size=batch_size,
        status=status,
        reason=reason,
        error=error,
        items=batch_size,
        rounds=(measured,) if status == "timed" else (),
    )


def result(threads: int, *rows: Measurement) -> BenchResult:
    """A result with these rows."""
    return BenchResult(
        command="",
        created="",
        request=Request(
            cases=(Case("model.onnx"),),
            variants=tuple(row.variant for row in rows),
            device="cpu",
            threads=threads,
            tolerance=None,
            method=Method(),
        ),
        machine=Machine(cpu="a CPU", cores=2, memory_gib=4.0, gpus=(), system="Linux"),
        versions={},
        settings={},
        models=(),
        measurements=rows,
    )
