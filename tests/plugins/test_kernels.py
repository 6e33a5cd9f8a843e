"""The CPU kernels of the plugin library against the float64 reference, for every instruction set of this machine."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stn_infer import plugin
from tests.support import reference
from tests.support.plugin_cases import from_bits, to_bits, warp

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)

PADDING_MODES = ("zeros", "border", "reflection")
# For images below 32 pixels, fp32 coordinates have an error of 2e-6 pixels; neighboring pixels differ by up to 5.
TOLERANCES = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}


def samplers(rank: int) -> list[tuple[str, str, bool]]:
    modes = ("bilinear", "nearest", "bicubic") if rank == 2 else ("bilinear", "nearest")
    return list(product(modes, PADDING_MODES, (False, True)))


def random_case(rng: np.random.Generator, rank: int, batch: int = 2, channels: int = 3) -> tuple[Array, Array, Any]:
    size = (7, 9, 5)[:rank]
    output_size = (5, 11, 6)[:rank]
    return rng.standard_normal((batch, channels, *size)), affine_theta(rng, rank, batch), output_size


def affine_theta(rng: np.random.Generator, rank: int, batch: int) -> Array:
    """Affine maps that extend far outside of the image, in float32."""
    theta = np.concatenate([np.eye(rank), np.zeros((rank, 1))], axis=1)[None]
    return (theta + 0.6 * rng.standard_normal((batch, rank, rank + 1))).astype(np.float32)


def avoid_ties(grid: Array, size: tuple[int, ...], align_corners: bool) -> Array:
    """Move grid points that a nearest sampler could round either way, in fp32, by a hundredth of a pixel."""
    grid = grid.copy()
    for d, length in enumerate(reversed(size)):
        at = reference.unnormalize(grid[..., d], length, align_corners)
        tie = np.abs(at - np.floor(at) - 0.5) < 1e-3
        grid[..., d] += np.where(tie, 0.02 / max(length, 1), 0)
    return grid


def check(answer: Array, expected: Array, dtype: str = "float32") -> None:
    np.testing.assert_allclose(answer, expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("rank", [2, 3])
def test_affine(isa: str, rank: int) -> None:
    rng = np.random.default_rng(1)
    image, theta, output_size = random_case(rng, rank)
    grid = reference.affine_grid(theta, output_size)
    for mode, padding_mode, align_corners in samplers(rank):
        if mode == "nearest":
            continue  # compared on a grid without ties below
        answer = warp("affine", image, theta, None, output_size, mode, padding_mode, align_corners)
        check(answer, reference.grid_sample(image, grid, mode, padding_mode, align_corners))


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("layout", "channels"), [("planar", 1), ("planar", 3), ("channels_last", 1), ("channels_last", 19)]
)
def test_grid(isa: str, rank: int, dtype: str, layout: str, channels: int) -> None:
    rng = np.random.default_rng(2)
    image, theta, output_size = random_case(rng, rank, channels=channels)
    image = from_bits(to_bits(image, dtype), dtype)
    for mode, padding_mode, align_corners in samplers(rank):
        grid = avoid_ties(reference.affine_grid(theta, output_size), image.shape[2:], align_corners)
        grid = grid.astype(np.float32)
        answer = warp(
            "grid", image, grid, None, output_size, mode, padding_mode, align_corners,
            dtype=dtype, input_layout=layout, output_layout=layout, pitch=24 if layout == "channels_last" else 0,
        )  # fmt: skip
        check(answer, reference.grid_sample(image, grid, mode, padding_mode, align_corners), dtype)


@pytest.mark.parametrize("rank", [2, 3])
def test_basis(isa: str, rank: int) -> None:
    rng = np.random.default_rng(3)
    image, _, output_size = random_case(rng, rank)
    basis = rng.standard_normal((7, int(np.prod(output_size)))).astype(np.float32)
    theta = (0.3 * rng.standard_normal((2, rank, 7))).astype(np.float32)
    grid = reference.spatial_grid(theta, basis, output_size)
    for mode, padding_mode, align_corners in samplers(rank):
        if mode != "nearest":
            answer = warp("basis", image, theta, basis, output_size, mode, padding_mode, align_corners)
            check(answer, reference.grid_sample(image, grid, mode, padding_mode, align_corners))


@pytest.mark.parametrize("with_basis", [False, True])
def test_projective(isa: str, with_basis: bool) -> None:
    rng = np.random.default_rng(4)
    image, _, output_size = random_case(rng, 2)
    theta = (np.eye(3)[None] + 0.2 * rng.standard_normal((2, 3, 3))).astype(np.float32)
    axes = [reference.centers(length, False) for length in output_size]
    y, x = np.meshgrid(*axes, indexing="ij")
    basis = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    grid = reference.spatial_grid(theta, basis, output_size, projective=True)
    answer = warp("projective", image, theta, basis if with_basis else None, output_size)
    near = np.abs(grid).max(axis=-1)[:, None] < 5  # near w = 0, fp32 and float64 sample different pixels
    expected = reference.grid_sample(image, grid)
    check(np.where(near, answer, 0), np.where(near, expected, 0))


def test_projective_horizon_samples_outside(isa: str) -> None:
    """w = 0 gives inf and NaN, which sample outside: 0 with zeros, the first pixel with border."""
    image = np.arange(1.0, 10).reshape(1, 1, 3, 3)
    theta = np.zeros((1, 3, 3), np.float32)
    theta[0, 0, 2] = 1.0  # x / 0 = inf, 0 / 0 = NaN
    assert (warp("projective", image, theta, None, (2, 2)) == 0).all()
    assert (warp("projective", image, theta, None, (2, 2), padding_mode="border") == 1).all()
    assert (warp("projective", image, theta, None, (2, 2), "bicubic", "reflection") == 1).all()


@pytest.mark.parametrize("rank", [2, 3])
def test_adversarial_coordinates(isa: str, rank: int) -> None:
    """NaN, infinities, huge numbers, exact ties and exact borders."""
    rng = np.random.default_rng(5)
    size = (4, 8, 2)[:rank]
    image = rng.standard_normal((1, 2, *size))
    for mode, padding_mode, align_corners in samplers(rank):
        edges = [-1.0, 1.0, 0.0, np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38]
        if padding_mode == "reflection":  # the reflection of 1e30 depends on rounding
            edges = [edge for edge in edges if not np.isfinite(edge) or abs(edge) < 1e5]
        for length in size:  # every half pixel; exactly representable, as the sizes are powers of two
            halves = np.arange(-4, 2 * length + 4) / 2
            edges += list((2 * halves + 1) / length - 1) if not align_corners else []
        points = rng.choice(np.array(edges), size=(1, 40, 25, rank)).astype(np.float32)
        out = (40, 25)
        if rank == 3:
            points, out = points.reshape(1, 10, 4, 25, 3), (10, 4, 25)
        answer = warp("grid", image, points, None, out, mode, padding_mode, align_corners)
        check(answer, reference.grid_sample(image, points, mode, padding_mode, align_corners))


def test_huge_coordinates_with_reflection_stay_inside(isa: str) -> None:
    image = np.random.default_rng(6).uniform(1, 2, (1, 1, 5, 6))
    points = np.array([1e7, 1e20, 1e30, 3e38, -1e9, -3e38], np.float32)
    grid = np.stack(np.meshgrid(points, points), -1)[None]
    for mode, align_corners in product(("bilinear", "nearest"), (False, True)):
        answer = warp("grid", image, grid, None, (6, 6), mode, "reflection", align_corners)
        assert (answer >= 0.999).all() and (answer <= 2.001).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_sizes_of_one(isa: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    image = rng.standard_normal((2, 2, *size))
    grid = rng.uniform(-3, 3, (2, 3, 7, 2)).astype(np.float32)
    for mode, padding_mode, align_corners in samplers(2):
        points = avoid_ties(grid.astype(np.float64), size, align_corners).astype(np.float32)
        expected = reference.grid_sample(image, points, mode, padding_mode, align_corners)
        check(warp("grid", image, points, None, (3, 7), mode, padding_mode, align_corners), expected)
    theta = affine_theta(rng, 2, 2)
    expected = reference.grid_sample(image, reference.affine_grid(theta, (1, 1)))
    check(warp("affine", image, theta, None, (1, 1)), expected)


@pytest.mark.parametrize("width", [1, 2, 3, 7, 15, 16, 17, 33])
def test_every_width_of_row(isa: str, width: int) -> None:
    """Vectors span rows of the output: each lane must use its own row."""
    rng = np.random.default_rng(8)
    image, theta = rng.standard_normal((1, 1, 6, 6)), affine_theta(rng, 2, 1)
    for height in (1, 2, 40):
        expected = reference.grid_sample(image, reference.affine_grid(theta, (height, width)))
        check(warp("affine", image, theta, None, (height, width)), expected)
    volume, theta = rng.standard_normal((1, 1, 4, 4, 4)), affine_theta(rng, 3, 1)
    expected = reference.grid_sample(volume, reference.affine_grid(theta, (5, 3, width)))
    check(warp("affine", volume, theta, None, (5, 3, width)), expected)


def test_empty(isa: str) -> None:
    theta = np.zeros((0, 2, 3), np.float32)
    assert warp("affine", np.zeros((0, 3, 4, 4)), theta, None, (5, 5)).shape == (0, 3, 5, 5)
    theta = np.zeros((2, 2, 3), np.float32)
    assert warp("affine", np.zeros((2, 0, 4, 4)), theta, None, (5, 5)).shape == (2, 0, 5, 5)
    assert warp("affine", np.zeros((2, 3, 4, 4)), theta, None, (0, 5)).shape == (2, 3, 0, 5)


def test_broadcast(isa: str) -> None:
    """One theta for a batch of images, and many thetas for one image."""
    rng = np.random.default_rng(9)
    image, theta, output_size = random_case(rng, 2, batch=3)
    one = warp("affine", image, theta[:1], None, output_size)
    check(one, reference.grid_sample(image, reference.affine_grid(theta[:1].repeat(3, 0), output_size)))
    many = warp("affine", image[:1], theta, None, output_size)
    check(many, reference.grid_sample(image[:1].repeat(3, 0), reference.affine_grid(theta, output_size)))


@pytest.mark.parametrize(("before", "after"), [("planar", "channels_last"), ("channels_last", "planar")])
def test_layouts_may_differ(isa: str, before: str, after: str) -> None:
    rng = np.random.default_rng(10)
    image, theta, output_size = random_case(rng, 2)
    expected = warp("affine", image, theta, None, output_size)
    answer = warp("affine", image, theta, None, output_size, input_layout=before, output_layout=after)
    check(answer, expected)


@pytest.mark.parametrize("grid_dtype", ["float16", "bfloat16"])
def test_half_grids(isa: str, grid_dtype: str) -> None:
    """A grid in half precision is read without conversion, and computed in fp32."""
    rng = np.random.default_rng(11)
    image = rng.standard_normal((1, 2, 6, 7))
    grid = from_bits(to_bits(rng.uniform(-1.2, 1.2, (1, 4, 5, 2)), grid_dtype), grid_dtype)
    check(warp("grid", image, grid, None, (4, 5), grid_dtype=grid_dtype), reference.grid_sample(image, grid))


def test_an_image_with_inf_and_nan_spoils_only_its_neighbors(isa: str) -> None:
    """Pixels outside of the image are never read, so a NaN at the border does not propagate through a zero weight."""
    image = np.ones((1, 1, 4, 4))
    image[0, 0, 0, 0], image[0, 0, 3, 3] = np.nan, np.inf
    x = np.array([-2.0, -1.5, 1.5, 2.0])
    grid = np.stack(np.meshgrid(x, x), -1)[None].astype(np.float32)
    for mode in ("bilinear", "nearest", "bicubic"):
        answer = warp("grid", image, grid, None, (4, 4), mode)
        if mode != "bicubic":
            assert (answer == 0).all()
        np.testing.assert_array_equal(answer, reference.grid_sample(image, grid, mode))


def test_half_rounding_is_to_nearest_even(isa: str) -> None:
    """Every finite half-precision value is unchanged by an identity warp, and midpoints round to even."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    for dtype in ("float16", "bfloat16"):
        with np.errstate(invalid="ignore"):  # some of the bits are signalling NaNs
            values = from_bits(bits.view(np.float16) if dtype == "float16" else bits, dtype)
        values = values[np.isfinite(values)]
        grid = np.zeros((1, 1, 1, 2), np.float32)
        answer = warp("grid", values.reshape(1, -1, 1, 1), grid, None, (1, 1), dtype=dtype).ravel()
        np.testing.assert_array_equal(answer, values)
        # Half way between two neighbors, by sampling between two pixels.
        pairs = np.stack([values[:-1], values[1:]], -1).astype(np.float32)
        pairs = pairs[np.abs(pairs).max(-1) < 6e4]
        middle = np.zeros((1, 1, 1, 2), np.float32)
        answer = warp("grid", pairs.reshape(1, -1, 1, 2), middle, None, (1, 1), dtype=dtype).ravel()
        exact = (pairs[:, 0].astype(np.float64) + pairs[:, 1]) / 2
        np.testing.assert_array_equal(answer, from_bits(to_bits(exact.astype(np.float32), dtype), dtype))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), threads=st.integers(1, 4))
