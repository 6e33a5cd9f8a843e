"""What rows and models are called in texts: as much of model and precision as tells them apart in a result."""

from __future__ import annotations

from collections.abc import Collection

from stn_infer.benchmarking.result import BenchResult, Measurement


def case_name(models: Collection[tuple[str, str]], model: str, precision: str) -> str:
    """A model among others, by name and precision: either where they differ in it, both, or nothing."""
    parts = [model] if len({name for name, _ in models}) > 1 else []
    parts += [precision] if len({each for _, each in models}) > 1 else []
    return " in ".join(parts)


def model_name(result: BenchResult, model: str, precision: str) -> str:
    """A result's model; empty where it is the only one."""
    return case_name([(each.name, each.case.precision) for each in result.models], model, precision)


def row_name(result: BenchResult, row: Measurement) -> str:
    """A row's variant, after its model where there are several."""
    name = model_name(result, row.model, row.precision)
    return f"{name}, {row.variant}" if name else row.variant
