"""Pixel values to a model's numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stn_infer.preprocess.rule import Preprocess


def normalize(pixels: NDArray[np.generic], preprocess: Preprocess) -> NDArray[np.float32]:
    """``((pixel * scale) ** gamma - mean) / std`` for values 0..255, uint8 or floating-point [N, C, H, W]; float32."""
    values = pixels.astype(np.float32)
    values *= np.float32(preprocess.scale)
    if preprocess.gamma != 1:
        np.power(values, np.float32(preprocess.gamma), out=values)
    if any(mean != 0 for mean in preprocess.mean):
        values -= np.array(preprocess.mean, np.float32)[:, None, None]
    if any(std != 1 for std in preprocess.std):
        values /= np.array(preprocess.std, np.float32)[:, None, None]
    return values