def test_threads_change_nothing(seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    batch, channels = int(rng.integers(1, 40)), int(rng.integers(1, 70))
    image = rng.standard_normal((batch, channels, 12, 13)).astype(np.float32)
    theta = affine_theta(rng, 2, batch)
    alone = warp("affine", image, theta, None, (17, 19))
    np.testing.assert_array_equal(warp("affine", image, theta, None, (17, 19), threads=threads), alone)


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 20), width=st.integers(1, 20), dy=st.integers(-25, 25), dx=st.integers(-25, 25)
)  # fmt: skip
def test_whole_pixel_shifts_are_exact(height: int, width: int, dy: int, dx: int) -> None:
    """A translation by whole pixels copies pixels, with zeros outside of the image."""
    image = np.random.default_rng(height * width).standard_normal((1, 1, height, width)).astype(np.float32)
    theta = np.array([[[1, 0, 2 * dx / width], [0, 1, 2 * dy / height]]], np.float32)
    answer = warp("affine", image, theta, None, (height, width))
    expected = np.zeros_like(image)
    for y, x in product(range(height), range(width)):
        if 0 <= y + dy < height and 0 <= x + dx < width:
            expected[0, 0, y, x] = image[0, 0, y + dy, x + dx]
    np.testing.assert_allclose(answer, expected, atol=5e-5)


