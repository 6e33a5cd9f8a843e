"""The regular mesh of target points that every grid starts from, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray


def canonical_basis(output_size: Sequence[int], corners: bool = False) -> NDArray[np.float64]:
    """Rows x, y(, z), 1 of the output's points, [D + 1, P], row-major, x along the last axis.

    Args:
        output_size: (H, W) or (D, H, W).
        corners: whether -1 and 1 are the outermost pixels' centers (torch's ``align_corners=True``) or their outer
            edges, so that pixel i lies at (2 i + 1) / size - 1.
    """
    axes = [np.linspace(-1, 1, size) if corners and size > 1 else _centers(size) for size in output_size]
    mesh = np.meshgrid(*axes, indexing="ij")
    return np.stack([*(axis.ravel() for axis in mesh[::-1]), np.ones(prod(output_size))])


def _centers(size: int) -> NDArray[np.float64]:
    return (2 * np.arange(size) + 1) / size - 1.0
