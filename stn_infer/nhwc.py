"""The three functions of kevinzakka's TensorFlow layer by their names, in PyTorch, with its edge rule.

Images are [N, H, W, C] and grids [N, 2, H, W]. The grid has -1 and 1 at the centers of the border pixels, while the
sampler maps [-1, 1] to [0, W - 2]. A sample is zero outside [0, W - 1) on either axis: the original clips both
neighbors to the image before it computes their weights, so that outside the two weights cancel. The convention
``kevinzakka`` of :class:`stn_infer.layers.SpatialTransformer` samples at the same points, but zeros padding fades over
the pixel beyond the border. Source: github.com/kevinzakka/spatial-transformer-network, ``stn/transformer.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.samplers import SamplerSpec
from stn_infer.transforms.grid import cast, full_precision, sampled

_SAMPLER = SamplerSpec("bilinear", "zeros", align_corners=True)


def affine_grid_generator(height: int, width: int, theta: Tensor) -> Tensor:
    """The sampling grid [N, 2, height, width] of ``theta`` [N, 2, 3], x before y, float32 or float64.

    An axis of length 1 has its only point at -1, as in the original.

    Raises:
        UsageError: a size below 1, or a theta of another shape.
    """
    if height < 1 or width < 1:
        raise UsageError(f"height and width of the grid are at least 1, not {height} and {width}")
    if theta.dim() != 3 or theta.shape[1:] != (2, 3):
        raise UsageError(f"theta has the shape [N, 2, 3], not {tuple(theta.shape)}; reshape [N, 6] to it")
    dtype = torch.promote_types(theta.dtype, torch.float32)
    x = torch.linspace(-1, 1, width, dtype=dtype, device=theta.device)
    y = torch.linspace(-1, 1, height, dtype=dtype, device=theta.device)
    rows = torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones_like(x).repeat(height)])  # [3, H * W]
    with full_precision(theta.device):
        grid: Tensor = torch.matmul(cast(theta, dtype), rows)
    return grid.reshape(-1, 2, height, width)


def bilinear_sampler(img: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Sample ``img`` [N, H, W, C] at ``x`` and ``y`` [N, Ho, Wo] in [-1, 1]: [N, Ho, Wo, C] in img's dtype.

    Raises:
        UsageError: shapes that do not fit.
    """
    _check_image(img)
    if x.dim() != 3 or x.shape != y.shape or x.shape[0] != img.shape[0]:
        raise UsageError(
            f"x and y have the shape [N, Ho, Wo] with the image's N, {img.shape[0]}, not {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    pairs = [_positions(cast(at, dtype), size) for at, size in ((x, img.shape[2]), (y, img.shape[1]))]
    grid = torch.stack([normalized for normalized, _ in pairs], dim=-1)  # [N, Ho, Wo, 2]
    inside = pairs[0][1] & pairs[1][1]  # [N, Ho, Wo]
    warped = sampled(img.permute(0, 3, 1, 2), grid, _SAMPLER).permute(0, 2, 3, 1)
    return torch.where(inside[..., None], warped, torch.zeros((), dtype=warped.dtype, device=warped.device))


def spatial_transformer_network(input_fmap: Tensor, theta: Tensor, out_dims: Sequence[int] | None = None) -> Tensor:
    """Warp ``input_fmap`` [N, H, W, C] by ``theta`` [N, 6] (or [N, 2, 3]): [N, *out_dims, C] in its own dtype.

    Args:
        input_fmap: the images or feature maps.
        theta: the rows x and y of the affine transformation from output to input coordinates.
        out_dims: (height, width) of the output; None: the input's.

    Raises:
        UsageError: shapes that do not fit.
    """
    _check_image(input_fmap)
    if theta.numel() != 6 * input_fmap.shape[0]:
        raise UsageError(f"theta has 6 values for each of {input_fmap.shape[0]} images, not {tuple(theta.shape)}")
    if out_dims is not None and len(out_dims) != 2:
        raise UsageError(f"out_dims is (height, width), not {tuple(out_dims)}")
    height, width = out_dims or input_fmap.shape[1:3]
    grid = affine_grid_generator(height, width, theta.reshape(-1, 2, 3))
    return bilinear_sampler(input_fmap, grid[:, 0], grid[:, 1])


def _check_image(image: Tensor) -> None:
    if image.dim() != 4 or 0 in image.shape[1:]:
        raise UsageError(f"images have the shape [N, H, W, C] without empty axes, not {tuple(image.shape)}")


def _positions(at: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Coordinates for ``align_corners=True``, and whether each lies in [0, size - 1) pixels."""
    pixels = 0.5 * ((at + 1) * (size - 2))
    return pixels * (2 / max(size - 1, 1)) - 1, (pixels >= 0) & (pixels < size - 1)
