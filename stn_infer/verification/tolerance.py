"""How exact float32 can be on a model: what a runtime is held to can't be less than what eager PyTorch reaches itself.

A warped image of 100 pixels and more is such a case: coordinates have 24 bits, and a hundred-thousandth of a pixel on
an edge between black and white is a hundred-thousandth of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

    from stn_infer.reference.model import Reference
    from stn_infer.sources.load import LoadedModel

Array = NDArray[Any]

MARGIN = 4.0
"""Other runtimes sum in another order: their share over eager PyTorch's own deviation."""
CEILING = 1e-3
"""Beyond this a tolerance finds nothing; a model whose float32 is worse needs one that its user has chosen."""


def float32_deviation(module: nn.Module, reference: Reference, batches: Sequence[Sequence[Array]]) -> float:
    """The largest difference between eager float32 and the float64 reference, over each output's scale.

    Args:
        module: the model in float32.
        reference: the same model in float64.
        batches: inputs to run.

    Returns:
        0 where nothing can be said: the reference is no float64, a sampler reads the nearest pixel (where a rounding
        error moves a whole pixel), or a value is not finite.
    """
    import torch
    from torch.utils import _pytree as pytree

    worst = 0.0
    if reference.dtype != "float64":
        return worst
    for inputs in batches:
        expected, samplings = reference.run(inputs)
        if any(sampling.mode == "nearest" for sampling in samplings):
            return 0.0
        with torch.no_grad():
            outputs = pytree.tree_leaves(module(*(torch.from_numpy(value) for value in inputs)))
        for output, wanted in zip(outputs, expected, strict=True):
            if wanted.dtype.kind != "f" or not wanted.size:
                continue
            difference = np.abs(output.numpy().astype(np.float64) - wanted).max()
            if not np.isfinite(difference):
                return 0.0
            worst = max(worst, float(difference / max(1.0, float(np.abs(wanted).max()))))
    return worst


def rest_deviation(loaded: LoadedModel, reference: Reference, batches: Sequence[Sequence[Array]]) -> float:
    """As :func:`float32_deviation`, the reference being given eager float32's own warped images.

    That leaves out what the last digits of a coordinate do to a warped image: it is what the rest of the network needs.
    """
    from stn_infer.verification.runners import EagerRunner

    runner, worst = EagerRunner(loaded, "cpu", fused=False), 0.0
    for inputs in batches:
        run = runner.run(inputs)
        expected, _ = reference.run(inputs, [trace.warped for trace in run.traces])
        for output, wanted in zip(run.outputs.values(), expected, strict=True):
            if wanted.dtype.kind == "f" and wanted.size:
                difference = np.abs(output.astype(np.float64) - wanted).max()
                worst = max(worst, float(difference / max(1.0, float(np.abs(wanted).max()))))
    return worst


def attainable(default: float, deviation: float) -> float:
    """``default``, or what float32 needs where that is more: ``MARGIN`` times its deviation, ``CEILING`` at most."""
    return max(default, min(MARGIN * deviation, CEILING))
