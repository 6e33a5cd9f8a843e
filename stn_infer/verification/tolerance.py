"""How exact float32 can be on a model: what a runtime is held to can't be less than what eager PyTorch reaches itself.

A warped image of 100 pixels and more is such a case: coordinates have 24 bits, and a hundred-thousandth of a pixel on
an edge between black and white is a hundred-thousandth of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stn_infer.arrays import Array

if TYPE_CHECKING:
    from stn_infer.reference.model import Reference
    from stn_infer.sources.load import LoadedModel


MARGIN = 4.0
"""Other runtimes sum in another order: their share over eager PyTorch's own deviation."""
CEILING = 1e-3
"""Beyond this a tolerance finds nothing; a model whose float32 is worse needs one that its user has chosen."""


@dataclass(frozen=True)
class Deviation:
    """The largest differences between eager float32 and the float64 reference, each over its array's scale.

    0 where nothing can be said: the reference is no float64, a sampler reads the nearest pixel (where a rounding error
    moves a whole pixel, and all that comes after), or a value is not finite.

    Attributes:
        outputs: of the outputs.
        images: of what samplers read.
    """

    outputs: float
    images: float


def float32_deviation(loaded: LoadedModel, reference: Reference, batches: Sequence[Sequence[Array]]) -> Deviation:
    """How far eager float32 is from the float64 reference.

    Args:
        loaded: the model in float32.
        reference: the same model in float64.
        batches: inputs to run.
    """
    from stn_infer.verification.runners import EagerRunner

    if reference.dtype != "float64":
        return Deviation(0.0, 0.0)
    runner, outputs, images = EagerRunner(loaded, "cpu", fused=False), [0.0], [0.0]
    for inputs in batches:
        expected, samplings = reference.run(inputs)
        run = runner.run(inputs)
        for trace, sampling in zip(run.traces, samplings, strict=False):
            if sampling.image is not None and sampling.image.shape == trace.image.shape:
                images.append(_scaled(trace.image, sampling.image))
            if sampling.mode == "nearest":
                outputs.append(np.inf)
                break
        outputs += [_scaled(output, wanted) for output, wanted in zip(run.outputs.values(), expected, strict=True)]
    return Deviation(*(max(errors) if np.isfinite(errors).all() else 0.0 for errors in (outputs, images)))


def _scaled(actual: Array, expected: Array) -> float:
    """The largest difference over the scale; 0 where there are no floats, infinite where one is not finite."""
    if expected.dtype.kind != "f" or not expected.size:
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.abs(actual.astype(np.float64) - expected).max()
    return float(difference / max(1.0, float(np.abs(expected).max()))) if np.isfinite(difference) else float("inf")


def downstream_deviation(loaded: LoadedModel, reference: Reference, batches: Sequence[Sequence[Array]]) -> float:
    """As :func:`float32_deviation`, the reference being given eager float32's own warped images.

    That leaves out what the last digits of a coordinate do to a warped image: it is what the rest of the network needs.
    """
    from stn_infer.verification.runners import EagerRunner

    runner, worst = EagerRunner(loaded, "cpu", fused=False), 0.0
    for inputs in batches:
        run = runner.run(inputs)
        expected, _ = reference.run(inputs, [trace.warped for trace in run.traces])
        for output, wanted in zip(run.outputs.values(), expected, strict=True):
            error = _scaled(output, wanted)
            worst = max(worst, error if np.isfinite(error) else 0.0)
    return worst


def float32_tolerance(default: float, deviation: float) -> float:
    """``default``, or what float32 needs where that is more: ``MARGIN`` times its deviation, ``CEILING`` at most."""
    return max(default, min(MARGIN * deviation, CEILING))
