"""Sampling grids and sampling in PyTorch, in float32 at least: a grid in half precision is wrong by pixels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_infer.samplers import SamplerSpec


def sampling_grid(
    theta: Tensor,
    basis: Tensor,
    kind: str,
    output_size: Sequence[int],
    w_min: float | None = None,
    offset: Sequence[float] | None = None,
) -> Tensor:
    """The grid [N, *output_size, D] of ``theta`` [N, D, K] (projective: [N, D + 1, K]) and ``basis`` [K, P].

    A projective grid is divided by its last row, which is at least ``w_min``; ``offset`` (x, y(, z)) is added after.
    Has theta's dtype; autocast is disabled.
    """
    with full_precision(theta.device):
        points: Tensor = torch.matmul(theta, cast(basis, theta.dtype))  # [N, D, P]
    if kind == "projective":
        w = points[:, -1:] if w_min is None else points[:, -1:].clamp(min=w_min)
        points = points[:, :-1] / w
        if offset is not None:
            points = points + points.new_tensor(list(offset))[:, None]
    return points.transpose(1, 2).reshape(points.shape[0], *output_size, len(output_size))


def tensor_product_grid(theta: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """The grid [N, *out, D] of ``theta`` [N, D, K] and one matrix [length, lattice length] per axis.

    Has theta's dtype; autocast is disabled.
    """
    with full_precision(theta.device):
        *planes, rows, columns = (cast(matrix, theta.dtype) for matrix in matrices)
        lattice = [matrix.shape[1] for matrix in matrices]
        points = theta.reshape(*theta.shape[:2], *lattice)
        if planes:  # on the small lattice first, so that only the last product has the size of the grid
            points = torch.matmul(planes[0], points.flatten(3)).reshape(*theta.shape[:2], -1, *lattice[1:])
        points = torch.matmul(torch.matmul(rows, points), columns.T)  # [N, D, *out]
    return points.movedim(1, -1)


def sampled(input: Tensor, grid: Tensor, sampler: SamplerSpec) -> Tensor:
    """Sample ``input`` [N, C, *in] at ``grid`` [N, *out, D]: [N, C, *out] in the input's dtype.

    Computes in the wider of the two dtypes.
    """
    dtype = torch.promote_types(input.dtype, grid.dtype)
    padding = sampler.padding_mode
    if sampler.mode == "nearest" and sampler.rounding == "half up":
        grid = _rounded_half_up(grid, input.shape[2:], sampler)
        padding = "border" if padding == "reflection" else padding  # it is reflected already
    warped = F.grid_sample(
        cast(input, dtype),
        cast(grid, dtype),
        mode=sampler.mode,
        padding_mode=padding,
        align_corners=sampler.align_corners,
    )
    return cast(warped, input.dtype)


def _rounded_half_up(grid: Tensor, size: Sequence[int], sampler: SamplerSpec) -> Tensor:
    """``grid`` [N, *out, D] moved to the centers of the pixels floor(x + 0.5): eq. 4 of Jaderberg et al. 2015."""
    axes = zip(grid.unbind(-1), reversed(size), strict=True)
    return torch.stack([_pixel_center(at, length, sampler) for at, length in axes], dim=-1)


def pixel_coordinates(at: Tensor, length: int, align_corners: bool) -> Tensor:
    """``at`` of [-1, 1] in pixels of an axis of ``length`` pixels, any shape."""
    return (at + 1) / 2 * (length - 1) if align_corners else ((at + 1) * length - 1) / 2


def _pixel_center(at: Tensor, length: int, sampler: SamplerSpec) -> Tensor:
    corners = sampler.align_corners
    pixels = pixel_coordinates(at, length, corners)
    if sampler.padding_mode == "reflection":  # a triangle wave, before rounding: at a tie the order matters
        low, period = (0.0, 2 * (length - 1)) if corners else (-0.5, 2 * length)
        phase = torch.remainder(pixels - low, max(period, 1))
        pixels = (low + torch.minimum(phase, period - phase)).clamp(0, length - 1)
    pixels = torch.floor(pixels + 0.5)
    if corners:
        return pixels * (2 / max(length - 1, 1)) - 1
    return (2 * pixels + 1) / length - 1


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in ``dtype``; skips ``.to()`` for the same dtype, which would add a node to an exported graph."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """A context that disables autocast if it is enabled."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
