"""Before a variant is timed: the inputs that all of them get, and whether its outputs are the reference's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.backends.base import Array

if TYPE_CHECKING:
    from stn_infer.sources.load import LoadedModel

# Rounding may flip a nearest sampler's pixel, which changes that sample's outputs at will.
_FLIPPED_SHARE = 0.02


@dataclass(frozen=True)
class Expected:
    """What every variant must give for ``inputs``.

    Attributes:
        inputs: one array an input, [N, ...], float32.
        outputs: one array an output, in the reference's type.
        may_flip: whether a sampler of the model is ``nearest``.
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]
    may_flip: bool

    def error(self, outputs: Sequence[Array]) -> float:
        """The largest error of ``outputs`` over its scale, the largest magnitude in the reference or 1.

        Infinite where shapes differ or something is not a number that should be. With a nearest sampler, the worst
        2 % of the samples are passed over. More outputs than the reference has (theta) are passed over too.
        """
        if len(outputs) < len(self.outputs):
            return float("inf")
        worst = 0.0
        for expected, actual in zip(self.outputs, outputs, strict=False):
            if expected.shape != actual.shape:
                return float("inf")
            if not expected.size:
                continue
            with np.errstate(invalid="ignore"):
                difference = np.abs(actual.astype(np.float64) - expected)
            difference[np.isnan(actual) & np.isnan(expected)] = 0.0
            difference[np.isnan(difference)] = np.inf
            errors = np.sort(difference.reshape(len(difference), -1).max(axis=1))
            passed_over = int(len(errors) * _FLIPPED_SHARE) if self.may_flip else 0
            scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
            worst = max(worst, float(errors[len(errors) - 1 - passed_over]) / scale)
        return worst


def bench_inputs(loaded: LoadedModel, batch_size: int, seed: int) -> tuple[tuple[Array, ...], str]:
    """Inputs [N, ...] and what they are: handwritten digits for a model that takes images, else random in [0, 1]."""
    from stn_infer.data.samples import sample_images

    generator = np.random.default_rng(seed)
    values: list[Array] = [generator.random((batch_size, *shape), dtype=np.float32) for shape in loaded.input_shapes]
    first = loaded.input_shapes[0]
    if len(first) == 3 and first[0] in (1, 3):
        values[0] = sample_images(batch_size, first, loaded.metadata.preprocess)
        return tuple(values), "handwritten digits" + (", random in [0, 1]" if len(values) > 1 else "")
    return tuple(values), "random in [0, 1]"
