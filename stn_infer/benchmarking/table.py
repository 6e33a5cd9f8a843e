"""A benchmark's result for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stn_infer.benchmarking.variants import VARIANTS

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stn_infer.benchmarking.result import BenchResult, Measurement


def render(result: BenchResult) -> RenderableType:
    """A table with one row a variant and batch size, and below it why some were not timed."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{result.model} on {result.device}", title_justify="left")
    table.add_column("batch", justify="right")
    table.add_column("variant")
    for heading in ("median ms", "p90 ms", "samples/s", "against eager", "error"):
        table.add_column(heading, justify="right")
    last = None
    for measurement in result.measurements:
        if last is not None and last != measurement.batch_size:
            table.add_section()
        last = measurement.batch_size
        table.add_row(*_row(result, measurement))
    lines = [
        f"{result.machine.cpu}, {result.machine.cores} cores"
        + "".join(f", {gpu}" for gpu in result.machine.gpus if result.device != "cpu"),
        f"inputs: {result.inputs}; arrays in main memory to arrays in main memory; outputs verified against "
        f"{result.reference} eager to {result.tolerance:.0e} before timing",
    ]
    reasons = {
        (measurement.variant, measurement.reason): None
        for measurement in result.measurements
        if measurement.status != "timed"
    }
    lines += [f"{variant}: {reason}" for variant, reason in reasons]
    lines += [f"note: {note}" for note in result.notes]
    names = dict.fromkeys(measurement.variant for measurement in result.measurements)
    lines += [f"{name}: {VARIANTS[name]}" for name in names]
    return Group(table, *(Text(line) for line in lines))


def _row(result: BenchResult, measurement: Measurement) -> tuple[str, ...]:
    head = (str(measurement.batch_size), measurement.variant)
    if measurement.median_ms is None:
        return (*head, measurement.status, "", "", "", _number(measurement.error, ".0e"))
    return (
        *head,
        _number(measurement.median_ms, ".3f"),
        _number(measurement.p90_ms, ".3f"),
        _number(measurement.throughput, ",.0f"),
        _speed_up(result, measurement),
        _number(measurement.error, ".0e"),
    )


def _speed_up(result: BenchResult, measurement: Measurement) -> str:
    try:
        eager = result.get("eager", measurement.batch_size).median_ms
    except KeyError:
        return ""
    if eager is None or measurement.median_ms is None:
        return ""
    return f"{eager / measurement.median_ms:.2f}x"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
