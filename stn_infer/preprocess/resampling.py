"""Pillow's resizing of one axis as a matrix.

The weights are Pillow's own answers to single white pixels, rounded to 2 ** -15. Then every product with 8-bit pixels
and every sum of them is exact in float32, whatever the order, and all runtimes compute the same. The result is within
one level of Pillow's, which rounds to 2 ** -22.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stn_infer.preprocess.geometry import Placement
from stn_infer.preprocess.rule import Interpolation

_STEPS = 1 << 15
_BLOCK = 1 << 22  # pixels that Pillow resizes at a time


def resampling_matrix(place: Placement, interpolation: Interpolation) -> NDArray[np.float32]:
    """The matrix [length, source] by which an axis is resized and cropped; rows of padding are zero."""
    weights = np.zeros((place.length, place.source), np.float32)
    first, last = max(0, -place.offset), min(place.length, place.scaled - place.offset)
    resized = _resized(place.source, place.scaled, interpolation)
    weights[first:last] = resized[first + place.offset : last + place.offset]
    return weights


def _resized(source: int, scaled: int, interpolation: Interpolation) -> NDArray[np.float32]:
    """Pillow's weights [scaled, source]; each row has the sum 1."""
    if source == scaled:
        return np.eye(source, dtype=np.float32)
    found = np.empty((scaled, source), np.float64)
    rows = max(1, _BLOCK // source)
    for start in range(0, source, rows):
        count = min(rows, source - start)
        pixels = np.zeros((count, source), np.float32)
        pixels[np.arange(count), start + np.arange(count)] = 1
        image = Image.fromarray(pixels).resize((scaled, count), Image.Resampling[interpolation.upper()])
        found[:, start : start + count] = np.asarray(image).T
    steps = np.round(found * _STEPS)
    # what rounding took from a row goes to its largest weight, so that a plain picture stays as it is
    largest = np.abs(steps).argmax(axis=1)
    steps[np.arange(scaled), largest] += _STEPS - steps.sum(axis=1)
    return (steps / _STEPS).astype(np.float32)
