"""Sampling grids by their definition, for the tests of the transformations: slow, obvious, float64."""

from __future__ import annotations

import torch
from torch import Tensor

from stn_infer.transforms import Transformation


def grid_of(transformation: Transformation, parameters: Tensor, size: tuple[int, ...], corners: bool) -> Tensor:
    """[D, P] float64: theta . basis, by the definition alone."""
    matrix, offset = transformation.affine_map(size, corners)
    theta = (matrix @ transformation.features(parameters[None])[0] + offset).reshape(transformation.theta_shape)
    mapped = theta @ transformation.basis(size, corners)
    if transformation.kind != "projective":
        return mapped
    bottom = mapped[-1]
    if transformation.w_min is not None:
        bottom = bottom.clamp(min=transformation.w_min)
    moves = transformation.division_offset(corners) or (0.0,) * transformation.rank
    return mapped[:-1] / bottom + torch.tensor(moves, dtype=torch.float64)[:, None]


def targets(size: tuple[int, ...], corners: bool) -> Tensor:
    """[D, P] float64, written as the formula says, pixel by pixel."""

    def coordinate(index: int, length: int) -> float:
        if corners:
            return 2 * index / (length - 1) - 1 if length > 1 else 0.0
        return (2 * index + 1) / length - 1

    pixels = torch.cartesian_prod(*(torch.arange(length) for length in size)).reshape(-1, len(size)).tolist()
    rows = [[coordinate(i, length) for i, length in zip(pixel, size, strict=True)][::-1] for pixel in pixels]
    return torch.tensor(rows, dtype=torch.float64).T
