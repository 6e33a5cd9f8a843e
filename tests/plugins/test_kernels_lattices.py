"""The CPU kernels for lattices against their definition in float64, for every instruction set of this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stn_infer import plugin
from stn_infer.fusion.basis import LatticeBasis, TensorProductBasis
from tests.support import reference
from tests.support.plugin_cases import warp

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)


def banded(rng: np.random.Generator, length: int, count: int, width: int) -> Array:
    """[length, count] float32: ``width`` weights around each place, the rest exactly zero; some rows are all zero."""
    matrix = np.zeros((length, count))
    for place in range(length):
        first = min(int(place * count / length), count - min(width, count))
        matrix[place, first : first + width] = rng.dirichlet(np.ones(min(width, count)))
    matrix[rng.random(length) < 0.1] = 0
    return matrix.astype(np.float32)


def grid_of(theta: Array, matrices: list[Array]) -> Array:
    """The grid [N, *out, D] by the definition: one sum over the whole lattice."""
    values = theta.astype(np.float64).reshape(*theta.shape[:2], *(matrix.shape[1] for matrix in matrices))
    letters = ("ax", "by", "cz")[: len(matrices)]
    equation = "nd" + "".join(pair[1] for pair in letters) + "," + ",".join(letters)
    return np.einsum(f"{equation}->n{''.join(pair[0] for pair in letters)}d", values, *matrices)


CASES = [
    ((17, 45), (4, 6), 2),
    ((5, 9), (300, 7), 3),  # more lattice rows than pixels
    ((3, 700), (2, 520), 2),  # more columns than are contracted at a time, more pixels than a vector
    ((1, 1), (1, 1), 1),
    ((90, 100), (9, 9), 9),  # dense matrices, several tiles
    ((6, 7, 37), (3, 4, 5), 2),
    ((40, 1, 3), (6, 1, 2), 6),
    ((4, 20, 33), (3, 4, 5), 4),  # rows of pixels that share lattice rows, plane by plane
]


@pytest.mark.parametrize(("size", "lattice", "width"), CASES)
@pytest.mark.parametrize(
    ("layout", "channels", "dtype"),
    [("planar", 1, "float32"), ("planar", 11, "float32"), ("channels_last", 5, "float16")],
)
def test_tensor_product(
    isa: str, size: tuple[int, ...], lattice: tuple[int, ...], width: int, layout: str, channels: int, dtype: str
) -> None:
    rng = np.random.default_rng(1)
    rank = len(size)
    matrices = [banded(rng, length, count, width) for length, count in zip(size, lattice, strict=True)]
    theta = rng.uniform(-1.2, 1.2, (2, rank, int(np.prod(lattice)))).astype(np.float32)
    image = np.round(rng.standard_normal((2, channels, *(6, 7, 8)[:rank])) * 64) / 64  # exact in float16
    grid = grid_of(theta, matrices)
    answer = warp(
        "tensor_product", image, theta, None, size, "bilinear", "border", True,
        matrices=matrices, dtype=dtype, input_layout=layout, output_layout=layout,
    )  # fmt: skip
    tolerance = 3e-5 if dtype == "float32" else 4e-3
    expected = reference.grid_sample(image, grid, "bilinear", "border", True)
    np.testing.assert_allclose(answer, expected, atol=tolerance, rtol=tolerance)
    planes, rows, columns = [np.ones((1, 1)), *matrices][-3:]
    basis = TensorProductBasis(planes, rows, columns.T, size)
    np.testing.assert_allclose(basis.grid(theta), grid, atol=1e-12)
    fitted = basis.grid(basis.fitted(grid))
    np.testing.assert_allclose(fitted, grid, atol=1e-9)


@pytest.mark.parametrize("size", [(17, 45), (4, 5, 37)])
@pytest.mark.parametrize("taps", [1, 3, 64])
def test_lattice(isa: str, size: tuple[int, ...], taps: int) -> None:
    rng = np.random.default_rng(2)
    rank, points, count = len(size), int(np.prod(size)), 70
    index = rng.integers(0, count, (taps, points)).astype(np.int32)
    weight = rng.dirichlet(np.ones(taps), points).T.astype(np.float32)
    theta = rng.uniform(-1.2, 1.2, (2, rank, count)).astype(np.float32)
    image = rng.standard_normal((2, 3, *(6, 7, 8)[:rank]))
    basis = LatticeBasis(index, weight, size)
    dense = np.zeros((count, points))
    np.add.at(dense, (index, np.arange(points)), weight.astype(np.float64))
    grid = reference.spatial_grid(theta, dense, size)
    np.testing.assert_allclose(basis.grid(theta), grid, atol=1e-12)
    answer = warp("lattice", image, theta, weight, size, "bilinear", "zeros", False, index=index)
    np.testing.assert_allclose(answer, reference.grid_sample(image, grid), atol=3e-5, rtol=3e-5)


def test_an_index_outside_of_the_lattice_reads_its_first_or_last_point(isa: str) -> None:
    theta = np.array([[[-0.5, 0.25, 0.75], [0.1, 0.2, 0.3]]], np.float32)
    image = np.random.default_rng(3).standard_normal((1, 1, 5, 6))
    index = np.array([[-1, -(2**31), 3, 2**31 - 1]], np.int64)
    found, expected = (
        warp("lattice", image, theta, np.ones((1, 4)), (2, 2), index=places.astype(np.int32))
        for places in (index, np.array([[0, 0, 2, 2]]))
    )
    np.testing.assert_array_equal(found, expected)


def test_one_theta_for_the_batch_and_empty_batches(isa: str) -> None:
    rng = np.random.default_rng(4)
    matrices = [banded(rng, 9, 3, 2), banded(rng, 21, 4, 2)]
    theta = rng.uniform(-1, 1, (1, 2, 12)).astype(np.float32)
    image = rng.standard_normal((3, 2, 5, 6))
    shared = warp("tensor_product", image, theta, None, (9, 21), matrices=matrices)
    each = warp("tensor_product", image, theta.repeat(3, 0), None, (9, 21), matrices=matrices)
    np.testing.assert_array_equal(shared, each)
    empty = warp("tensor_product", image[:0], theta[:0], None, (9, 21), matrices=matrices, batch=0)
    assert empty.shape == (0, 2, 9, 21)
