"""The distortions of the paper's digit experiments (its appendix): R, RTS, P and E.

Each is a sampling grid from the canvas back to the digit, built with this package's transformations. All random
numbers come from the given generator, so the same seed gives the same images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi

import numpy as np
import torch
from torch import Generator, Tensor

from stn_infer.data.digits import Digits, split_digits
from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import Affine, Projective, ThinPlateSpline, Transformation

CORNER_SIGMA = 5.0  # standard deviation, in pixels, of the corners' displacement in P
TEST_SEED = 4_000_000_007
ELASTIC_SIGMA = 1.5  # standard deviation, in pixels, of the 16 points' displacement in E


def distort(images: Tensor, kind: str, generator: Generator, canvas: Sequence[int] | None = None) -> Tensor:
    """Distort digits, with one random transformation per image.

    Args:
        images: [N, H, W] uint8, background 0.
        kind: ``R`` (rotation by -90 to 90 degrees), ``RTS`` (rotation by -45 to 45 degrees, scale 0.7 to 1.2, random
            position on the canvas), ``P`` (scale 0.75 to 1, random displacement of the four corners) or ``E`` (scale
            0.75 to 1, random displacement of sixteen thin plate spline points).
        generator: the source of random numbers.
        canvas: (H, W) of the result; None: the size of ``images``.

    Returns:
        [N, *canvas] uint8, rounded.

    Raises:
        UsageError: an unknown kind.
    """
    if kind not in _DRAWS:
        raise UsageError(f"distortion is one of {', '.join(_DRAWS)}, not {kind!r}")
    size = (int(images.shape[1]), int(images.shape[2]))
    canvas = size if canvas is None else (int(canvas[0]), int(canvas[1]))
    transformation, parameters = _DRAWS[kind](len(images), size, (canvas[0], canvas[1]), generator)
    warp = SpatialTransformer(None, transformation, canvas)
    warped: Tensor = warp(images[:, None].float(), parameters)
    return warped[:, 0].round().clamp(0, 255).to(torch.uint8)


def held_out_distorted(kind: str, canvas: Sequence[int] | None = None, copies: int = 10) -> Digits:
    """The test set of all published figures: ``copies`` distortions of each of the 1,000 held-out digits.

    Args:
        kind, canvas: as for :func:`distort`.
        copies: distortions per digit; copy i of digit d is row 1000 i + d. More copies do not change the first rows.

    Returns:
        Images [1000 copies, *canvas] uint8 and their labels.
    """
    held_out = split_digits()[1]
    generator = Generator().manual_seed(TEST_SEED)
    images = torch.from_numpy(held_out.images)
    distorted = [distort(images, kind, generator, canvas).numpy() for _ in range(copies)]
    return Digits(np.concatenate(distorted), np.tile(held_out.labels, copies))


Size = tuple[int, int]
Draw = tuple[Transformation, Tensor]


def _rotation(count: int, size: Size, canvas: Size, generator: Generator) -> Draw:
    angle = _uniform(count, -pi / 2, pi / 2, generator)
    return Affine(), _placed(angle, torch.ones(count), torch.zeros(count, 2), size, canvas)


def _rotation_translation_scale(count: int, size: Size, canvas: Size, generator: Generator) -> Draw:
    angle = _uniform(count, -pi / 4, pi / 4, generator)
    scale = _uniform(count, 0.7, 1.2, generator)
    room = (_pixels(canvas) - scale[:, None] * _pixels(size)).clamp(min=0) / 2  # keeps the digit's square inside
    place = room * torch.stack([_uniform(count, -1, 1, generator) for _ in range(2)], dim=1)
    return Affine(), _placed(angle, scale, place, size, canvas)


def _projective(count: int, size: Size, canvas: Size, generator: Generator) -> Draw:
    scale = _uniform(count, 0.75, 1.0, generator)
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])  # in order around the square
    moves = CORNER_SIGMA * torch.randn(count, 4, 2, generator=generator)
    base = scale[:, None, None] * corners * _pixels(size) / 2  # pixels from the canvas's center
    for _ in range(4):  # the homography to a quadrilateral that is not convex folds: halve the displacement
        moves = torch.where(_convex(base + moves)[:, None, None], moves, moves / 2)
    canvas_corners = (base + moves) / (_pixels(canvas) / 2)
    return Projective(8), _homography(canvas_corners, corners.expand(count, 4, 2))


def _elastic(count: int, size: Size, canvas: Size, generator: Generator) -> Draw:
    scale = _uniform(count, 0.75, 1.0, generator)
    spline = ThinPlateSpline((4, 4))
    moves = ELASTIC_SIGMA * torch.randn(count, 16, 2, generator=generator)
    points = spline.target_points().float() * _pixels(canvas) / 2
    sources = (points / scale[:, None, None] + moves) / (_pixels(size) / 2)
    return spline, sources.flatten(1)


_DRAWS: dict[str, Callable[[int, Size, Size, Generator], Draw]] = {
    "R": _rotation,
    "RTS": _rotation_translation_scale,
    "P": _projective,
    "E": _elastic,
}


def _uniform(count: int, low: float, high: float, generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _pixels(size: Size) -> Tensor:
    return torch.tensor([float(size[1]), float(size[0])])  # (x, y)


def _placed(angle: Tensor, scale: Tensor, place: Tensor, size: Size, canvas: Size) -> Tensor:
    """Affine parameters [N, 6] for a digit rotated and scaled about its center, then moved by ``place`` pixels."""
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    inverse = torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)  # [N, 2, 2], pixels
    linear = inverse * _pixels(canvas) / _pixels(size)[:, None]
    shift = -(inverse @ place[:, :, None]) / (_pixels(size)[:, None] / 2)
    return torch.cat([linear, shift], dim=2).flatten(1)


def _convex(corners: Tensor) -> Tensor:
    edges = corners.roll(-1, 1) - corners  # [N, 4, 2]
    following = edges.roll(-1, 1)
    turns = edges[..., 0] * following[..., 1] - edges[..., 1] * following[..., 0]
    return (turns > 0).all(1)


def _homography(targets: Tensor, sources: Tensor) -> Tensor:
    """Parameters [N, 8] of the homography that maps four target points to their sources, both [N, 4, 2]."""
    x, y = targets.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = []
    for source, plain in (
        (sources[..., 0], (x, y, one, zero, zero, zero)),
        (sources[..., 1], (zero, zero, zero, x, y, one)),
    ):
        rows.append(torch.stack([*plain, -source * x, -source * y], dim=-1))
    system = torch.cat(rows, dim=1).double()  # [N, 8, 8]
    wanted = torch.cat([sources[..., 0], sources[..., 1]], dim=1).double()
    parameters: Tensor = torch.linalg.solve(system, wanted)
    return parameters.float()
