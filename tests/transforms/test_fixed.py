"""FixedBasis: given constants, used like any other transformation."""

from __future__ import annotations

import pytest
import torch

from stn_infer.errors import UsageError
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import Affine, FixedBasis, ThinPlateSpline, Transformation

SIZE = (5, 7)


def copy_of(family: Transformation, size: tuple[int, ...], corners: bool) -> FixedBasis:
    return FixedBasis(family.basis(size, corners), size, *family.affine_map(size, corners))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("family", [ThinPlateSpline((3, 3), offsets=True), Affine(), Affine(3)])
def test_the_constants_of_a_family_give_its_grids(family: Transformation, corners: bool) -> None:
    size = (4, *SIZE)[-family.rank :]
    own = SpatialTransformer(None, family, size, align_corners=corners)
    given = SpatialTransformer(None, copy_of(family, size, corners), size)
    parameters = family.identity().float() + 0.1 * torch.randn(3, family.num_parameters)
    torch.testing.assert_close(given.grid(given.theta(parameters)), own.grid(own.theta(parameters)))
    assert given.transformation.num_parameters == family.num_parameters


def test_the_identity_is_the_least_squares_solution() -> None:
    family = ThinPlateSpline((3, 4))
    torch.testing.assert_close(copy_of(family, SIZE, False).identity(), family.identity(), atol=1e-9, rtol=0)


def test_parameters_are_theta_without_a_matrix() -> None:
    fixed = FixedBasis(torch.ones(2, 35), SIZE)
    assert fixed.num_parameters == 4
    layer = SpatialTransformer(None, fixed, SIZE)
    assert torch.equal(layer.theta(torch.arange(4.0)[None]), torch.tensor([[[0.0, 1.0], [2.0, 3.0]]]))


def test_constants_are_exact_after_casts() -> None:
    layer = SpatialTransformer(None, copy_of(ThinPlateSpline((3, 3)), SIZE, False), SIZE)
    assert layer.half().basis.dtype == torch.float32
    assert torch.equal(layer.double().basis, ThinPlateSpline((3, 3)).basis(SIZE, False))


def test_inconsistent_constants_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"basis of a grid of 5x7 is \[K, 35\], not \[3, 34\]"):
        FixedBasis(torch.ones(3, 34), SIZE)
    with pytest.raises(UsageError, match=r"theta has 6 values: expected matrix \[6, Q\].* not \[5, 2\] and \[6\]"):
        FixedBasis(torch.ones(3, 35), SIZE, torch.ones(5, 2))
    with pytest.raises(UsageError, match="NaN or infinity"):
        FixedBasis(torch.full((3, 35), torch.nan), SIZE)
    with pytest.raises(UsageError, match=r"has grids of size \(5, 7\), not \(7, 5\)"):
        SpatialTransformer(None, FixedBasis(torch.ones(3, 35), SIZE), (7, 5))
    with pytest.raises(UsageError, match="rank of FixedBasis is 2"):
        FixedBasis(torch.ones(3, 35), (35,))
