"""What the analysis of a file may take before the file is refused; inference is never limited by it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stn_infer.errors import UsageError

#: How a user raises the limits, for messages.
MORE_TIME = "if you trust it, raise the limit with --trial-seconds or STN_TRIAL_SECONDS (0: no limits)"
MORE_MEMORY = "if you trust it, raise the limit with --trial-memory or STN_TRIAL_GIB"

_DAY = 86_400.0  # seconds; of more, a child's timeout in milliseconds would not fit


@dataclass(frozen=True)
class Budget:
    """Limits for the analysis of one ONNX file that was not seen before.

    Attributes:
        seconds: of CPU time; 0: the file is trusted, and nothing is tried.
        bytes: memory on top of the model's own weights.

    Raises:
        UsageError: one of them is negative or not finite.
    """

    seconds: float = 60
    bytes: int = 4 << 30

    def __post_init__(self) -> None:
        if not (0 <= self.seconds < math.inf and self.bytes >= 0):
            raise UsageError(f"limits of an analysis are at least 0, not {self.seconds} s and {self.bytes} bytes")

    def or_unlimited(self) -> Budget:
        """These limits, or for a trusted file such that nothing reaches."""
        return self if self.seconds else Budget(_DAY, 1 << 50)

    @classmethod
    def given(cls, seconds: float | None, gib: float | None) -> Budget | None:
        """The limits that a user gives, the others from the environment; None if the user gives none.

        Raises:
            UsageError: one of them is not a number of at least 0.
        """
        if seconds is None and gib is None:
            return None
        default = cls.from_environment()
        if gib is not None and not 0 <= gib < 2**30:
            raise UsageError(f"--trial-memory is a number of gibibytes, not {gib}")
        if seconds is not None and not 0 <= seconds < math.inf:
            raise UsageError(f"--trial-seconds is a number of seconds, not {seconds}")
        return cls(default.seconds if seconds is None else seconds, default.bytes if gib is None else int(gib * 2**30))

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
