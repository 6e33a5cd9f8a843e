"""Models whose grids are lattices of control points, written as the published ones are.

For ``suites/lattices.toml``: an image is reduced to a coarse grid of displacements or positions by a small network,
and warped at the grid that PyTorch's own operators make of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_infer.transforms import CubicBSpline, PiecewiseAffine


class Coarse(nn.Module):
    """A coarse grid, upsampled by ``interpolate`` and added to the identity: document dewarping, registration."""

    mesh: Tensor  # [1, H, W, 2]

    def __init__(self, points: Sequence[int], size: Sequence[int], mode: str) -> None:
        super().__init__()
        self.points, self.size, self.mode = (points[0], points[1]), tuple(size), mode
        self.head = nn.Conv2d(3, 2, 3, padding=1)
        rows, cols = (torch.linspace(-1, 1, length) for length in self.size)
        y, x = torch.meshgrid(rows, cols, indexing="ij")
        self.register_buffer("mesh", torch.stack([x, y], dim=-1)[None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """The warped image."""
        coarse = 0.05 * torch.tanh(self.head(F.adaptive_avg_pool2d(image, self.points)))
        fine = F.interpolate(coarse, self.size, mode=self.mode, align_corners=True)
        return F.grid_sample(image, self.mesh + fine.permute(0, 2, 3, 1), align_corners=True)


class Spline(nn.Module):
    """Free-form deformation by cubic B-splines, as transposed convolutions with a fixed kernel."""

    kernel: Tensor  # [2, 1, 4 s, 4 s]
    mesh: Tensor

    def __init__(self, points: Sequence[int], spacing: int) -> None:
        super().__init__()
        self.points, self.spacing = (points[0], points[1]), spacing
        self.size = tuple((count - 3) * spacing for count in points)
        self.head = nn.Conv2d(3, 2, 3, padding=1)
        weights = CubicBSpline((4, 4)).axis_matrices((spacing, spacing), False)[0].float()  # [s, 4]
        one = weights.flip(1).T.reshape(-1)  # the bump of one point, piece after piece
        self.register_buffer("kernel", torch.outer(one, one).expand(2, 1, -1, -1).contiguous(), persistent=False)
        rows, cols = ((2 * torch.arange(length) + 1) / length - 1 for length in self.size)
        y, x = torch.meshgrid(rows, cols, indexing="ij")
        self.register_buffer("mesh", torch.stack([x, y], dim=-1)[None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """The warped image."""
        moves = 0.05 * torch.tanh(self.head(F.adaptive_avg_pool2d(image, self.points)))
        fine = F.conv_transpose2d(moves, self.kernel, stride=self.spacing, groups=2)
        border = 3 * self.spacing
        fine = fine[:, :, border : border + self.size[0], border : border + self.size[1]]
        return F.grid_sample(image, self.mesh + fine.permute(0, 2, 3, 1), align_corners=False)


class Mesh(nn.Module):
    """A triangle mesh: every pixel is a sum of the three points of its triangle."""

    index: Tensor  # [3 P]
    weight: Tensor  # [3, P]
    positions: Tensor  # [1, 2, K]

    def __init__(self, points: Sequence[int], size: Sequence[int]) -> None:
        super().__init__()
        family = PiecewiseAffine((points[0], points[1]), offsets=True)
        basis = family.basis(size, False)
        order = (basis == 0).to(torch.int8).argsort(dim=0, stable=True)[:3]
        self.size, self.points = tuple(size), (points[0], points[1])
        self.head = nn.Conv2d(3, 2, 3, padding=1)
        self.register_buffer("index", order.reshape(-1), persistent=False)
        self.register_buffer("weight", basis.gather(0, order).float(), persistent=False)
        self.register_buffer("positions", family.target_points().float().T[None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """The warped image."""
        moves = 0.05 * torch.tanh(self.head(F.adaptive_avg_pool2d(image, self.points)))
        points = (self.positions + moves.flatten(2))[:, :, self.index]
        grid = (points.reshape(len(image), 2, 3, -1) * self.weight).sum(2)
        return F.grid_sample(image, grid.transpose(1, 2).reshape(-1, *self.size, 2), align_corners=False)


def bilinear() -> nn.Module:
    """A 45 x 31 lattice to 712 x 488, for [3, 712, 488]."""
    return Coarse((45, 31), (712, 488), "bilinear")


def bicubic() -> nn.Module:
    """The same by bicubic interpolation."""
    return Coarse((45, 31), (712, 488), "bicubic")


def bspline() -> nn.Module:
    """A 19 x 19 lattice, 16 pixels apart, for [3, 256, 256]."""
    return Spline((19, 19), 16)


def mesh() -> nn.Module:
    """A mesh of 9 x 9 points, for [3, 128, 128]."""
    return Mesh((9, 9), (128, 128))
