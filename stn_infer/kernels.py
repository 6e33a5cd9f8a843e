"""Sampling with any kernel: eq. 3 of Jaderberg et al. 2015, of which bilinear and nearest are two cases.

    V[c, i] = sum_n sum_m U[c, n, m] k(x_i - m; phi_x) k(y_i - n; phi_y)        x_i, y_i in pixels

The sum runs over the whole image, so that the time is proportional to input pixels times output pixels. It exports to
plain operators (MatMul, Mul, ReduceSum): no GridSample has such a kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms.grid import cast, full_precision, pixel_coordinates

Kernel = Callable[[Tensor, Tensor], Tensor]
"""k(distance, phi): a weight for each distance in pixels (any shape, sampling point minus pixel index)."""


def bilinear(distance: Tensor, phi: Tensor) -> Tensor:
    """max(0, 1 - \\|d\\|), eq. 5; has no parameters."""
    return (1 - distance.abs()).clamp(min=0)


def nearest(distance: Tensor, phi: Tensor) -> Tensor:
    """1 for the pixel floor(x + 0.5), eq. 4: ties round up. Its derivative is zero; has no parameters."""
    return ((distance >= -0.5) & (distance < 0.5)).to(distance.dtype)


def gaussian(distance: Tensor, phi: Tensor) -> Tensor:
    """exp(-d^2 / (2 phi^2)) / (phi sqrt(2 pi)): ``phi`` is the standard deviation in pixels, a scalar."""
    scale: Tensor = phi.abs() * (2 * torch.pi) ** 0.5
    return torch.exp(-0.5 * (distance / phi).square()) / scale


def sample_with_kernel(
    input: Tensor, grid: Tensor, kernel: Kernel, phi_x: Tensor, phi_y: Tensor, align_corners: bool = False
) -> Tensor:
    """Sample ``input`` [N, C, H, W] at ``grid`` [N, Ho, Wo, 2] (x first, in [-1, 1]) with eq. 3: [N, C, Ho, Wo].

    Pixels outside the image do not contribute. Computes in the wider dtype, float32 at least; the result has the
    input's dtype. Differentiable in the input, the grid and the parameters as far as the kernel is.

    Raises:
        UsageError: shapes that do not fit, or a kernel that changes the shape.
    """
    if input.dim() != 4 or grid.dim() != 4 or grid.shape[-1] != 2 or grid.shape[0] != input.shape[0]:
        raise UsageError(
            f"eq. 3 samples images [N, C, H, W] at a grid [N, Ho, Wo, 2], not {tuple(input.shape)} at "
            f"{tuple(grid.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(input.dtype, grid.dtype), torch.float32)
    points = cast(grid, dtype).flatten(1, 2)  # [N, P, 2]
    weights_x = _weights(points[..., 0], input.shape[3], kernel, phi_x, align_corners)  # [N, W, P]
    weights_y = _weights(points[..., 1], input.shape[2], kernel, phi_y, align_corners)  # [N, H, P]
    with full_precision(input.device):
        rows = torch.matmul(cast(input, dtype), weights_x[:, None])  # [N, C, H, P]
        warped = (rows * weights_y[:, None]).sum(dim=2)  # [N, C, P]
    return cast(warped.reshape(*warped.shape[:2], *grid.shape[1:3]), input.dtype)


def _weights(at: Tensor, size: int, kernel: Kernel, phi: Tensor, align_corners: bool) -> Tensor:
    pixels = pixel_coordinates(at, size, align_corners)  # [N, P]
    index = torch.arange(size, dtype=at.dtype, device=at.device)
    distance = pixels[:, None, :] - index[:, None]  # [N, size, P]
    weights = kernel(distance, cast(phi, at.dtype))
    if weights.shape != distance.shape:
        raise UsageError(
            f"a kernel returns one weight per distance, {tuple(distance.shape)}, not {tuple(weights.shape)}"
        )
    return weights


class KernelTransformer(nn.Module):
    """A spatial transformer whose sampler has the kernel ``kernel`` with the parameters phi_x and phi_y (eq. 3).

    Args:
        transformer: its localization network, transformation, output size and ``align_corners`` are used; its mode and
            padding are not (pixels outside the image do not contribute).
        kernel: for example :func:`gaussian`, or any function of distances in pixels and phi.
        phi_x: the parameters for x, of any shape that the kernel takes; trained with the network.
        phi_y: those for y; None: a copy of phi_x.

    Raises:
        UsageError: the transformer is one of volumes.
    """

    def __init__(
        self,
        transformer: SpatialTransformer,
        kernel: Kernel = bilinear,
        phi_x: Tensor | None = None,
        phi_y: Tensor | None = None,
    ) -> None:
        super().__init__()
        if transformer.transformation.rank != 2:
            raise UsageError("eq. 3 is implemented for images; this transformer is one of volumes")
        first = torch.zeros(0) if phi_x is None else phi_x
        self.transformer = transformer
        self.kernel = kernel
        self.phi_x = nn.Parameter(first.detach().clone())
        self.phi_y = nn.Parameter((first if phi_y is None else phi_y).detach().clone())

    def forward(self, input: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Warp ``input`` [N, C, H, W] to [N, C, *output_size]; arguments as for ``SpatialTransformer.forward``.

        Raises:
            UsageError: there is no localization network and no parameters, or the input has the wrong shape.
        """
        grid = self.transformer.predicted_grid(input, parameters)
        return sample_with_kernel(input, grid, self.kernel, self.phi_x, self.phi_y, self.transformer.align_corners)
