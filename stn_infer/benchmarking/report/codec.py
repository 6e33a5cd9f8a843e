"""A result out of its JSON file. benchmarks/schema/bench-result.schema.json describes the form."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from stn_infer.benchmarking.decode import decode
from stn_infer.benchmarking.report.result import SCHEMA_VERSION, BenchResult
from stn_infer.errors import UsageError

_OLDEST = 2  # what it lacks has defaults that mean the same


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
