"""SpatialTransformer: sampling, conventions, gradients, precision, and its use in a network."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
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
from tests.support.grids import grid_of

FAMILIES: list[Transformation] = [
    Translation(),
    Attention(),
    Attention(scale=0.7),
    Affine(),
    Projective(8),
    Projective(9),
    Projective(16, 3, 0.5),
    RationalPolynomial(2, w_min=0.9),
    PiecewiseAffine((3, 3)),
    ThinPlateSpline((3, 3)),
    ThinPlateSpline((2, 4), offsets=True),
    Translation(3),
    Attention(3),
    Affine(3),
    Rigid(2, (5.0, 4.0)),
    Similarity(3),
    ThinPlateSpline((2, 2, 2)),
    CoarseLattice((2, 3), "bicubic", offsets=True),
    CoarseLattice((2, 3, 2)),
    CubicBSpline((4, 4), offsets=True),
]
MODES = ["bilinear", "nearest", "bicubic"]
PADDINGS = ["zeros", "border", "reflection"]
seeds = st.integers(0, 2**31)


def name(family: Transformation) -> str:
    return f"{type(family).__name__}{family.num_parameters}"


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def warp(family: Transformation, size: tuple[int, ...], **options: object) -> SpatialTransformer:
    return SpatialTransformer(None, family, size, **options).double()  # type: ignore[arg-type]


def repeated(parameters: Tensor | list[float], batch: int) -> Tensor:
    return torch.as_tensor(parameters, dtype=torch.float64).repeat(batch, 1)


def linear_network(family: Transformation, pixels: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, family.num_parameters))


# ---- sampling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "corners"), list(itertools.product(PADDINGS, [False, True])))
@pytest.mark.parametrize(
    ("family", "mode"),
    [
        *itertools.product([Affine(), Projective(), ThinPlateSpline()], MODES),
        *itertools.product([Affine(3)], MODES[:2]),
    ],
)
def test_identity_does_not_change_the_input(family: Transformation, mode: str, padding: str, corners: bool) -> None:
    size = (4, 5, 6)[: family.rank]
    images = random(0, 2, 3, *size)
    layer = warp(family, size, mode=mode, padding_mode=padding, align_corners=corners)
    torch.testing.assert_close(layer(images, repeated(family.identity(), 2)), images, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("corners", [False, True])
@given(st.integers(-3, 3), st.integers(-3, 3), seeds)
@settings(max_examples=10, deadline=None)
def test_a_shift_by_whole_pixels_is_a_shift(mode: str, corners: bool, right: int, down: int, seed: int) -> None:
    height, width = 6, 8
    images = random(seed, 1, 2, height, width)
    steps = [2 / (length - corners) for length in (width, height)]  # one pixel in normalized coordinates
    shift = torch.tensor([[right * steps[0], down * steps[1]]], dtype=torch.float64)
    shifted = warp(Translation(), (height, width), mode=mode, align_corners=corners)(images, shift)
    wanted = torch.zeros_like(images)
    for row, col in itertools.product(range(height), range(width)):
        if 0 <= row + down < height and 0 <= col + right < width:
            wanted[..., row, col] = images[..., row + down, col + right]
    torch.testing.assert_close(shifted, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("parameters", "axes"), [([-1, 0, 0, 0, 1, 0], [3]), ([1, 0, 0, 0, -1, 0], [2]), ([-1, 0, 0, 0, -1, 0], [2, 3])]
)
@pytest.mark.parametrize(("mode", "corners"), list(itertools.product(MODES, [False, True])))
def test_mirrored_axes_flip_the_image(parameters: list[float], axes: list[int], mode: str, corners: bool) -> None:
    images = random(1, 2, 3, 5, 6)
    flipped = warp(Affine(), (5, 6), mode=mode, align_corners=corners)(images, repeated(parameters, 2))
    torch.testing.assert_close(flipped, images.flip(axes), atol=1e-12, rtol=0)


def test_a_flip_of_depth_flips_a_volume() -> None:
    volumes = random(1, 1, 2, 3, 4, 5)
    parameters = repeated([1, 0, 0, 0, 0, 1, 0, 0, 0, 0, -1, 0], 1)
    torch.testing.assert_close(warp(Affine(3), (3, 4, 5))(volumes, parameters), volumes.flip(2), atol=1e-12, rtol=0)


@given(st.tuples(*[st.integers(-2, 2)] * 4))
@settings(max_examples=15, deadline=None)
def test_whole_pixel_shifts_compose(shifts: tuple[int, int, int, int]) -> None:
    images = torch.zeros(1, 1, 12, 12, dtype=torch.float64)
    images[..., 4:8, 4:8] = random(2, 4, 4)  # far enough from the border to stay in the image
    layer = warp(Translation(), (12, 12))
    first, second = torch.tensor(shifts, dtype=torch.float64).reshape(2, 1, 2) / 6
    torch.testing.assert_close(layer(layer(images, first), second), layer(images, first + second), atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [(3, 4), (9, 16), (1, 1), (1, 7)])
def test_any_output_size_reads_a_linear_ramp_linearly(size: tuple[int, int]) -> None:
    ramp = torch.arange(10, dtype=torch.float64).expand(1, 1, 8, 10)
    layer = warp(Affine(), size, align_corners=True)
    columns = torch.linspace(0, 9, size[1], dtype=torch.float64) if size[1] > 1 else torch.tensor([4.5]).double()
    warped = layer(ramp, repeated(Affine().identity(), 1))
    torch.testing.assert_close(warped, columns.expand(1, 1, *size), atol=1e-12, rtol=0)


@pytest.mark.parametrize("channels", [1, 4, 7])
@pytest.mark.parametrize(("lengths", "corners"), list(itertools.product([(1, 1), (1, 5), (5, 1)], [False, True])))
def test_batches_of_0_and_sizes_of_1_work(channels: int, lengths: tuple[int, int], corners: bool) -> None:
    layer = warp(ThinPlateSpline((2, 3)), lengths, align_corners=corners)
    identity = ThinPlateSpline((2, 3)).identity()
    images = random(3, 2, channels, *lengths)
    torch.testing.assert_close(layer(images, repeated(identity, 2)), images, atol=1e-12, rtol=0)
    assert layer(images[:0], repeated(identity, 0)).shape == (0, channels, *lengths)


# ---- conventions of grid and sampler -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", [Affine(), Projective(), ThinPlateSpline((2, 10))], ids=name)
@pytest.mark.parametrize(
    ("grid_corners", "sampler_corners", "errors"),
    [
        (True, True, (0, 0, 0)),  # torch up to 1.2, stnbhwd, Lasagne
        (False, False, (0, 0, 0)),  # torch from 1.3
        (False, True, (0.495, 0.005, -0.495)),  # DTRB, PaddleOCR
        (True, False, (-0.5, -0.005, 0.5)),  # ASTER and WarBean on torch from 1.3
    ],
)
def test_the_identity_error_of_known_conventions(
    family: Transformation, grid_corners: bool, sampler_corners: bool, errors: tuple[float, float, float]
) -> None:
    width = 100
    layer = warp(family, (8, width), align_corners=sampler_corners, grid_align_corners=grid_corners)
    x = layer.grid(layer.theta(repeated(family.identity(), 1)))[0, 0, :, 0]
    position = (x + 1) / 2 * (width - 1) if sampler_corners else ((x + 1) * width - 1) / 2
    error = (position - torch.arange(width, dtype=torch.float64))[[0, 49, 99]]
    torch.testing.assert_close(error, torch.tensor(errors, dtype=torch.float64), atol=1e-3, rtol=0)
    ramp = torch.arange(width, dtype=torch.float64).expand(1, 1, 8, width)
    sampled = layer(ramp, repeated(family.identity(), 1))[0, 0, 4, 20:80]
    torch.testing.assert_close(sampled, position[20:80], atol=1e-9, rtol=0)


def test_the_grid_has_the_samplers_convention_by_default() -> None:
    assert SpatialTransformer(None, Affine(), (4, 4), align_corners=True).grid_align_corners
    assert not SpatialTransformer(None, Affine(), (4, 4)).grid_align_corners
    assert not SpatialTransformer(
        None, Affine(), (4, 4), align_corners=True, grid_align_corners=False
    ).grid_align_corners


# ---- gradients (paper, eqs. 6 and 7) -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_gradients_of_every_family(family: Transformation) -> None:
    size, out = ((4, 5), (3, 4)) if family.rank == 2 else ((3, 4, 3), (2, 3, 2))
    images = random(4, 2, 2, *size).requires_grad_()
    wobble = 0.1 * random(5, 2, family.num_parameters)
    parameters = (repeated(family.identity(), 2) * 0.83 + wobble).requires_grad_()
    assert torch.autograd.gradcheck(warp(family, out), (images, parameters), atol=1e-6)


@pytest.mark.parametrize(("mode", "padding", "corners"), list(itertools.product(MODES, PADDINGS, [False, True])))
def test_gradients_of_every_sampler(mode: str, padding: str, corners: bool) -> None:
    images = random(6, 1, 2, 4, 5).requires_grad_()
    parameters = repeated([1.13, 0.21, 0.07, -0.17, 1.31, -0.11], 1).requires_grad_()
    layer = warp(Affine(), (3, 4), mode=mode, padding_mode=padding, align_corners=corners)
    assert torch.autograd.gradcheck(layer, (images, parameters), atol=1e-6)


def test_it_learns_the_shift_between_two_images() -> None:
    rows, cols = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    blob = torch.exp(-8 * (rows**2 + cols**2))[None, None]
    moved = blob.roll((2, -3), (2, 3))  # two pixels down, three to the left: the grid reads from up and right
    layer = SpatialTransformer(linear_network(Translation(), 256), Translation(), (16, 16))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(150):
        loss = (layer(blob) - moved).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert layer.localization is not None
    shift = layer.localization(blob)[0]
    torch.testing.assert_close(shift, torch.tensor([0.375, -0.25]), atol=0.01, rtol=0)


# ---- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_double_is_a_true_float64_reference(family: Transformation) -> None:
    size = (5, 7, 3)[: family.rank]
    layer = SpatialTransformer(None, family, size, align_corners=True)
    through_half = layer.half().float().double()
    if isinstance(family, TensorProduct):
        for axis, matrix in enumerate(family.axis_matrices(size, True)):
            assert torch.equal(through_half.get_buffer(f"axis_matrix_{axis}"), matrix)
        assert torch.equal(through_half.parameter_offset, family.offset())
        return
    matrix, offset = family.affine_map(size, True)
    assert torch.equal(through_half.basis, family.basis(size, True))
    assert torch.equal(through_half.parameter_matrix, matrix)
    assert torch.equal(through_half.parameter_offset, offset)


@pytest.mark.parametrize("family", FAMILIES, ids=name)
def test_the_layers_grid_is_theta_times_basis(family: Transformation) -> None:
    size = (5, 7, 3)[: family.rank]
    parameters = family.identity() + 0.1 * random(2, family.num_parameters)
    layer = warp(family, size)
    grid = layer.grid(layer.theta(parameters[None]))[0].reshape(-1, family.rank).T
    torch.testing.assert_close(grid, grid_of(family, parameters, size, False), atol=1e-12, rtol=0)


def test_a_module_without_storage_recomputes_its_constants() -> None:
    layer = SpatialTransformer(None, ThinPlateSpline(), (5, 7))
    basis = layer.basis
    assert torch.equal(layer.to("meta").to_empty(device="cpu").basis, basis)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coordinates_stay_float32_in_a_half_model(dtype: torch.dtype) -> None:
    layer = SpatialTransformer(None, Affine(), (2, 1024)).to(dtype)
    assert layer.basis.dtype == layer.parameter_matrix.dtype == torch.float32
    parameters = Affine().identity().to(dtype)[None]
    x = layer.grid(layer.theta(parameters))[0, 0, :, 0]
    assert x.dtype == torch.float32
    pixels = ((x + 1) * 1024 - 1) / 2
    assert float((pixels - torch.arange(1024)).abs().max()) < 1e-3  # a grid in half precision has errors of 0.25 and 2
    images = random(7, 1, 3, 2, 1024).to(dtype)
    warped = layer(images, parameters)
    assert warped.dtype == dtype
    torch.testing.assert_close(warped, images, atol=2e-3, rtol=0)


def test_autocast_does_not_round_the_coordinates() -> None:
    layer = SpatialTransformer(None, Affine(), (2, 1024))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grid = layer.grid(layer.theta(Affine().identity()[None].bfloat16()))
    assert grid.dtype == torch.float32
    torch.testing.assert_close(grid[0, 0, :, 0], layer.basis[0, :1024], atol=0, rtol=0)


@pytest.mark.parametrize(
    "family", [Affine(), Projective(), ThinPlateSpline((2, 10)), PiecewiseAffine((4, 4))], ids=name
)
def test_float32_grids_are_within_a_thousandth_of_a_pixel(family: Transformation) -> None:
    size = (32, 100)
    parameters = repeated(family.identity(), 4) + 0.1 * random(8, 4, family.num_parameters)
    parameters = parameters.float()
    single, double = SpatialTransformer(None, family, size), warp(family, size)
    difference = single.grid(single.theta(parameters)) - double.grid(double.theta(parameters.double()))
    assert float(difference.abs().max()) * size[1] / 2 < 1e-3


# ---- inside a network --------------------------------------------------------------------------------------------


class Several(nn.Module):
    """Two parallel transformers on one input, a third on the feature maps of both, and a shared localization."""

    def __init__(self) -> None:
        super().__init__()
        self.left = SpatialTransformer(linear_network(Affine(), 2 * 64), Affine(), (6, 6))
        self.right = SpatialTransformer(linear_network(ThinPlateSpline(), 2 * 64), ThinPlateSpline(), (6, 6))
        self.mix = nn.Conv2d(4, 5, 3)
        self.shared = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2 * 2))
        self.crop = SpatialTransformer(None, Attention(scale=0.5), (2, 2))

    def forward(self, images: Tensor) -> Tensor:
        features = self.mix(torch.cat([self.left(images), self.right(images)], dim=1))
        parameters = self.shared(features).chunk(2, dim=1)
        return torch.cat([self.crop(features, each) for each in parameters], dim=1)


def test_several_transformers_in_one_network_train_and_export() -> None:
    torch.manual_seed(0)
    network = Several()
    images = torch.rand(3, 2, 8, 8)
    result = network(images)
    assert result.shape == (3, 10, 2, 2)
    result.square().sum().backward()
    steering = [p for n, p in network.named_parameters() if n.endswith("1.bias") or "shared" in n]
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in steering)
    program = torch.export.export(network.eval(), (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (1, 5):
        other = torch.rand(batch, 2, 8, 8)
        torch.testing.assert_close(program.module()(other), network(other), atol=1e-6, rtol=0)


def test_checkpoints_contain_only_weights_and_copies_are_complete() -> None:
    layer = SpatialTransformer(linear_network(ThinPlateSpline(), 64), ThinPlateSpline(), (8, 8))
    assert sorted(layer.state_dict()) == ["localization.1.bias", "localization.1.weight"]
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(copy.deepcopy(layer)(images), layer(images))
    again = SpatialTransformer(linear_network(ThinPlateSpline(), 64), ThinPlateSpline(), (8, 8))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(images), layer(images))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != Attention(scale=0.7)], ids=name)
def test_identity_initialization(family: Transformation) -> None:
    torch.manual_seed(1)
    size = (3, 4, 5)[: family.rank]
    images = torch.rand(2, 1, *size)
    layer = SpatialTransformer(linear_network(family, images[0].numel()), family, size)
    torch.testing.assert_close(layer(images), images, atol=1e-5, rtol=0)


def test_identity_initialization_is_optional() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Sigmoid())
    before = copy.deepcopy(network.state_dict())
    SpatialTransformer(network, Attention(), (4, 4), identity_init=False)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "linear"}, "mode is one of"),
        ({"padding_mode": "zero"}, "padding_mode is one of"),
        ({"output_size": (4,)}, "output_size of Affine has 2 axes"),
        ({"transformation": Affine(3), "output_size": (4, 4, 4), "mode": "bicubic"}, "images only"),
        ({"localization": nn.Linear(4, 5)}, "ends in a linear layer with bias and 6 outputs"),
        ({"localization": nn.Identity()}, "ends in a linear layer"),
    ],
)
def test_invalid_options_are_rejected_immediately(options: dict[str, object], message: str) -> None:
    arguments = {"localization": None, "transformation": Affine(), "output_size": (4, 4), **options}
    with pytest.raises(UsageError, match=message):
        SpatialTransformer(**arguments)  # type: ignore[arg-type]


def test_invalid_inputs_are_rejected() -> None:
    layer = SpatialTransformer(None, Affine(), (4, 4))
    with pytest.raises(UsageError, match="no localization network"):
        layer(torch.rand(1, 1, 4, 4))
    with pytest.raises(UsageError, match="takes an input of 4 axes, not 5"):
        layer(torch.rand(1, 1, 4, 4, 4), torch.rand(1, 6))
