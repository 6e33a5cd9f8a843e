"""A suite: several models, batch sizes, shapes and precisions in one TOML file.

variants = ["eager", "ort"]        # default: all of them
device = "cpu"
threads = 2
boundary = "host"
concurrency = [1, 4]
rates = [100.0]

[[model]]
source = "st-cnn-affine-rts"       # or file = "model.onnx", and its source where it has one
batch_sizes = [1, 64]
precisions = ["fp32"]
input_shapes = [[1, 42, 42]]
weights = "checkpoint.safetensors"
inputs = ["images"]                # fed instead of the package's digits, and the INT8 calibration data
tolerance = 1e-4                   # of this model's outputs; one before the first [[model]] is for all
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from stn_infer.benchmarking.request import Case, Method, check_batch_sizes
from stn_infer.errors import UsageError
from stn_infer.metadata import Precision
from stn_infer.sources.reference import Weights

_MODEL_KEYS = ("source", "file", "batch_sizes", "precisions", "input_shapes", "weights", "inputs", "tolerance")
# A list of one type stands for a list whose items are of it.
_OTHER_KEYS: dict[str, Any] = {"variants": [str], "device": str, "threads": int, "tolerance": float}
_METHOD_KEYS: dict[str, Any] = {
    "rounds": int,
    "seconds": float,
    "samples": int,
    "turns": int,
    "row_limit": float,
    "boundary": str,
    "l2": str,
    "concurrency": [int],
    "rates": [float],
    "traffic_seconds": float,
    "separate": bool,
    "seed": int,
}


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What a suite's file asks for; None where it does not say."""

    cases: tuple[Case, ...]
    variants: tuple[str, ...] | None
    device: str | None
    threads: int | None
    tolerance: float | None
    method: Method


def read_suite(path: Path, method: Method) -> Suite:
    """The suite in a file.

    Args:
        path: TOML, as in this module's text; weights, files and inputs are relative to it.
        method: what holds where the file does not say.

    Raises:
        UsageError: it is missing or not TOML, or a key is unknown or of the wrong form.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: expected a suite; {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{path}: expected a suite in TOML; {error}") from None
    known = ("model", *_OTHER_KEYS, *_METHOD_KEYS)
    _only(path, "the suite", content, known)
    found = {key: _typed(path, key, content[key], kind) for key, kind in _OTHER_KEYS.items() if key in content}
    models = content.get("model", [])
    if not isinstance(models, list) or not models:
        raise UsageError(f"{path}: expected at least one [[model]]")
    cases = tuple(case for model in models for case in _cases(path, model))
    changes = {key: _typed(path, key, content[key], kind) for key, kind in _METHOD_KEYS.items() if key in content}
    if not found.get("tolerance", 1.0) > 0 or found.get("threads", 1) < 1:
        raise UsageError(f"{path}: expected a tolerance above 0 and threads of at least 1")
    try:
        changed = replace(method, **changes)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return Suite(cases=cases, method=changed, **dict.fromkeys(_OTHER_KEYS) | found)


def _cases(path: Path, model: Any) -> list[Case]:
    if not isinstance(model, dict) or not ("source" in model or "file" in model):
        raise UsageError(f'{path}: a [[model]] has a source = "..." or a file = "..."')
    _only(path, "a [[model]]", model, _MODEL_KEYS)
    file, source, weights = (
        _typed(path, key, model[key], str) if key in model else None for key in ("file", "source", "weights")
    )
    batch_sizes = _typed(path, "batch_sizes", model.get("batch_sizes", [1, 64]), [int])
    shapes = _typed(path, "input_shapes", model.get("input_shapes", []), [[int]])
    inputs = _typed(path, "inputs", model.get("inputs", []), [str])
    precisions = _typed(path, "precisions", model.get("precisions", ["fp32"]), [str])
    tolerance = _typed(path, "tolerance", model["tolerance"], float) if "tolerance" in model else None
    if tolerance is not None and not tolerance > 0:
        raise UsageError(f"{path}: expected a tolerance above 0, given {tolerance}")
    wrong = [each for each in precisions if each not in get_args(Precision)]
    if wrong:
        raise UsageError(f"{path}: precisions are {', '.join(get_args(Precision))}; given {wrong[0]!r}")
    return [
        Case(
            str(path.parent / file) if file else str(source),
            source=source if file else None,
            weights=str(Weights.of(weights).below(path.parent)) if weights else None,
            input_shapes=shapes or None,
            precision=precision,
            batch_sizes=check_batch_sizes(batch_sizes),
            inputs=tuple(str(path.parent / each) for each in inputs) or None,
            tolerance=tolerance,
        )
        for precision in precisions
    ]


def _typed(path: Path, key: str, value: Any, kind: Any) -> Any:
    """``value``, a float made of a whole number and a tuple of a list; UsageError where it is of another type."""
    try:
        return _cast(value, kind)
    except TypeError:
        raise UsageError(f"{path}: expected {key} as {_in_words(kind)}, given {value!r}") from None


def _cast(value: Any, kind: Any) -> Any:
    if isinstance(kind, list):
        if not isinstance(value, list):
            raise TypeError
        return tuple(_cast(each, kind[0]) for each in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value


def _in_words(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    many = {int: "whole numbers", float: "numbers", str: "texts"}
    if not isinstance(kind, list):
        return words[kind]
    return "a list of lists of whole numbers" if isinstance(kind[0], list) else f"a list of {many[kind[0]]}"


def _only(path: Path, what: str, given: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise UsageError(f"{path}: {what} has no {unknown[0]!r}; its keys are {', '.join(known)}")
