"""The warp alone as a model: its inputs are an image and six numbers, its output is the warped image."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.benchmarking.prepare.case import Prepared
from stn_infer.errors import ModelError


class AffineWarp(nn.Module):
    """The usual code: ``affine_grid`` and ``grid_sample``, bilinear, zeros, -1 and 1 at the centers of corner pixels.

    kornia's meshes have that convention, so all libraries compute the same result.
    """

    def forward(self, image: Tensor, change: Tensor) -> Tensor:
        """Warp ``image`` [N, C, H, W] by the theta of ``change`` [N, 6] in [0, 1]; see :func:`theta_of`."""
        grid = F.affine_grid(theta_of(change), list(image.shape), align_corners=True)
        return F.grid_sample(image, grid, align_corners=True)


class Call(nn.Module):
    """A function of the same two tensors as a module without weights."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor, change: Tensor) -> Tensor:
        """Call the function."""
        return self.function(image, change)


def theta_of(change: Tensor) -> Tensor:
    """theta [N, 2, 3]: the identity, changed by up to ±0.2."""
    identity = torch.eye(2, 3, dtype=change.dtype, device=change.device)
    return identity + 0.4 * (change.view(-1, 2, 3) - 0.5)


def folded(matrix_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Express a matrix that is affine in ``change`` as one product: ``change @ scale + shift``.

    Args:
        matrix_of: maps changes [N, 6] to matrices [N, 2, 3], in float64.

    Returns:
        scale [6, 6] and shift [6], float32, for the matrix in row-major order.
    """
    found = matrix_of(torch.cat([torch.zeros(1, 6), torch.eye(6)]).double()).flatten(1)
    return (found[1:] - found[0]).float(), found[0].float()


def require_warp(prepared: Prepared, library: str) -> None:
    """Check that a model is a warp of this folder.

    Raises:
        ModelError: the model has other inputs, or is not in float32.
    """
    if len(prepared.input_shapes) != 2 or prepared.input_shapes[1] != (6,) or prepared.precision != "fp32":
        raise ModelError(f"{library} has warps but no networks: it runs benchmarks.peers.warps in fp32 only")


# a suite identifies models by name, so each size has a factory
def warp_digits() -> nn.Module:
    """For [1, 28, 28]."""
    return AffineWarp()


def warp_photos() -> nn.Module:
    """For [3, 224, 224]."""
    return AffineWarp()


def warp_features() -> nn.Module:
    """For [32, 28, 28]."""
    return AffineWarp()
