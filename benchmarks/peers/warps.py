"""The warp alone, as a model: an image and six numbers in, the warped image out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AffineWarp(nn.Module):
    """What people write: ``affine_grid`` and ``grid_sample``, bilinear, zeros, -1 and 1 at the corner pixels' centres.

    kornia's meshes have that convention, so that all compute the same.
    """

    def forward(self, image: Tensor, change: Tensor) -> Tensor:
        """Warp ``image`` [N, C, H, W] by the identity plus what ``change`` [N, 6] in [0, 1] says."""
        grid = F.affine_grid(theta_of(change), list(image.shape), align_corners=True)
        return F.grid_sample(image, grid, align_corners=True)


def theta_of(change: Tensor) -> Tensor:
    """theta [N, 2, 3]: the identity and up to ±0.2 beside it."""
    identity = torch.eye(2, 3, dtype=change.dtype, device=change.device)
    return identity + 0.4 * (change.view(-1, 2, 3) - 0.5)


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
