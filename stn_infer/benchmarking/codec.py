"""A result as JSON and back. benchmarks/schema/bench-result.schema.json describes the form."""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from stn_infer.benchmarking.result import SCHEMA_VERSION, BenchResult, Measurement
from stn_infer.errors import UsageError

T = TypeVar("T")

_OLDEST = 2  # what it lacks has defaults that mean the same


def to_json(result: BenchResult) -> str:
    """The whole result; each row also has the figures that follow from its samples, under ``figures``."""
    content = asdict(result)
    for row, measurement in zip(content["measurements"], result.measurements, strict=True):
        row["figures"] = figures(measurement)
    return json.dumps({"schema_version": content.pop("schema_version"), **content}, indent=1) + "\n"


def figures(measurement: Measurement) -> dict[str, Any]:
    """What follows from a row's samples, as it is written beside them."""
    from stn_infer.benchmarking.judge import flags

    return {
        "samples": len(measurement.samples_ms),
        "percentiles_ms": {f"p{percent:g}": value for percent, value in measurement.percentiles.items()},
        "throughput": measurement.throughput,
        "spread": measurement.spread,
        "outliers": measurement.outliers,
        "throttled": sum(len(each.throttled) for each in measurement.rounds),
        "flags": list(flags(measurement)),
    }


def read_result(path: Path) -> BenchResult:
    """The result in a file that ``bench -o`` wrote.

    Raises:
        UsageError: there is no such file, or it is not a result of this version or the one before.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: expected a result of `bench -o`; {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path}: expected a result of `bench -o`, which is JSON; this is not") from None
    if not isinstance(content, dict) or "schema_version" not in content:
        raise UsageError(f"{path}: expected a result of `bench -o`; it has no schema_version")
    version = content["schema_version"]
    if type(version) is not int or not _OLDEST <= version <= SCHEMA_VERSION:
        newer = type(version) is int and version > SCHEMA_VERSION
        advice = "a newer stn-infer wrote it, which can read it" if newer else "measure again"
        raise UsageError(f"{path}: expected schema version {_OLDEST} to {SCHEMA_VERSION}, it is {version!r}; {advice}")
    try:
        result = replace(decode(BenchResult, content), schema_version=SCHEMA_VERSION)
        _check(result)
        return result
    except KeyError as error:
        raise UsageError(f"{path}: expected a result of `bench -o`; it is damaged (it lacks {error})") from None
    except (TypeError, ValueError, UsageError) as error:
        raise UsageError(f"{path}: expected a result of `bench -o`; it is damaged ({error})") from None


def _check(result: BenchResult) -> None:
    """Raise ValueError where figures could not be made of a result that has the right form."""
    models = {(model.name, model.case.precision) for model in result.models}
    if not models:
        raise ValueError("it holds no model")
    for row in result.measurements:
        name = f"{row.variant} at batch {row.batch_size}"
        if (row.model, row.precision) not in models:
            raise ValueError(f"{name} is of {row.model!r}, which is none of its models")
        if row.status == "timed" and not (row.rounds and all(row.by_round)):
            raise ValueError(f"{name} is timed and lacks samples")
        if not all(0 < sample < math.inf for sample in row.samples_ms):
            raise ValueError(f"{name} has a sample that is no time")


def decode(kind: type[T], value: Any) -> T:
    """``value`` out of JSON as ``kind``, a dataclass of dataclasses, tuples, mappings and plain values.

    Raises:
        KeyError, TypeError, ValueError: it does not fit.
    """
    found: T = _decode(kind, value)
    return found


def _decode(kind: Any, value: Any) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise TypeError(f"{kind.__name__} is an object, not {type(value).__name__}")
        hints = typing.get_type_hints(kind)
        # what an older version did not have keeps its default
        known = [each for each in fields(kind) if each.name in value or "since" not in each.metadata]
        return kind(**{each.name: _decode(hints[each.name], value[each.name]) for each in known})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        inner = next(each for each in arguments if each is not type(None))
        return None if value is None else _decode(inner, value)
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError(f"expected a list, found {type(value).__name__}")
        return tuple(_decode(arguments[0], each) for each in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise TypeError(f"expected an object, found {type(value).__name__}")
        return {key: _decode(arguments[1], each) for key, each in value.items()}
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"expected one of {', '.join(map(str, arguments))}, found {value!r}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"expected {kind.__name__}, found {type(value).__name__}")
    return value
