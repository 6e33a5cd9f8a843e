"""Pixel values to a model's numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stn_infer.preprocess.rule import Preprocess

_CACHED = 1 << 18  # values that are normalized at a time


def denormalize(values: NDArray[np.generic], preprocess: Preprocess) -> NDArray[np.uint8]:
    """The pixels [N, C, H, W] that :func:`normalize` makes ``values`` of, rounded; what lies outside is clipped."""
    mean = np.array(preprocess.mean, np.float64)[:, None, None]
    std = np.array(preprocess.std, np.float64)[:, None, None]
    found = np.where(np.isfinite(values), values, 0) * std + mean
    if preprocess.gamma != 1:
        found = np.maximum(found, 0) ** (1 / preprocess.gamma)
    if preprocess.scale == 0:
        return np.zeros(values.shape, np.uint8)
    return np.asarray((found / preprocess.scale).round().clip(0, 255)).astype(np.uint8)


def normalize(
    pixels: NDArray[np.generic], preprocess: Preprocess, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """``((pixel * scale) ** gamma - mean) / std`` for values 0..255, uint8 or floating-point [N, C, H, W]; float32.

    Args:
        pixels: in any memory layout.
        preprocess: its ``scale``, ``gamma``, ``mean`` and ``std`` are applied.
        out: where the values are written; None: a new, C-contiguous array.
    """
    values = np.empty(pixels.shape, np.float32) if out is None else out
    mean = np.array(preprocess.mean, np.float32)[:, None, None] if any(preprocess.mean) else None
    std = np.array(preprocess.std, np.float32)[:, None, None] if set(preprocess.std) != {1.0} else None
    # A few images at a time stay in the cache. The layout is changed before the type: both are fastest when neighbors
    # in memory are neighbors in the loop.
    step = max(1, _CACHED // max(1, pixels[0].size)) if len(pixels) else 1
    shape = (min(step, len(pixels)), *pixels.shape[1:])
    planes = None if pixels.flags.c_contiguous else np.empty(shape, pixels.dtype)
    for start in range(0, len(pixels), step):
        part, source = values[start : start + step], pixels[start : start + step]
        if planes is not None:
            source, strided = planes[: len(source)], source
            np.copyto(source, strided)
        np.copyto(part, source, casting="unsafe")
        part *= np.float32(preprocess.scale)
        if preprocess.gamma != 1:
            np.power(part, np.float32(preprocess.gamma), out=part)
        if mean is not None:
            part -= mean
        if std is not None:
            part /= std
    return values
