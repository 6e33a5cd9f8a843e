"""What is known of a right sampler: the mistakes that runtimes make, and a bound on float32's coordinates.

:mod:`stn_infer.sampling` is the reference for every runtime's sampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from stn_infer.arrays import Array
from stn_infer.samplers import MODES, PADDING_MODES, SamplerSpec
from stn_infer.sampling import Doubles

UNIT = 2.0**-24
"""float32's unit roundoff: the relative error of one operation."""


def mistakes(spec: SamplerSpec, rank: int) -> dict[str, SamplerSpec]:
    """Variants of a sampler of images or volumes (``rank`` 2 or 3) with one mistake each, by the mistake's name."""
    found = {
        f"{mode} sampling instead of {spec.mode}": replace(spec, mode=mode)
        for mode in MODES
        if mode != spec.mode and not (rank == 3 and mode == "bicubic")
    }
    found |= {
        f"{padding} padding instead of {spec.padding_mode}": replace(spec, padding_mode=padding)
        for padding in PADDING_MODES
        if padding != spec.padding_mode
    }
    other = not spec.align_corners
    found[f"align_corners={other} instead of {spec.align_corners}"] = replace(spec, align_corners=other)
    if spec.mode == "nearest":
        found["rounding half up instead of half to even"] = replace(spec, rounding="half up")
        found["rounding down instead of to the nearest pixel"] = replace(spec, rounding="down")
    return found


def coordinate_bound(
    grid: Array,
    size: Sequence[int],
    terms: Array | None = None,
    count: int = 0,
    denominator: Array | None = None,
) -> Doubles:
    """Bound the error of a sampling point computed in float32, along each axis, in pixels.

    The bound is the standard forward error bound (Higham, Accuracy and Stability of Numerical Algorithms, 3.1): the
    error of a sum of K products is at most (K + 1) u times the sum of their magnitudes, in any order; u = 2^-24. A few
    more operations turn the sum into a pixel index.

    Args:
        grid: the exact grid [N, *out, D], float64.
        size: the image's spatial size.
        terms: sum over k of |theta basis|, [N, *out, D]; None if the runtime was given the grid itself.
        count: K.
        denominator: for a projective grid: [N, *out, 2], the third row's value and its sum of magnitudes.

    Returns:
        [N, *out, D]; infinite where no bound holds.
    """
    scale = np.array(tuple(size)[::-1], np.float64) / 2
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        off = 6 * UNIT * (np.abs(grid) + 1)
        # an affine kernel may compute the rows x and y itself, with three more roundings
        sum_off = (count + 5) * UNIT
        if terms is not None and denominator is None:
            off = off + sum_off * terms
        elif terms is not None and denominator is not None:
            w, w_terms = np.abs(denominator[..., :1]), denominator[..., 1:]
            w_off = sum_off * w_terms
            off = off + (sum_off * terms + np.abs(grid) * w_off) / np.maximum(w - w_off, 0.0)
        bound = off * scale
    return np.where(np.isfinite(bound), bound, np.inf)
