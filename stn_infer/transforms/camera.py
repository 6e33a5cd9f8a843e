"""Cameras: an image is read where fixed points of space project to, such as voxels or the pixels of depth planes.

A pinhole camera is a matrix [3, 4] from homogeneous points of space to homogeneous pixels (Hartley and Zisserman 2004,
section 6.1): intrinsics [3, 3] times rotation and translation [3, 4].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.transforms.base import check_w_min
from stn_infer.transforms.quotient import GeneralQuotient


@dataclass(frozen=True, eq=False)
class Camera(GeneralQuotient):
    """Reads an image at the projections of fixed points of space; parameters are the camera's matrix [3, 4], row-major.

    The matrix maps points to pixels of the image that is read, x first, with 0 at the center of the first pixel. The
    grid has the size (prod(shape[:-1]), shape[-1]), so ``output_size`` of the layer is ``size``, and ``unflatten(2,
    shape[:-1])`` of its output has the points' own axes.

    Attributes:
        points: [3, *shape], x, y and z of each point, kept in float64; see :func:`voxel_centers` and
            :func:`plane_points`.
        image_size: (H, W) of the image that is read.
        initial: [3, 4], the matrix that :meth:`identity` gives: what an untrained network predicts.
        w_min: the least depth, in the matrix' units. A point behind the camera is read as if it had this depth, which
            for a small one is far outside of the image. None: not clamped, and points behind are mirrored.

    Raises:
        UsageError: other shapes, numbers that are not finite, or a w_min that is not positive.
    """

    points: Tensor
    image_size: tuple[int, int]
    initial: Tensor
    w_min: float | None = 1e-3

    def __post_init__(self) -> None:
        points, initial = (value.detach().double() for value in (self.points, self.initial))
        if points.dim() < 2 or len(points) != 3 or not prod(points.shape):
            raise UsageError(f"points of a Camera are [3, ...], x, y and z of each, not {list(points.shape)}")
        if initial.shape != (3, 4):
            raise UsageError(f"the initial matrix of a Camera is [3, 4], not {list(initial.shape)}")
        if not all(bool(value.isfinite().all()) for value in (points, initial)):
            raise UsageError("the points or the initial matrix of a Camera contain NaN or infinity")
        check_w_min(self.w_min, "Camera")
        if self.w_min is not None and self.w_min <= 0:
            raise UsageError(f"w_min of Camera is a depth above zero, or None, not {self.w_min}")
        object.__setattr__(self, "image_size", self.check_output_size(self.image_size, "image_size"))
        object.__setattr__(self, "points", points)
        object.__setattr__(self, "initial", initial)

    @property
    def rank(self) -> int:
        """2: an image is read."""
        return 2

    @property
    def num_basis(self) -> int:
        """K = 4."""
        return 4

    @property
    def num_parameters(self) -> int:
        """Q = 12."""
        return 12

    @property
    def size(self) -> tuple[int, int]:
        """The size of the grid: all axes of the points but the last one, and the last one."""
        *others, last = self.points.shape[1:]
        return prod(others), last

    def affine_map(self, output_size: Sequence[int], grid_align_corners: bool) -> tuple[Tensor, Tensor]:
        """See :meth:`Transformation.affine_map`: the rows of x and y in normalized coordinates but for the offset."""
        scales = [2 / self._length(axis, grid_align_corners) for axis in (1, 0)]
        factors = torch.tensor([*scales, 1.0], dtype=torch.float64).repeat_interleave(4)
        return torch.diag(factors), torch.zeros(12, dtype=torch.float64)

    def division_offset(self, grid_align_corners: bool) -> tuple[float, ...]:
        """The normalized coordinates of pixel 0, (x, y)."""
        return tuple((not grid_align_corners) / self._length(axis, grid_align_corners) - 1 for axis in (1, 0))

    def basis(self, output_size: Sequence[int], grid_align_corners: bool) -> Tensor:
        """x, y, z and 1 of the points, [4, P] float64."""
        self.check_output_size(output_size)
        points = self.points.flatten(1)
        return torch.cat([points, torch.ones_like(points[:1])])

    def identity(self) -> Tensor:
        """``initial``, [12]."""
        return self.initial.flatten()

    def check_output_size(self, output_size: Sequence[int], name: str = "output_size") -> tuple[int, ...]:
        """``output_size`` as a tuple.

        Raises:
            UsageError: it is not ``size``.
        """
        size = super().check_output_size(output_size, name)
        if name == "output_size" and size != self.size:
            raise UsageError(f"output_size of this Camera is {self.size}, the number of its points, not {size}")
        return size

    def _length(self, axis: int, corners: bool) -> int:
        """How many pixels the normalized coordinates from -1 to 1 span."""
        return max(self.image_size[axis] - corners, 1)


def voxel_centers(shape: Sequence[int], low: Sequence[float], high: Sequence[float]) -> Tensor:
    """The centers of the voxels of a box, as ``points`` of a :class:`Camera`.

    Args:
        shape: (D, H, W): the numbers of voxels along z, y and x.
        low, high: (x, y, z): two opposite corners of the box.

    Returns:
        [3, D, H, W] float64.

    Raises:
        UsageError: other lengths of the arguments, a number below 1, or corners that are not finite.
    """
    if len(shape) != 3 or len(low) != 3 or len(high) != 3 or min(shape) < 1:
        raise UsageError(f"expected shape (D, H, W) and two corners (x, y, z), not {shape}, {low} and {high}")
    if not all(map(isfinite, (*low, *high))):
        raise UsageError(f"the corners of a box are finite, not {low} and {high}")
    axes = []
    for count, first, last in zip(shape, reversed(low), reversed(high), strict=True):
        index = torch.arange(count, dtype=torch.float64)
        axes.append(first + (index + 0.5) / count * (last - first))
    return torch.stack(list(reversed(torch.meshgrid(*axes, indexing="ij"))))


def plane_points(intrinsics: Tensor, depths: Sequence[float], size: Sequence[int]) -> Tensor:
    """The points of space that the pixels of a reference image see at given depths, as ``points`` of a :class:`Camera`.

    A layer with them reads another image for a plane sweep: its matrix is the other camera's intrinsics times rotation
    and translation from the reference camera's frame (Collins 1996, "A space-sweep approach to true multi-image
    matching").

    Args:
        intrinsics: [3, 3] of the reference camera, with 0 at the center of the first pixel.
        depths: one per plane, along the reference camera's z axis.
        size: (H, W) of the reference image.

    Returns:
        [3, planes, H, W] float64.

    Raises:
        UsageError: other shapes, no depth, or intrinsics without an inverse.
    """
    matrix = intrinsics.detach().double()
    if matrix.shape != (3, 3) or len(size) != 2 or min(size) < 1 or not len(depths):
        raise UsageError(
            f"expected intrinsics [3, 3], at least one depth and a size (H, W), not {list(matrix.shape)}, "
            f"{len(depths)} depths and {tuple(size)}"
        )
    if not bool(matrix.isfinite().all()) or not float(torch.linalg.det(matrix)):
        raise UsageError("the intrinsics have no inverse")
    rows, columns = (torch.arange(length, dtype=torch.float64) for length in size)
    v, u = torch.meshgrid(rows, columns, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    rays = torch.linalg.solve(matrix, pixels).reshape(3, 1, *size)
    points: Tensor = rays * torch.as_tensor(depths, dtype=torch.float64)[:, None, None]
    return points
