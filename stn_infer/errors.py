"""The exception tree. A user error becomes one line: what was expected, what was given, what to do.

StnInferError                  exit code 1
├── UsageError                 2    incompatible arguments, or a malformed value
├── MissingDependencyError     1    an optional package or a compiler is not installed
├── SourceError                1    a model cannot be loaded from its source (file, recipe, factory)
│   └── WeightsError           1    a checkpoint is unreadable, or its keys or shapes do not fit
├── ModelError                 1    an ONNX file is unreadable, or a runtime rejects it
├── ExportError                1    torch.onnx.export failed, or the exported graph cannot be used
├── VerificationError          3    outputs or grids differ by more than the tolerance
├── InputError                 1    an input of `run` is missing, unreadable or of the wrong shape
├── OutputError                1    a result cannot be written (permission, disk full, would overwrite)
└── ClusterError               1    a cluster cannot be reached, or a worker cannot work on the job
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from stn_infer.printing import shown


class AssumptionWarning(UserWarning):
    """Something that determines predictions was not given, and was assumed; the command line prints it as one line."""


class DeviceWarning(AssumptionWarning):
    """An engine runs on another GPU than the one that it was built for."""


class FallbackWarning(RuntimeWarning):
    """A fast way does not work here, and another is taken; the command line prints it as one line."""


class StnInferError(Exception):
    """Base class of all errors that stn-infer raises; ``exit_code`` is the command's exit code."""

    exit_code = 1


class UsageError(StnInferError):
    """Incompatible arguments, or a malformed value."""

    exit_code = 2


class MissingDependencyError(StnInferError):
    """An optional package or a compiler is required and not installed."""


class SourceError(StnInferError):
    """A model cannot be loaded from its source: a shipped name, a recipe, a ``.pt2`` file or a factory."""


class WeightsError(SourceError):
    """A checkpoint is unreadable, or its keys or shapes do not fit the network."""


class ModelError(StnInferError):
    """An ONNX file is unreadable, or a runtime rejects it."""


class ExportError(StnInferError):
    """``torch.onnx.export`` failed, or the exported graph cannot be used."""


class VerificationError(StnInferError):
    """Outputs or sampling grids differ from the reference by more than the tolerance."""

    exit_code = 3


class InputError(StnInferError):
    """An input of ``run`` is missing, unreadable or of the wrong shape."""


class OutputError(StnInferError):
    """A result cannot be written: no permission, disk full, or it would overwrite an existing file."""


class ClusterError(StnInferError):
    """A cluster cannot be reached, or one of its workers cannot work on the job."""


def of_input(name: str, error: str) -> str:
    """An input's error, which names the input."""
    return error if name in error else f"{name}: {error}"


def batch_advice(shapes: Iterable[tuple[int, ...]]) -> str:
    """Advice for shapes of samples that did not fit and look as if they began with the batch; else empty.

    A sample [C, H, W] may begin with 1, so only four axes or more are taken for a batch and a sample.
    """
    given = tuple(shapes)
    if not any(len(shape) > 3 and shape[0] == 1 for shape in given):
        return ""
    without = (shape[1:] if len(shape) > 3 and shape[0] == 1 else shape for shape in given)
    options = " ".join(f"--input-shape {','.join(map(str, shape))}" for shape in without)
    return f"; drop the leading batch: {options}"


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """``error``'s message on one line without ANSI colors, truncated to ``limit`` characters.

    An exception without a message gives the name of its type. Control characters are escaped: see
    :mod:`stn_infer.printing`.
    """
    text = shown(" ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()))
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
