"""PyTorch modules of the zoo whose grids are sums of products of predicted values, and counterexamples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support import stn_styles as styles


def points() -> Tensor:
    """[1, H, W, 2]."""
    return styles.mesh().permute(1, 2, 0)[None]


class AboutCenter(nn.Module):
    """A rotation and scale about a predicted center, point by point."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(4, [0.3, 1.1, 0.2, -0.1])

    def forward(self, x: Tensor) -> Tensor:
        angle, scale, center = self.loc(x).split([1, 1, 2], 1)
        center = center[:, None, None]
        apart = (points() - center) * scale[:, None, None]
        cos, sin = torch.cos(angle)[:, :, None], torch.sin(angle)[:, :, None]
        turned = torch.stack([cos * apart[..., 0] - sin * apart[..., 1], sin * apart[..., 0] + cos * apart[..., 1]], -1)
        return F.grid_sample(x, turned + center, align_corners=False)


class KeyPoints(nn.Module):
    """Motion about key points, as in first-order motion models: J (x - a) + b for each, and the identity."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.loc, self.count = styles.Head(8 * count, [0.1] * (8 * count)), count

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        jacobian, start, end = self.loc(x).view(count, self.count, 8).split([4, 2, 2], 2)
        apart = points()[:, None] - start[:, :, None, None]
        wide = jacobian.view(count, self.count, 1, 1, 2, 2).repeat(1, 1, *styles.SIZE, 1, 1)
        moved = torch.matmul(wide, apart[..., None])[..., 0] + end[:, :, None, None]
        motions = torch.cat([points()[:, None].repeat(count, 1, 1, 1, 1), moved], 1)
        images = x[:, None].repeat(1, self.count + 1, 1, 1, 1).view(-1, 2, *styles.SIZE)
        warped = F.grid_sample(images, motions.view(-1, *styles.SIZE, 2), align_corners=False)
        return warped.view(count, -1, *styles.SIZE)


class PointByPoint(nn.Module):
    """One affine map after another, applied to the points of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = styles.Head(6, styles.IDENTITY), styles.Head(6, styles.IDENTITY)

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.first(x).view(-1, 2, 3), list(x.size()), align_corners=False)
        theta = self.second(x).view(-1, 1, 1, 2, 3)
        grid = (theta[..., :2] * grid[..., None, :]).sum(-1) + theta[..., 2]
        return F.grid_sample(x, grid, align_corners=False)


class Lens(nn.Module):
    """Radial distortion of a predicted strength about a predicted center."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(3, [0.1, 0.2, -0.1])

    def forward(self, x: Tensor) -> Tensor:
        strength, center = self.loc(x)[:, None, None].split([1, 2], 3)
        apart = points() - center
        grid = center + apart * (1 + strength * apart.pow(2).sum(-1, keepdim=True))
        return F.grid_sample(x, grid, align_corners=False)


class HomographyAboutCenter(nn.Module):
    """A homography of points relative to a predicted center."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(10, [1.0, 0, 0, 0, 1.0, 0, 0.05, -0.05, 0.1, 0.1])

    def forward(self, x: Tensor) -> Tensor:
        values = self.loc(x)
        center = values[:, None, None, 8:]
        apart = points() - center
        h = torch.cat([values[:, :8], torch.ones(x.shape[0], 1)], 1).view(-1, 3, 3)
        flat = torch.cat([apart.flatten(1, 2), torch.ones(x.shape[0], apart[0, ..., 0].numel(), 1)], 2)
        mapped = flat @ h.transpose(1, 2)
        grid = (mapped[..., :2] / mapped[..., 2:]).view(-1, *styles.SIZE, 2)
        return F.grid_sample(x, grid, align_corners=False)


class Masked(nn.Module):
    """A motion times a predicted mask: a dense field."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.mask = styles.Head(6, styles.IDENTITY), nn.Conv2d(2, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(self.loc(x).view(-1, 2, 3), list(x.size()), align_corners=False)
        mask = torch.sigmoid(self.mask(x))[:, 0, ..., None]
        return F.grid_sample(x, points() + mask * (grid - points()), align_corners=False)


class Distance(nn.Module):
    """The distance from a predicted center: a square root of products."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(3, [0.1, 0.2, -0.1])

    def forward(self, x: Tensor) -> Tensor:
        strength, center = self.loc(x)[:, None, None].split([1, 2], 3)
        apart = points() - center
        grid = points() + strength * apart * (apart.pow(2).sum(-1, keepdim=True) + 1e-3).sqrt()
        return F.grid_sample(x, grid, align_corners=False)


class OtherSample(nn.Module):
    """Each sample's grid is multiplied by the next sample's scale, which is one value per sample all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = styles.Head(7, [*styles.IDENTITY, 1.0])

    def forward(self, x: Tensor) -> Tensor:
        values = self.loc(x)
        grid = F.affine_grid(values[:, :6].view(-1, 2, 3), list(x.size()), align_corners=False)
        scale = torch.cat([values[1:, 6:], values[:1, 6:]])
        return F.grid_sample(x, grid * scale[:, None, None], align_corners=False)
