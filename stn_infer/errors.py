"""The exception tree. A user's mistake becomes one line: what was expected, what was given, what to do.

StnInferError                  exit code 1
├── UsageError                 2    arguments that cannot go together, a value of the wrong form
├── MissingDependencyError     1    an optional package or a compiler is not installed
├── SourceError                1    a model cannot be had from its source (file, recipe, factory)
│   └── WeightsError           1    a checkpoint is unreadable, or its keys or shapes do not fit
├── ModelError                 1    an ONNX file is unreadable, or a runtime refuses it
├── ExportError                1    torch.onnx.export or the spatial pass cannot go on
├── VerificationError          3    outputs or grids differ by more than the tolerance
├── InputError                 1    an input of `run` is missing, unreadable or of the wrong shape
└── OutputError                1    a result cannot be written (permission, disk full, would overwrite)
"""

from __future__ import annotations

import re

from stn_infer.printing import shown


class StnInferError(Exception):
    """Base of every error that stn-infer raises on purpose; ``exit_code`` is the command line's."""

    exit_code = 1


class UsageError(StnInferError):
    """Arguments that cannot go together, or a value of the wrong form."""

    exit_code = 2


class MissingDependencyError(StnInferError):
    """An optional package (or a compiler) is needed and not installed."""


class SourceError(StnInferError):
    """A model cannot be had from its source: a shipped name, a recipe, a ``.pt2`` or a factory."""


class WeightsError(SourceError):
    """A checkpoint is unreadable, or its keys or shapes do not fit the network."""


class ModelError(StnInferError):
    """An ONNX file is unreadable, or a runtime refuses it."""


class ExportError(StnInferError):
    """``torch.onnx.export`` failed, or the exported graph cannot be used."""


class VerificationError(StnInferError):
    """Outputs or sampling grids differ from the reference by more than the tolerance."""

    exit_code = 3


class InputError(StnInferError):
    """An input of ``run`` is missing, unreadable or of the wrong shape."""


class OutputError(StnInferError):
    """A result cannot be written: no permission, disk full, or it would overwrite something."""


def one_line(error: BaseException | str, limit: int = 300) -> str:
    """A message on one line, without colors, cut at ``limit`` characters; an empty exception's is its type.

    What a file's names could do to a terminal is escaped: see :mod:`stn_infer.printing`.
    """
    text = shown(" ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split()))
    if not text and isinstance(error, BaseException):
        text = type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
