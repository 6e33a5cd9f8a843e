"""Quotients over any basis: their definition in float64, their identity, and the layer with a clamped denominator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import Projective, Quotient, RationalPolynomial
from tests.support.grids import grid_of, targets

SIZE = (5, 7)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize(("rank", "count"), [(2, 10), (3, 20)])
def test_rational_polynomials_are_their_formula(rank: int, count: int) -> None:
    family = RationalPolynomial(3, rank)
    assert family.num_basis == count and family.num_parameters == (rank + 1) * count - 1
    size = (3, 4, 5)[-rank:]
    parameters = family.identity() + 0.05 * random(family.num_parameters)
    tops, bottom = parameters[: rank * count].reshape(rank, count), torch.cat([torch.ones(1), parameters[-count + 1 :]])
    powers = [power for power in np.ndindex(*[4] * rank) if sum(power) <= 3]
    powers.sort(key=lambda power: (sum(power), [-p for p in power]))  # by degree, x first
    grid = grid_of(family, parameters, size, True)
    for pixel, place in enumerate(targets(size, True).T):
        terms = torch.stack([(place ** torch.tensor(power)).prod() for power in powers])
        torch.testing.assert_close(grid[:, pixel], tops @ terms / (bottom @ terms))


@pytest.mark.parametrize("corners", [False, True])
def test_a_degree_of_one_is_projective(corners: bool) -> None:
    values = torch.eye(3, dtype=torch.float64) + 0.2 * random(3, 3)
    order = [2, 0, 1]  # 1, x, y
    projective = grid_of(Projective(9), values.flatten(), SIZE, corners)
    rational = (values / values[2, 2])[:, order].flatten()
    rational = torch.cat([rational[:6], rational[7:]])
    torch.testing.assert_close(grid_of(RationalPolynomial(1), rational, SIZE, corners), projective)


@pytest.mark.parametrize("w_min", [None, 0.5, 1.5])
@pytest.mark.parametrize("offset", [(), (0.25, -0.5)])
def test_the_identity_of_given_constants_is_exact_if_they_span_it(
    w_min: float | None, offset: tuple[float, ...]
) -> None:
    values = random(4, 4) @ torch.cat([random(1, 35), targets(SIZE, False), torch.ones(1, 35)])
    family = Quotient(values, SIZE, w_min, offset)
    torch.testing.assert_close(grid_of(family, family.identity(), SIZE, False), targets(SIZE, False))
    assert family.num_parameters == 12


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("size", [SIZE, (3, 4, 5)])
def test_the_layer_clamps_and_moves(size: tuple[int, ...], fused: bool) -> None:
    """Against numpy in float64: a denominator below the bound, zero and NaN."""
    rank, points = len(size), math.prod(size)
    values = random(5, points)
    values[0] = 1
    moves = (0.25, -0.5, 0.125)[:rank]
    family = Quotient(values, size, 0.75, moves)
    theta = 0.7 * random(3, rank + 1, 5)
    theta[1, rank], theta[2, rank, 0] = 0, torch.nan
    layer = SpatialTransformer(None, family, size, align_corners=True, fused=fused)
    grid = layer.double().grid(layer.theta(theta.flatten(1)))
    lines = theta.numpy() @ values.numpy()
    bottom = np.maximum(lines[:, -1:], 0.75)
    assert (bottom[0] == 0.75).any() and (bottom[0] > 0.75).any() and (bottom[1] == 0.75).all()
    expected = (lines[:, :-1] / bottom + np.array(moves)[:, None]).transpose(0, 2, 1).reshape(3, *size, rank)
    np.testing.assert_allclose(grid.numpy(), expected, atol=1e-13)
    images = random(3, 2, *size).float()
    warped = layer.float()(images, theta.flatten(1).float())
    reference = layer.double()(images.double(), theta.flatten(1))
    torch.testing.assert_close(warped[:2], reference[:2].float(), atol=1e-4, rtol=0)
    assert np.isnan(expected[2]).all()
    if fused:  # the kernels read outside of the image there, as onnxruntime does
        assert (warped[2] == 0).all()


def test_a_clamp_changes_the_layers_samples() -> None:
    parameters = torch.tensor([[1.0, 0, 0, 0, 1, 0, 0.9, 0.0]])
    images = torch.rand(1, 1, *SIZE)
    free, clamped = (SpatialTransformer(None, Projective(w_min=least), SIZE) for least in (None, 0.8))
    assert not torch.allclose(free(images, parameters), clamped(images, parameters))


def test_arguments_that_do_not_fit_are_one_line() -> None:
    with pytest.raises(UsageError, match=r"basis of a grid of 5x7 is \[K, 35\], not \[3, 34\]"):
        Quotient(torch.ones(3, 34), SIZE)
    with pytest.raises(UsageError, match=r"\[K, 35\], not \[0, 35\]"):
        Quotient(torch.ones(0, 35), SIZE)
    with pytest.raises(UsageError, match="NaN or infinity"):
        Quotient(torch.full((3, 35), torch.nan), SIZE)
    with pytest.raises(UsageError, match=r"has grids of size \(5, 7\), not \(7, 5\)"):
        SpatialTransformer(None, Quotient(torch.ones(3, 35), SIZE), (7, 5))
    for offset in ((1.0,), (1.0, math.inf)):
        with pytest.raises(UsageError, match="offset of Quotient is 2 finite numbers"):
            Quotient(torch.ones(3, 35), SIZE, offset=offset)
    for w_min in (math.nan, math.inf, "1", True):
        with pytest.raises(UsageError, match="w_min of Quotient is a finite number or None"):
            Quotient(torch.ones(3, 35), SIZE, w_min)  # type: ignore[arg-type]
    for make in (Projective, RationalPolynomial):
        with pytest.raises(UsageError, match="is at most 1, the denominator of the identity, not 2"):
            make(w_min=2.0)
        with pytest.raises(UsageError, match="not 4"):
            make(rank=4)
    for degree in (0, 1.5, True):
        with pytest.raises(UsageError, match="degree of RationalPolynomial is an integer of at least 1"):
            RationalPolynomial(degree)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"is 15 .* or 16, not 9"):
        Projective(9, rank=3)
