"""A suite: several models, batch sizes, shapes and precisions in one TOML file.

variants = ["eager", "ort"]        # all of them where it is left out
device = "cpu"
threads = 2
boundary = "host"
concurrency = [1, 4]
rates = [100.0]

[[model]]
source = "st-cnn-affine-rts"       # or file = "model.onnx", whose source may be given besides
batch_sizes = [1, 64]
precisions = ["fp32"]
input_shapes = [[1, 42, 42]]
weights = "checkpoint.safetensors"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from stn_infer.benchmarking.method import Method
from stn_infer.benchmarking.result import Case, Precision
from stn_infer.benchmarking.run import check_batch_sizes
from stn_infer.errors import UsageError

_MODEL_KEYS = ("source", "file", "batch_sizes", "precisions", "input_shapes", "weights")
_METHOD_KEYS = {
    "rounds": int,
    "seconds": float,
    "samples": int,
    "turns": int,
    "row_limit": float,
    "boundary": str,
    "l2": str,
    "concurrency": list,
    "rates": list,
    "traffic_seconds": float,
    "seed": int,
}


@dataclass(frozen=True)
class Suite:
    """What a suite's file says; None where it says nothing."""

    cases: tuple[Case, ...]
    variants: tuple[str, ...] | None
    device: str | None
    threads: int | None
    tolerance: float | None
    method: Method


def read_suite(path: Path, method: Method) -> Suite:
    """The suite in a file.

    Args:
        path: TOML, as in this module's text; weights and files are relative to it.
        method: what holds where the file says nothing.

    Raises:
        UsageError: it is missing or no TOML, or a key is unknown or of the wrong form.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: expected a suite; {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{path}: expected a suite in TOML; {error}") from None
    known = ("model", "variants", "device", "threads", "tolerance", *_METHOD_KEYS)
    _only(path, "the suite", content, known)
    models = content.get("model", [])
    if not isinstance(models, list) or not models:
        raise UsageError(f"{path}: expected at least one [[model]]")
    cases = tuple(case for model in models for case in _cases(path, model))
    changes: dict[str, Any] = {}
    for key, kind in _METHOD_KEYS.items():
        if key in content:
            value = _typed(path, key, content[key], kind)
            changes[key] = tuple(value) if kind is list else value
    variants = content.get("variants")
    return Suite(
        cases,
        None if variants is None else tuple(_typed(path, "variants", variants, list)),
        content.get("device"),
        content.get("threads"),
        content.get("tolerance"),
        replace(method, **changes),
    )


def _cases(path: Path, model: Any) -> list[Case]:
    if not isinstance(model, dict) or not ("source" in model or "file" in model):
        raise UsageError(f'{path}: a [[model]] has a source = "..." or a file = "..."')
    _only(path, "a [[model]]", model, _MODEL_KEYS)
    file, source = model.get("file"), model.get("source")
    weights = model.get("weights")
    shapes = model.get("input_shapes")
    precisions = _typed(path, "precisions", model.get("precisions", ["fp32"]), list)
    wrong = [each for each in precisions if each not in get_args(Precision)]
    if wrong:
        raise UsageError(f"{path}: precisions are {', '.join(get_args(Precision))}; given {wrong[0]!r}")
    try:
        return [
            Case(
                str(path.parent / file) if file else str(source),
                source if file else None,
                str(path.parent / weights) if weights else None,
                tuple(tuple(int(size) for size in shape) for shape in shapes) if shapes else None,
                precision,
                check_batch_sizes([int(size) for size in model.get("batch_sizes", (1, 64))]),
            )
            for precision in precisions
        ]
    except (TypeError, ValueError):
        raise UsageError(f"{path}: batch_sizes and input_shapes are lists of whole numbers") from None


def _typed(path: Path, key: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{path}: expected {key} as {kind.__name__}, given {value!r}")
    return value


def _only(path: Path, what: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise UsageError(f"{path}: {what} has no {unknown[0]!r}; its keys are {', '.join(known)}")
