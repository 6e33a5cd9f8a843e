"""What the analysis of a file may take before the file is refused; inference is never limited by it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stn_infer.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """Limits for a process that analyzes one file.

    Attributes:
        seconds: of CPU time; 0: the file is trusted, and nothing is tried.
        bytes: memory on top of the model's own weights.
    """

    seconds: float = 60
    bytes: int = 4 << 30

    @classmethod
    def from_environment(cls) -> Budget:
        """``STN_TRIAL_SECONDS`` and ``STN_TRIAL_GIB``, by default 60 and 4.

        Raises:
            UsageError: one of them is not a number of at least 0.
        """
        seconds = number_from_environment("STN_TRIAL_SECONDS", cls.seconds, "seconds")
        return cls(seconds, int(number_from_environment("STN_TRIAL_GIB", cls.bytes / 2**30, "gibibytes") * 2**30))


#: Values that the random inputs of a model may have together: a gibibyte in float32.
MOST_VALUES = 1 << 28


def too_large(shapes: Mapping[str, Sequence[int]]) -> str:
    """Why random inputs of these shapes, by name, are not made; "" if they have at most 2**28 values together."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if sum(sizes.values()) <= MOST_VALUES:
        return ""
    largest = max(sizes, key=lambda name: sizes[name])
    return f"input {largest!r} of shape {list(shapes[largest])} is too large to run on random values"


def number_from_environment(name: str, default: float, unit: str) -> float:
    """The number that an environment variable holds.

    Raises:
        UsageError: it is not a finite number of at least 0.
    """
    text = os.environ.get(name) or str(default)
    try:
        number = float(text)
        if not 0 <= number < math.inf:
            raise ValueError
    except ValueError:
        raise UsageError(f"{name} is a number of {unit}, not {text!r}") from None
    return number
