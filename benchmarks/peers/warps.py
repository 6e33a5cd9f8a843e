"""The warp alone, as a model: an image and six numbers in, the warped image out."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.benchmarking.prepare.case import Prepared
from stn_infer.errors import ModelError


class AffineWarp(nn.Module):
    """What people write: ``affine_grid`` and ``grid_sample``, bilinear, zeros, -1 and 1 at the corner pixels' centers.

    kornia's meshes have that convention, so that all compute the same.
    """

    def forward(self, image: Tensor, change: Tensor) -> Tensor:
        """Warp ``image`` [N, C, H, W] by the identity plus what ``change`` [N, 6] in [0, 1] says."""
        grid = F.affine_grid(theta_of(change), list(image.shape), align_corners=True)
        return F.grid_sample(image, grid, align_corners=True)


class Call(nn.Module):
    """A function of the same two tensors, as a module without weights."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor, change: Tensor) -> Tensor:
        """What the function gives."""
        return self.function(image, change)


def theta_of(change: Tensor) -> Tensor:
    """theta [N, 2, 3]: the identity and up to ±0.2 beside it."""
    identity = torch.eye(2, 3, dtype=change.dtype, device=change.device)
    return identity + 0.4 * (change.view(-1, 2, 3) - 0.5)


def folded(matrix_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A matrix that is affine in ``change``, as one product: ``change @ scale + shift``.

    Args:
        matrix_of: changes [N, 6] to matrices [N, 2, 3], in float64.

    Returns:
        scale [6, 6] and shift [6], float32; a matrix's rows one after the other.
    """
    found = matrix_of(torch.cat([torch.zeros(1, 6), torch.eye(6)]).double()).flatten(1)
    return (found[1:] - found[0]).float(), found[0].float()


def require_warp(prepared: Prepared, library: str) -> None:
    """Refuse what is not a warp of this folder.

    Raises:
        ModelError: the model's inputs are others, or are not float32.
    """
    if len(prepared.input_shapes) != 2 or prepared.input_shapes[1] != (6,) or prepared.precision != "fp32":
        raise ModelError(f"{library} has warps, no networks: it runs benchmarks.peers.warps in fp32 only")


# A suite tells models apart by name: one factory a size.
def warp_digits() -> nn.Module:
    """For [1, 28, 28]."""
    return AffineWarp()


def warp_photos() -> nn.Module:
    """For [3, 224, 224]."""
    return AffineWarp()


def warp_features() -> nn.Module:
    """For [32, 28, 28]."""
    return AffineWarp()
