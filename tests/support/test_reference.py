"""The reference sampler against PyTorch in float64, against values worked out by hand, and its invariants.

PyTorch's own sample inputs and ONNX's node tests are in ``tests/benchmarks/test_conformance.py``.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.reference import PADDING_MODES, affine_grid, centers, fold, grid_sample, spatial_grid, unnormalize

SHAPES = [(5, 7), (4, 6), (1, 5), (1, 1), (2, 1), (3, 4, 5), (2, 1, 6), (1, 1, 1)]
NO_CUBIC = (3, "bicubic")  # PyTorch has no bicubic sampling of volumes
BOTH = pytest.mark.parametrize("align_corners", [False, True], ids=["centers", "corners"])
EVERY_PADDING = pytest.mark.parametrize("padding_mode", PADDING_MODES)


@BOTH
@EVERY_PADDING
@pytest.mark.parametrize(
    ("size", "mode"),
    [(size, mode) for size in SHAPES for mode in ("nearest", "bilinear", "bicubic") if (len(size), mode) != NO_CUBIC],
)
def test_sampler_is_pytorchs(size: tuple[int, ...], mode: str, padding_mode: str, align_corners: bool) -> None:
    rng = np.random.default_rng(len(size) + size[0])
    image = rng.normal(size=(2, 3, *size))
    grid = rng.uniform(-4, 4, size=(2, *[3, 40, 2][: len(size)], len(size)))
    ours = grid_sample(image, grid, mode, padding_mode, align_corners)
    theirs = F.grid_sample(
        torch.from_numpy(image),
        torch.from_numpy(grid),
        mode=mode,
        padding_mode=padding_mode,
        align_corners=align_corners,
    )
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-12)


@BOTH
@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid behavior has changed:UserWarning")
@pytest.mark.parametrize("size", [(5, 7), (1, 4), (3, 4, 5), (2, 1, 3)], ids=str)
def test_affine_grid_is_pytorchs(size: tuple[int, ...], align_corners: bool) -> None:
    theta = np.random.default_rng(1).normal(size=(2, len(size), len(size) + 1))
    theirs = F.affine_grid(torch.from_numpy(theta), [2, 1, *size], align_corners=align_corners)
    np.testing.assert_allclose(affine_grid(theta, size, align_corners), theirs.numpy(), rtol=0, atol=1e-14)


@BOTH
def test_theta_times_basis_is_the_affine_grid(align_corners: bool) -> None:
    theta = np.random.default_rng(2).normal(size=(3, 2, 3))
    y, x = np.meshgrid(centers(4, align_corners), centers(5, align_corners), indexing="ij")
    basis = np.stack([x.ravel(), y.ravel(), np.ones(20)])
    np.testing.assert_allclose(
        spatial_grid(theta, basis, (4, 5)), affine_grid(theta, (4, 5), align_corners), rtol=0, atol=1e-15
    )


def test_projective_divides_by_w_and_w_zero_samples_outside() -> None:
    theta = np.array([[[1.0, 0, 0], [0, 1, 0], [1, 0, 1]]])  # w = x + 1
    basis = np.array([[-1.0, 0.0, 1.0], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]])
    grid = spatial_grid(theta, basis, (1, 3), projective=True)
    assert grid[0, 0, 1:].tolist() == [[0.0, 0.5], [0.5, 0.25]]
    image = np.ones((1, 1, 4, 4))
    assert grid_sample(image, grid)[0, 0, 0].tolist() == [0.0, 1.0, 1.0]


# ---- by hand -----------------------------------------------------------------------------------------------------


def row(values: list[float], pixels: list[float], mode: str, padding_mode: str) -> list[float]:
    """A one-row image sampled at pixel coordinates, align_corners, as a list."""
    x = np.array(pixels) / (len(values) - 1) * 2 - 1
    grid = np.stack([x, np.zeros_like(x)], axis=-1)[None, None]
    return grid_sample(np.array(values)[None, None, None], grid, mode, padding_mode, True)[0, 0, 0].tolist()


def test_unnormalize_by_hand() -> None:
    corners = np.array([-1.0, 0.0, 1.0])
    assert unnormalize(corners, 5, True).tolist() == [0, 2, 4]
    assert unnormalize(corners, 5, False).tolist() == [-0.5, 2, 4.5]
    assert unnormalize(corners, 1, True).tolist() == [0, 0, 0]


def test_fold_by_hand() -> None:
    at = np.array([-3.0, -1, 0, 2, 3, 4, 5, 7])
    assert fold(at, 0, 3).tolist() == [3, 1, 0, 2, 3, 2, 1, 1]
    assert fold(at, -0.5, 2.5).tolist() == [2, 0, 0, 2, 2, 1, 0, 1]
    assert fold(at, 0, 0).tolist() == [0] * 8


def test_nearest_rounds_half_to_even() -> None:
    assert row([10, 20, 30, 40, 50], [0.5, 1.5, 2.5, 3.5], "nearest", "border") == [10, 30, 30, 50]


def test_linear_fades_to_zero_outside() -> None:
    assert row([10, 20, 30], [-1, -0.5, 0.5, 2.5, 3], "bilinear", "zeros") == [0, 5, 15, 15, 0]
    assert row([10, 20, 30], [-1, -0.5, 2.5, 9], "bilinear", "border") == [10, 10, 30, 30]
    assert row([10, 20, 30], [-1, -0.5, 2.5, 4], "bilinear", "reflection") == [20, 15, 25, 10]


def test_cubic_weights_are_those_of_minus_three_quarters() -> None:
    # Half way: (-0.09375, 0.59375, 0.59375, -0.09375), worked out from Keys' kernel with a = -3/4.
    assert row([0, 1, 0, 0, 0], [1.5, 2.5], "bicubic", "zeros") == [0.59375, -0.09375]


@EVERY_PADDING
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_coordinates_that_are_not_finite_sample_outside(mode: str, padding_mode: str, value: float) -> None:
    image = np.arange(1.0, 13).reshape(1, 1, 3, 4)
    grid = np.array([[[[value, value], [value, 0.0]]]])
    expected = [0, 0] if padding_mode == "zeros" else [1, 5]  # index 0 of the axis that is not finite
    for align_corners in (False, True):
        np.testing.assert_allclose(
            grid_sample(image, grid, mode, padding_mode, align_corners)[0, 0, 0], expected, rtol=0, atol=1e-12
        )


@EVERY_PADDING
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_far_coordinates_stay_defined(mode: str, padding_mode: str) -> None:
    image = np.ones((1, 1, 3, 4))
    far = grid_sample(image, np.array([[[[1e30, -1e30], [-1e18, 1e18]]]]), mode, padding_mode)
    np.testing.assert_allclose(far, 0 if padding_mode == "zeros" else 1, rtol=0, atol=1e-12)


def test_infinity_in_an_image_of_one_pixel() -> None:
    grid = np.full((1, 1, 1, 2), np.inf)
    assert grid_sample(np.ones((1, 1, 1, 1)), grid, padding_mode="border", align_corners=True).item() == 1
    assert grid_sample(np.ones((1, 1, 1, 1)), grid, padding_mode="zeros", align_corners=True).item() == 0


def test_an_empty_batch() -> None:
    assert grid_sample(np.ones((0, 2, 3, 4)), np.ones((0, 5, 6, 2)), "bicubic").shape == (0, 2, 5, 6)


# ---- invariants --------------------------------------------------------------------------------------------------

sizes = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(1, 6)), st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
)
options = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(["nearest", "linear"]),
        "padding_mode": st.sampled_from(PADDING_MODES),
        "align_corners": st.booleans(),
    }
)


def identity(rank: int) -> np.ndarray:
    return np.eye(rank, rank + 1)[None]


@settings(max_examples=60, deadline=None)
@given(size=sizes, options=options)
def test_the_identity_grid_gives_the_input_back(size: tuple[int, ...], options: dict[str, object]) -> None:
    image = np.random.default_rng(0).normal(size=(1, 2, *size))
    grid = affine_grid(identity(len(size)), size, bool(options["align_corners"]))
    np.testing.assert_allclose(grid_sample(image, grid, **options), image, rtol=0, atol=1e-12)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(size=sizes, options=options, axis=st.integers(0, 2))
def test_a_negative_axis_flips(size: tuple[int, ...], options: dict[str, object], axis: int) -> None:
    rank = len(size)
    axis %= rank
    theta = identity(rank)
    theta[0, rank - 1 - axis] *= -1  # (x, y, z) is the reverse of the input's axes
    image = np.random.default_rng(0).normal(size=(1, 2, *size))
    grid = affine_grid(theta, size, bool(options["align_corners"]))
    flipped = grid_sample(image, grid, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(flipped, np.flip(image, 2 + axis), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(2, 7), shift=st.integers(-3, 3), options=options)
def test_a_shift_by_whole_pixels_moves_pixels(width: int, shift: int, options: dict[str, object]) -> None:
    image = np.random.default_rng(0).normal(size=(1, 1, 2, width))
    pixels = width - 1 if options["align_corners"] else width
    theta = identity(2)
    theta[0, 0, 2] = 2 * shift / pixels
    grid = affine_grid(theta, (2, width), bool(options["align_corners"]))
    index = np.arange(width) + shift
    inside = (index >= 0) & (index < width)
    shifted = grid_sample(image, grid, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(shifted[..., inside], image[..., index[inside]], rtol=0, atol=1e-12)
    if options["padding_mode"] == "zeros":
        np.testing.assert_allclose(shifted[..., ~inside], 0, rtol=0, atol=1e-12)
