"""PyTorch modules of the zoo whose grids are quotients: cameras, plane sweeps, rational polynomials, volumes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support import stn_styles as styles

HEIGHT, WIDTH = styles.SIZE
VOXELS = (3, 4, 5)  # depth, height, width
# A camera [3, 4] that sees the points around the origin at a distance of about two.
CAMERA = [3.0, 0.2, 1.5, 6.0, 0.1, 4.0, 2.0, 8.0, 0.1, -0.2, 0.9, 2.0]


def homogeneous() -> Tensor:
    """[3, H W]: x, y, 1."""
    return torch.cat([styles.mesh(), torch.ones(1, *styles.SIZE)]).flatten(1)


def in_pixels(points: Tensor, least: float) -> Tensor:
    """Normalized coordinates [N, P, 2] of points [N, 3, P] in pixels, whose depth is at least ``least``."""
    u, v = (points[:, :2] / points[:, 2:].clamp(min=least)).unbind(1)
    return torch.stack([2 * u / (WIDTH - 1) - 1, 2 * v / (HEIGHT - 1) - 1], -1)


class PlaneSweep(nn.Module):
    """K (R + t n / d) K^-1 for three planes at depths d, each with a sampler; depth in the camera is clamped."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(12, [3.0, 0.1, 3.0, 0.0, 4.0, 4.0, 0.1, -0.1, 1.0, 0.2, 0.1, 0.05])

    def forward(self, x: Tensor) -> Tensor:
        rotation, translation = self.loc(x).split([9, 3], 1)
        warped = []
        for depth in (1.0, 2.0, 4.0):
            planar = torch.cat([torch.zeros(3, 2), torch.full((3, 1), 1 / depth)], 1)
            homography = rotation.view(-1, 3, 3) + translation[:, :, None] * planar
            grid = in_pixels(homography @ homogeneous(), 0.8).view(-1, *styles.SIZE, 2)
            warped.append(F.grid_sample(x, grid, align_corners=True))
        return torch.stack(warped, 1)


class VoxelsToCamera(nn.Module):
    """The centers of voxels, projected by a predicted camera [3, 4]; a 2-D image is read at each."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(12, CAMERA)

    def forward(self, x: Tensor) -> Tensor:
        axes = [torch.linspace(-1.0, 1.0, size) for size in VOXELS]
        z, y, x_axis = torch.meshgrid(*axes, indexing="ij")
        centers = torch.stack([x_axis, y, 2 * z, torch.ones_like(z)]).flatten(1)
        grid = in_pixels(self.loc(x).view(-1, 3, 4) @ centers, 0.5)
        read = F.grid_sample(x, grid[:, :, None], align_corners=True)
        return read.view(x.shape[0], -1, *VOXELS)


class RationalCamera(nn.Module):
    """Cubic polynomials over a cubic one, as in rational polynomial cameras.

    Args:
        denominators: 1: both coordinates have the same one; 2: each has its own.
    """

    def __init__(self, denominators: int = 1) -> None:
        super().__init__()
        first = [0.0] * 10
        tops = [[*first], [*first]]
        tops[0][1] = tops[1][2] = 0.8
        bottoms = [[1.0, *first[1:]] for _ in range(denominators)]
        self.loc = styles.Head(10 * (2 + denominators), [v for row in (*tops, *bottoms) for v in row])
        self.denominators = denominators

    def forward(self, x: Tensor) -> Tensor:
        a, b = styles.mesh().flatten(1)
        powers = torch.stack([a**i * b**j for i in range(4) for j in range(4 - i)])
        order = [0, 4, 1, *(k for k in range(10) if k not in (0, 4, 1))]
        values = self.loc(x).view(-1, 2 + self.denominators, 10) @ powers[order]
        grid = (values[:, :2] / values[:, 2:]).transpose(1, 2).reshape(-1, *styles.SIZE, 2)
        return F.grid_sample(x, grid, align_corners=False)


class ProjectiveVolume(nn.Module):
    """A 4 x 4 projective transformation of a volume; its denominator may be clamped."""

    def __init__(self, least: float | None = None) -> None:
        super().__init__()
        self.loc = styles.Head(16, torch.eye(4).flatten().tolist())
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        volume = x[:, :, None] * torch.linspace(0.5, 1.5, 4)[:, None, None]
        axes = [torch.linspace(-1.0, 1.0, size) for size in VOXELS]
        z, y, x_axis = torch.meshgrid(*axes, indexing="ij")
        points = torch.stack([x_axis, y, z, torch.ones_like(z)]).flatten(1)
        moved = self.loc(x).view(-1, 4, 4) @ points
        w = moved[:, 3:] if self.least is None else moved[:, 3:].clamp(min=self.least)
        grid = (moved[:, :3] / w).transpose(1, 2).reshape(-1, *VOXELS, 3)
        return F.grid_sample(volume, grid, align_corners=True)


class AbsoluteDepth(nn.Module):
    """A denominator whose sign is lost, which is not a clamp."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(9, torch.eye(3).flatten().tolist())

    def forward(self, x: Tensor) -> Tensor:
        points = self.loc(x).view(-1, 3, 3) @ homogeneous()
        grid = points[:, :2] / (points[:, 2:].abs() + 1e-3)
        return F.grid_sample(x, grid.transpose(1, 2).reshape(-1, *styles.SIZE, 2), align_corners=False)
