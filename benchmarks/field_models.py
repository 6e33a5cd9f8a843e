"""Networks whose sampling grids come from a few values by common operators, for ``suites/fields.toml``.

Each is a small localization network and one sampler on [3, 64, 64]: a coarse grid that is enlarged (bilinear, bicubic),
a B-spline deformation by a transposed convolution, a mesh read by fancy indexing, a rotation about a predicted center.
The weights are random and fixed, and the deformations are small.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 64


def identity() -> Tensor:
    """The grid [1, 64, 64, 2] that leaves the image as it is, with ``align_corners=True``."""
    axis = torch.linspace(-1, 1, SIZE)
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)[None]


class Warp(nn.Module):
    """A localization network with ``count`` outputs, a grid from them, and the sampler.

    Args:
        count: the number of predicted values per sample.
        grid: maps the values [N, count] to the grid [N, 64, 64, 2].
        constants: tensors that ``grid`` reads, registered as buffers under these names.
    """

    identity: Tensor

    def __init__(self, count: int, grid: Callable[[Warp, Tensor], Tensor], **constants: Tensor) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.localization = nn.Sequential(
            nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8 * 25, 32), nn.ReLU()
        )
        self.head = nn.Linear(32, count)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("identity", identity())
        for name, values in constants.items():
            self.register_buffer(name, values)
        self._grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Warps images [N, 3, 64, 64]."""
        return F.grid_sample(x, self._grid(self, self.head(self.localization(x))), align_corners=True)


def _enlarged(mode: str) -> Warp:
    def grid(module: Warp, values: Tensor) -> Tensor:
        field = F.interpolate(values.view(-1, 2, 6, 6), (SIZE, SIZE), mode=mode, align_corners=True)
        return module.identity + field.permute(0, 2, 3, 1)

    return Warp(72, grid)


def coarse_bilinear() -> nn.Module:
    """6x6 displacements, enlarged bilinearly."""
    return _enlarged("bilinear")


def coarse_bicubic() -> nn.Module:
    """6x6 displacements, enlarged by cubic interpolation."""
    return _enlarged("bicubic")


def b_spline() -> nn.Module:
    """A cubic B-spline with 7x7 control points, 16 pixels apart, as a transposed convolution."""
    t = torch.arange(-31, 32).abs() / 16
    spline = torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t) ** 3 / 6)

    def grid(module: Warp, values: Tensor) -> Tensor:
        points = values.view(-1, 2, 7, 7)
        kernel = module.get_buffer("kernel")
        field = F.conv_transpose2d(points, kernel, stride=16, padding=31, groups=2)[
            :, :, 16 : 16 + SIZE, 16 : 16 + SIZE
        ]
        return module.identity + field.permute(0, 2, 3, 1)

    return Warp(98, grid, kernel=torch.outer(spline, spline).expand(2, 1, 63, 63).clone())


def mesh() -> nn.Module:
    """25 vertices; each pixel blends the three nearest ones."""
    axis = torch.linspace(-1, 1, 5)
    vertices = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2)
    nearest = torch.cdist(identity().view(-1, 2), vertices).topk(3, largest=False)

    def grid(module: Warp, values: Tensor) -> Tensor:
        corners = values.view(-1, 25, 2)[:, module.get_buffer("corners")]  # [N, P, 3, 2]
        moved = (corners * module.get_buffer("weights")[..., None]).sum(2)
        return module.identity + moved.view(-1, SIZE, SIZE, 2)

    return Warp(50, grid, corners=nearest.indices, weights=(0.1 / (nearest.values + 0.1)).softmax(1))


def about_center() -> nn.Module:
    """A rotation and scale about a predicted center, point by point."""

    def grid(module: Warp, values: Tensor) -> Tensor:
        angle, scale, center = torch.split(values[:, None, None], [1, 1, 2], 3)
        apart = (module.identity - center) * (1 + scale)
        cos, sin = torch.cos(angle), torch.sin(angle)
        x, y = apart[..., :1], apart[..., 1:]
        return torch.cat([cos * x - sin * y, sin * x + cos * y], 3) + center

    return Warp(4, grid)
