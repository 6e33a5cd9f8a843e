"""Convention presets: their table, and SpatialTransformer with each against a slow reference sampler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stn_infer.conventions import CONVENTIONS, find_convention
from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.models import create
from stn_infer.transforms import (
    Affine,
    Attention,
    CoarseLattice,
    CubicBSpline,
    PiecewiseAffine,
    Projective,
    RationalPolynomial,
    Rigid,
    Similarity,
    TensorProduct,
    ThinPlateSpline,
    Transformation,
    Translation,
)
from tests.support.paths import ROOT

Array = NDArray[np.float64]
SIZE, IMAGE = (5, 8), (7, 6)
# The table of published implementations: identity error in pixels at W = 100, left / middle / right.
TABLE = {
    "torch<=1.2": (0, 0, 0),
    "stnbhwd": (0, 0, 0),
    "lasagne": (0, 0, 0),
    "torch>=1.3": (0, 0, 0),
    "dtrb": (0.495, 0.005, -0.495),
    "paddleocr": (0.495, 0.005, -0.495),
    "aster": (-0.5, -0.005, 0.5),
    "warbean": (-0.5, -0.005, 0.5),
    "kevinzakka": (0, -0.495, -1),
}


def identity_shift(name: str, width: int) -> tuple[float, float, float]:
    """The identity error of the layer: the distance of its grid from each pixel, in the sampler's pixels."""
    layer = SpatialTransformer(None, Affine(), (1, width), "bilinear", "border", convention=name, input_size=(1, width))
    parameters = torch.tensor([[1, 0, 0, 0, 1, 0]], dtype=torch.float64)
    grid = layer.double().grid(layer.theta(parameters))[0, 0, :, 0]
    read = (grid + 1) / 2 * (width - 1) if layer.align_corners else ((grid + 1) * width - 1) / 2
    return tuple(float(read[pixel]) - pixel for pixel in (0, (width - 1) // 2, width - 1))  # type: ignore[return-value]


@pytest.mark.parametrize("name", CONVENTIONS)
def test_identity_errors_are_those_of_the_published_table(name: str) -> None:
    assert CONVENTIONS[name].identity_error(100) == pytest.approx(TABLE[name], abs=5e-4)  # printed with three digits


@pytest.mark.parametrize("width", [2, 3, 100, 1024])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_layer_has_the_identity_error_of_the_preset(name: str, width: int) -> None:
    assert CONVENTIONS[name].identity_error(width) == pytest.approx(identity_shift(name, width), abs=1e-9)


def test_every_implementation_of_the_table_has_a_preset() -> None:
    assert set(CONVENTIONS) == set(TABLE)


# ---- the originals, as loops -------------------------------------------------------------------------------------


def linspace(length: int) -> list[float]:
    return [2 * i / (length - 1) - 1 for i in range(length)]


def centers(length: int) -> list[float]:
    return [(2 * i + 1) / length - 1 for i in range(length)]


def pixel(image: Array, y: int, x: int, padding: str) -> float:
    height, width = image.shape
    if padding == "border":
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    return float(image[y, x]) if 0 <= y < height and 0 <= x < width else 0.0


def bilinear(image: Array, y: float, x: float, padding: str) -> float:
    top, left = math.floor(y), math.floor(x)
    fy, fx = y - top, x - left
    return (
        pixel(image, top, left, padding) * (1 - fy) * (1 - fx)
        + pixel(image, top, left + 1, padding) * (1 - fy) * fx
        + pixel(image, top + 1, left, padding) * fy * (1 - fx)
        + pixel(image, top + 1, left + 1, padding) * fy * fx
    )


def torch7(image: Array, theta: Array) -> Array:
    """stnbhwd: target (y, x, 1) with corners at -1 and 1, the result (y, x), zeros outside pixel by pixel."""
    height, width = image.shape
    out = np.zeros(SIZE)
    for i, y in enumerate(linspace(SIZE[0])):
        for j, x in enumerate(linspace(SIZE[1])):
            source_y, source_x = theta @ np.array([y, x, 1.0])
            out[i, j] = bilinear(image, (source_y + 1) * (height - 1) / 2, (source_x + 1) * (width - 1) / 2, "zeros")
    return out


def lasagne(image: Array, theta: Array) -> Array:
    """Lasagne: corners at -1 and 1, positions clipped to the image, which is border padding."""
    height, width = image.shape
    out = np.zeros(SIZE)
    for i, y in enumerate(linspace(SIZE[0])):
        for j, x in enumerate(linspace(SIZE[1])):
            source_x, source_y = theta @ np.array([x, y, 1.0])
            px = min(max((source_x + 1) / 2 * (width - 1), 0), width - 1)
            py = min(max((source_y + 1) / 2 * (height - 1), 0), height - 1)
            out[i, j] = bilinear(image, py, px, "border")
    return out


def tensorflow_w_minus_2(image: Array, theta: Array) -> tuple[Array, NDArray[np.bool_]]:
    """kevinzakka: scale W - 2, neighbors clipped *before* computing the weights; and where zeros padding fades."""
    height, width = image.shape
    out, fades = np.zeros(SIZE), np.zeros(SIZE, bool)
    for i, y in enumerate(linspace(SIZE[0])):
        for j, x in enumerate(linspace(SIZE[1])):
            source_x, source_y = theta @ np.array([x, y, 1.0])
            px, py = 0.5 * (source_x + 1) * (width - 2), 0.5 * (source_y + 1) * (height - 2)
            x0, y0 = math.floor(px), math.floor(py)
            x0, x1 = (min(max(value, 0), width - 1) for value in (x0, x0 + 1))
            y0, y1 = (min(max(value, 0), height - 1) for value in (y0, y0 + 1))
            out[i, j] = (
                image[y0, x0] * (x1 - px) * (y1 - py)
                + image[y1, x0] * (x1 - px) * (py - y0)
                + image[y0, x1] * (px - x0) * (y1 - py)
                + image[y1, x1] * (px - x0) * (py - y0)
            )
            fades[i, j] = any(
                -1 < position < 0 or last <= position < last + 1
                for position, last in ((px, width - 1), (py, height - 1))
            )
    return out, fades


def random_image(seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(IMAGE)


def random_theta(seed: int, spread: float = 0.4) -> Array:
    return np.array([[1.0, 0, 0], [0, 1, 0]]) + spread * np.random.default_rng(seed).standard_normal((2, 3))


def warped(convention: str, image: Array, theta: Array) -> Array:
    layer = SpatialTransformer(None, Affine(), SIZE, convention=convention, input_size=IMAGE).double()
    output = layer(torch.from_numpy(image)[None, None], torch.from_numpy(theta.reshape(1, 6)))
    return np.asarray(output[0, 0])


@pytest.mark.parametrize("seed", range(4))
def test_stnbhwd(seed: int) -> None:
    image, theta = random_image(seed), random_theta(seed)
    np.testing.assert_allclose(warped("stnbhwd", image, theta), torch7(image, theta), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_lasagne(seed: int) -> None:
    image, theta = random_image(seed), random_theta(seed)
    np.testing.assert_allclose(warped("lasagne", image, theta), lasagne(image, theta), atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_kevinzakka_except_where_zeros_padding_fades(seed: int) -> None:
    image, theta = random_image(seed), random_theta(seed, 0.6)
    expected, fades = tensorflow_w_minus_2(image, theta)
    actual = warped("kevinzakka", image, theta)
    np.testing.assert_allclose(actual[~fades], expected[~fades], atol=1e-12)
    assert CONVENTIONS["kevinzakka"].difference


@pytest.mark.parametrize(("name", "grid", "sampler"), [("torch<=1.2", True, True), ("torch>=1.3", False, False)])
def test_torch(name: str, grid: bool, sampler: bool) -> None:
    image, theta = random_image(0), random_theta(0)
    sampled = F.grid_sample(
        torch.from_numpy(image)[None, None],
        F.affine_grid(torch.from_numpy(theta)[None], [1, 1, *SIZE], align_corners=grid),
        align_corners=sampler,
    )
    np.testing.assert_allclose(warped(name, image, theta), sampled[0, 0].numpy(), atol=1e-12)


@pytest.mark.parametrize(("name", "padding"), [("dtrb", "border"), ("paddleocr", "zeros")])
def test_text_rectifiers_mix_centers_and_corners(name: str, padding: str) -> None:
    image, theta = random_image(1), random_theta(1)
    height, width = IMAGE
    expected = np.zeros(SIZE)
    for i, y in enumerate(centers(SIZE[0])):
        for j, x in enumerate(centers(SIZE[1])):
            source_x, source_y = theta @ np.array([x, y, 1.0])
            expected[i, j] = bilinear(
                image, (source_y + 1) / 2 * (height - 1), (source_x + 1) / 2 * (width - 1), padding
            )
    np.testing.assert_allclose(warped(name, image, theta), expected, atol=1e-12)


@pytest.mark.parametrize("name", ["aster", "warbean"])
def test_text_rectifiers_mix_corners_and_centers(name: str) -> None:
    image, theta = random_image(2), random_theta(2)
    height, width = IMAGE
    expected = np.zeros(SIZE)
    for i, y in enumerate(linspace(SIZE[0])):
        for j, x in enumerate(linspace(SIZE[1])):
            source_x, source_y = theta @ np.array([x, y, 1.0])
            expected[i, j] = bilinear(
                image, ((source_y + 1) * height - 1) / 2, ((source_x + 1) * width - 1) / 2, "zeros"
            )
    np.testing.assert_allclose(warped(name, image, theta), expected, atol=1e-12)


# ---- the order of coordinates, for every family ------------------------------------------------------------------


def mirrored(family: Transformation, parameters: torch.Tensor) -> torch.Tensor:
    """Converts x-first parameters [N, Q] to y-first, for each family."""
    batch = len(parameters)
    if isinstance(family, Affine):
        axes = [*reversed(range(family.rank)), family.rank]
        matrix = parameters.reshape(batch, family.rank, family.rank + 1)
        return matrix[:, axes[:-1]][:, :, axes].reshape(batch, -1)
    if isinstance(family, Projective):
        side = family.rank + 1
        full = torch.cat([parameters, torch.ones(batch, side**2 - family.num_parameters)], dim=1)
        order = [*reversed(range(family.rank)), family.rank]
        full = full.reshape(batch, side, side)[:, order][:, :, order]
        return full.reshape(batch, -1)[:, : family.num_parameters]
    if isinstance(family, RationalPolynomial):  # the monomials keep their order
        *numerators, last = parameters.split(family.num_basis, dim=1)
        return torch.cat([*reversed(numerators), last], dim=1)
    if isinstance(family, Translation):
        return parameters.flip(1)
    if isinstance(family, Attention):
        kept = 1 if family.scale is None else 0
        return torch.cat([parameters[:, :kept], parameters[:, kept:].flip(1)], dim=1)
    if isinstance(family, Rigid | Similarity):  # seen from behind, the angle is negative
        scale, angle, shift = parameters.split([family.num_parameters - 3, 1, 2], dim=1)
        return torch.cat([scale, -angle, shift.flip(1)], dim=1)
    if isinstance(family, TensorProduct):
        return parameters.reshape(batch, family.rank, -1).flip(1).reshape(batch, -1)
    return parameters.reshape(batch, -1, family.rank).flip(2).reshape(batch, -1)


FAMILIES = [
    Translation(),
    Attention(),
    Attention(scale=0.6),
    Affine(),
    Projective(8),
    Projective(9),
    Projective(rank=3, w_min=0.9),
    RationalPolynomial(2, w_min=0.9),
    RationalPolynomial(1, 3),
    PiecewiseAffine((3, 2)),
    ThinPlateSpline((2, 3)),
    ThinPlateSpline((2, 3), offsets=True),
    Translation(3),
    Affine(3),
    Rigid(),
    Similarity(),
    CoarseLattice((3, 2)),
    CoarseLattice((2, 3), "bicubic", offsets=True),
    CubicBSpline((4, 4, 5), offsets=True),
    ThinPlateSpline((2, 3, 2), offsets=True),
]


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{type(family).__name__}{family.num_parameters}")
def test_parameters_with_y_first_give_the_same_grid_as_with_x_first(family: Transformation, corners: bool) -> None:
    size = (3, *SIZE)[-family.rank :]
    generator = torch.Generator().manual_seed(3)
    shape = (2, family.num_parameters)
    parameters = (family.identity() + 0.2 * torch.randn(shape, generator=generator)).float()
    plain = SpatialTransformer(None, family, size, align_corners=corners)
    swapped = SpatialTransformer(None, family, size, align_corners=corners, order="yx")
    expected = plain.grid(plain.theta(parameters))
    torch.testing.assert_close(swapped.grid(swapped.theta(mirrored(family, parameters))), expected)
    assert not torch.allclose(swapped.grid(swapped.theta(parameters)), expected, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{type(family).__name__}{family.num_parameters}")
def test_the_identity_is_the_identity_with_y_first(family: Transformation) -> None:
    size = (3, *SIZE)[-family.rank :]
    head = torch.nn.Linear(1, family.num_parameters)
    layers = [SpatialTransformer(head, family, size, order=order) for order in ("xy", "yx")]  # type: ignore[arg-type]
    grids = [layer.grid(layer.theta(layer._identity()[None].float())) for layer in layers]
    torch.testing.assert_close(grids[1], grids[0])
    torch.testing.assert_close(head.bias.detach(), layers[1]._identity().float())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{type(family).__name__}{family.num_parameters}")
def test_a_sampler_that_stops_short_scales_every_family(family: Transformation) -> None:
    size, source = (3, *SIZE)[-family.rank :], (4, *IMAGE)[-family.rank :]
    parameters = family.identity()[None] + 0.1
    whole = SpatialTransformer(None, family, size, convention="torch<=1.2").double()
    short = SpatialTransformer(None, family, size, convention="kevinzakka", input_size=source).double()
    last = torch.tensor([length - 1 for length in reversed(source)], dtype=torch.float64)
    pixels = (whole.grid(whole.theta(parameters)) + 1) / 2 * (last - 1)
    torch.testing.assert_close((short.grid(short.theta(parameters)) + 1) / 2 * last, pixels)


# ---- selection ---------------------------------------------------------------------------------------------------


def fields(**options: object) -> tuple[bool, bool, str, str]:
    layer = SpatialTransformer(None, Affine(), SIZE, **options)  # type: ignore[arg-type]
    return layer.grid_align_corners, layer.align_corners, layer.padding_mode, layer.order


def test_explicit_fields_override_the_preset() -> None:
    assert fields(convention="aster") == (True, False, "zeros", "xy")
    assert fields(convention="aster", align_corners=True) == (True, True, "zeros", "xy")
    assert fields(convention="aster", grid_align_corners=False) == (False, False, "zeros", "xy")
    assert fields(convention="lasagne", padding_mode="zeros") == (True, True, "zeros", "xy")
    assert fields(convention="stnbhwd", order="xy") == (True, True, "zeros", "xy")


def test_without_a_preset_the_grid_follows_the_sampler() -> None:
    assert fields() == (False, False, "zeros", "xy")
    assert fields(align_corners=True) == (True, True, "zeros", "xy")
    assert fields(align_corners=True, grid_align_corners=False) == (False, True, "zeros", "xy")


def test_networks_take_a_convention_too() -> None:
    transformer = create("st-cnn-affine", convention="kevinzakka").transformer
    assert (transformer.short, transformer.input_size) == (1, (28, 28))
    assert create("st-fcn-tps", convention="dtrb", padding_mode="zeros").transformer.padding_mode == "zeros"


def test_errors_are_one_line() -> None:
    with pytest.raises(UsageError, match="no such convention: 'astre'; did you mean 'aster'"):
        find_convention("astre")
    with pytest.raises(UsageError, match=r"expected one of torch>=1.3, torch<=1.2, dtrb"):
        fields(convention="qqq")
    with pytest.raises(UsageError, match="order is one of xy, yx, not 'zyx'"):
        fields(order="zyx")
    with pytest.raises(UsageError, match="kevinzakka depends on the input's size; give input_size"):
        fields(convention="kevinzakka")
    with pytest.raises(UsageError, match="input_size of Affine has 2 axes"):
        fields(convention="kevinzakka", input_size=(3,))
    with pytest.raises(UsageError, match=r"built for inputs of size \(7, 6\), not \(9, 9\)"):
        layer = SpatialTransformer(None, Affine(), SIZE, convention="kevinzakka", input_size=IMAGE)
        layer(torch.zeros(1, 1, 9, 9), torch.zeros(1, 6))
    with pytest.raises(UsageError, match="defined for widths of at least 2, not"):
        CONVENTIONS["dtrb"].identity_error(1)


def test_the_documented_table_is_current() -> None:
    page = (ROOT / "docs" / "foreign-checkpoints.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `") and line.count("|") == 7}
    assert list(rows) == list(CONVENTIONS)
    for name, convention in CONVENTIONS.items():
        cells = [cell.strip() for cell in rows[name].split("|")[2:-1]]
        places = [
            "corners" if corners else "centers" for corners in (convention.grid_align_corners, convention.align_corners)
        ]
        errors = " / ".join(f"{error:+.3f}" for error in convention.identity_error(100))
        assert cells == [*places, convention.padding_mode, ", ".join(convention.order), errors]
