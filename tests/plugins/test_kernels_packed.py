"""Planar images of many channels, which the SIMD kernels sample from packed windows: against the float64 reference,
and against the kernels for few channels."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stn_infer import plugin
from tests.support import reference
from tests.support.plugin_cases import from_bits, to_bits, warp

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)

PADDING_MODES = ("zeros", "border", "reflection")
# Coordinates of images below 128 pixels have an error of 8e-6 pixels in fp32; neighboring pixels differ by up to 6.
TOLERANCES = {"float32": 5e-5, "float16": 4e-3, "bfloat16": 3e-2}


def smooth(rng: np.random.Generator, batch: int, size: tuple[int, ...], zoom: float = 1.1, noise: float = 0.0) -> Array:
    """Grids [N, *size, D] in float32: pixel centers, rotated a little and moved by waves; ``noise`` is per point."""
    axes = [reference.centers(length, False) for length in size]
    mesh = np.stack(np.meshgrid(*axes, indexing="ij")[::-1], -1)
    turn = np.eye(len(size)) + 0.2 * rng.standard_normal((batch, len(size), len(size)))
    grid = zoom * np.einsum("...d,ned->n...e", mesh, turn)
    grid += 0.05 * np.sin(6 * grid[..., ::-1]) + noise * rng.standard_normal(grid.shape)
    return grid.astype(np.float32)


def few_at_a_time(kind: str, image: Array, *problem: Any, **options: Any) -> Array:
    """The answer of the kernels for few channels."""
    parts = [warp(kind, image[:, c : c + 3], *problem, **options) for c in range(0, image.shape[1], 3)]
    return np.concatenate(parts, 1)


# Several boxes along each axis, with partial ones and partial vectors.
SIZES = {2: ((40, 75), (45, 75)), 3: ((9, 10, 36), (9, 11, 37))}


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("channels", [7, 8, 15, 17, 33])
def test_channels(isa: str, rank: int, channels: int) -> None:
    rng = np.random.default_rng(channels)
    size, output_size = SIZES[rank]
    image = rng.standard_normal((1, channels, *size))
    grid = smooth(rng, 1, output_size)
    modes = ("bilinear", "bicubic") if rank == 2 else ("bilinear",)
    for number, (mode, padding_mode, align_corners) in enumerate(product(modes, PADDING_MODES, (False, True))):
        answer = warp("grid", image, grid, None, output_size, mode, padding_mode, align_corners)
        # A reflected coordinate is rounded once more where its vector is not all inside of the image.
        few = few_at_a_time("grid", image, grid, None, output_size, mode, padding_mode, align_corners)
        np.testing.assert_allclose(answer, few, atol=3e-5)
        if number % 5 == channels % 5:  # the reference is slow
            expected = reference.grid_sample(image, grid, mode, padding_mode, align_corners)
            np.testing.assert_allclose(answer, expected, atol=TOLERANCES["float32"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    size, output_size = SIZES[2]
    image = from_bits(to_bits(rng.standard_normal((1, 18, *size)), dtype), dtype)
    grid = smooth(rng, 1, output_size)
    answer = warp("grid", image, grid, None, output_size, dtype=dtype)
    np.testing.assert_allclose(answer, reference.grid_sample(image, grid), atol=TOLERANCES[dtype])


@pytest.mark.parametrize("kind", ["affine", "basis", "projective", "tensor_product", "lattice"])
def test_every_kind(isa: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    size, output_size = SIZES[2]
    image = rng.standard_normal((2, 20, *size))
    pixels = int(np.prod(output_size))
    mesh = np.stack(np.meshgrid(*[reference.centers(n, False) for n in output_size], indexing="ij")[::-1])
    basis = np.concatenate([mesh.reshape(2, -1), np.ones((1, pixels))])
    theta = (np.eye(2, 3) + 0.1 * rng.standard_normal((2, 2, 3))).astype(np.float32)
    options: dict[str, Any] = {}
    if kind == "projective":
        theta = np.concatenate([theta, [[[0.05, 0.02, 1.0]]] * 2], 1)
    elif kind == "tensor_product":
        matrices = [rng.dirichlet(np.full(4, 0.3), length).astype(np.float32) for length in output_size]
        theta, options = rng.uniform(-1.1, 1.1, (2, 2, 16)).astype(np.float32), {"matrices": matrices}
    elif kind == "lattice":
        theta = rng.uniform(-1.1, 1.1, (2, 2, 9)).astype(np.float32)
        basis = rng.dirichlet(np.ones(3), pixels).T
        options = {"index": rng.integers(0, 9, (3, pixels))}
    problem = (theta, basis if kind in ("basis", "lattice") else None, output_size)
    for mode in ("bilinear", "bicubic"):
        answer = warp(kind, image, *problem, mode, **options, threads=2)
        np.testing.assert_allclose(
            answer, few_at_a_time(kind, image, *problem, mode, **options), atol=1e-4
        )  # points are summed in another order


@pytest.mark.parametrize("rank", [2, 3])
def test_windows_that_are_too_large(isa: str, rank: int) -> None:
    """Grids that read far more pixels than they have, or unrelated ones; and boxes outside of the image."""
    rng = np.random.default_rng(3)
    size, output_size = ((150, 200), (80, 100)) if rank == 2 else ((30, 32, 34), (16, 16, 33))
    image = rng.standard_normal((1, 17, *size))
    for zoom, noise, shift in ((1.0, 0.0, 0.0), (4.0, 0.0, 0.0), (0.9, 0.7, 0.0), (0.5, 0.0, 1.2), (0.2, 0.0, 3.0)):
        grid = smooth(rng, 1, output_size, zoom, noise) + np.float32(shift)
        for padding_mode in PADDING_MODES:
            answer = warp("grid", image, grid, None, output_size, "bilinear", padding_mode)
            few = few_at_a_time("grid", image, grid, None, output_size, "bilinear", padding_mode)
            np.testing.assert_allclose(answer, few, atol=2e-4)  # of 200 pixels
            if shift == 3.0 and padding_mode == "zeros":
                assert (answer == 0).all()


@pytest.mark.parametrize("rank", [2, 3])
def test_adversarial_coordinates(isa: str, rank: int) -> None:
    """NaN, infinities and huge numbers among ordinary coordinates."""
    rng = np.random.default_rng(4)
    size, output_size = SIZES[rank]
    image = rng.standard_normal((1, 16, *size))
    grid = smooth(rng, 1, output_size)
    odd = rng.random(grid.shape) < 0.03
    grid[odd] = rng.choice(np.array([np.nan, np.inf, -np.inf, 1e30, -3e38, 1.0, -1.0], np.float32), odd.sum())
    for mode, padding_mode in product(("bilinear", "bicubic") if rank == 2 else ("bilinear",), ("zeros", "border")):
        answer = warp("grid", image, grid, None, output_size, mode, padding_mode)
        expected = reference.grid_sample(image, grid, mode, padding_mode)
        np.testing.assert_allclose(answer, expected, atol=TOLERANCES["float32"])


def test_pixels_with_nan_and_inf_spoil_only_their_samples(isa: str) -> None:
    rng = np.random.default_rng(5)
    size, output_size = SIZES[2]
    image = rng.standard_normal((1, 19, *size))
    image[0, ::3, 5, 7], image[0, 1::3, -1, -1], image[0, 2, 0, 0] = np.nan, np.inf, -np.inf
    grid = smooth(rng, 1, output_size, 1.3)
    answer = warp("grid", image, grid, None, output_size)
    np.testing.assert_allclose(answer, reference.grid_sample(image, grid), atol=TOLERANCES["float32"])


def test_threads_and_batches_change_nothing(isa: str) -> None:
    rng = np.random.default_rng(6)
    for batch, channels in ((1, 16), (1, 64), (3, 40)):
        image, grid = rng.standard_normal((batch, channels, 50, 70)), smooth(rng, batch, (70, 90))
        alone = warp("grid", image, grid, None, (70, 90))
        np.testing.assert_array_equal(warp("grid", image, grid, None, (70, 90), threads=3), alone)
        last = warp("grid", image[-1:], grid[-1:], None, (70, 90))
        np.testing.assert_array_equal(last, alone[-1:])


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_coordinates_that_float32_cannot_resolve(isa: str, mode: str, padding_mode: str, align_corners: bool) -> None:
    """Millions of pixels outside, neighboring coordinates are pixels apart, and taps may repeat."""
    image = np.random.default_rng(0).standard_normal((1, 17, 8, 8))
    for coordinate in (4194304.5, 4194305.5, -4194304.5, 2097152.25, 2.0**30):
        grid = np.zeros((1, 1, 16, 2), np.float32)
        grid[..., 0] = coordinate
        answer = warp("grid", image, grid, None, (1, 16), mode, padding_mode, align_corners)
        few = few_at_a_time("grid", image, grid, None, (1, 16), mode, padding_mode, align_corners)
        np.testing.assert_allclose(answer, few, atol=3e-5, err_msg=str(coordinate))