@pytest.mark.parametrize("flip", [(-1, 1), (1, -1), (-1, -1)])
def test_flips(flip: tuple[int, int]) -> None:
    image = np.random.default_rng(12).standard_normal((1, 2, 8, 16)).astype(np.float32)
    theta = np.array([[[flip[0], 0, 0], [0, flip[1], 0]]], np.float32)
    expected = image[:, :, :: flip[1], :: flip[0]]
    np.testing.assert_allclose(warp("affine", image, theta, None, (8, 16)), expected, atol=1e-5)


@pytest.mark.slow
def test_more_than_2_to_the_31_bytes() -> None:
    """Offsets are 64-bit: an image and an output of more than 2^31 bytes each, checked at their far ends."""
    height, width = 47_000, 47_000  # 4.4 GB in fp16
    image = np.zeros((1, 1, height, width), np.float16)
    image[0, 0, -1] = np.arange(width) % 1024
    output = np.zeros((1, 1, height, width), np.float16)
    theta = np.array([[[1, 0, 0], [0, 1, 0]]], np.float32)
    problem = plugin.Problem(
        rank=2, dtype=1, batch=1, channels=1, input_size=(height, width, 0), output_size=(height, width, 0),
        mode=1, basis_rows=3, theta_batch=1, input_batch=1, input=image.ctypes.data, theta=theta.ctypes.data,
        output=output.ctypes.data,
    )  # fmt: skip
    plugin.run_cpu(problem)
    np.testing.assert_array_equal(output[0, 0, -1], image[0, 0, -1])
    assert not output[0, 0, -2].any()
