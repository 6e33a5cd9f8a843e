"""SpatialTransformer and the stn op in onnxruntime against the reference: every kind, mode, padding and convention."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from benchmarks.op_files import run_op
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import Affine, Projective, ThinPlateSpline, Transformation
from tests.support.reference import PADDING_MODES, grid_sample, spatial_grid

FAMILIES: dict[str, tuple[Transformation, tuple[int, ...], tuple[int, ...]]] = {
    "affine": (Affine(), (7, 9), (6, 11)),
    "affine of volumes": (Affine(rank=3), (4, 5, 6), (3, 6, 5)),
    "projective": (Projective(), (7, 9), (6, 11)),
    "thin plate spline": (ThinPlateSpline((3, 4)), (7, 9), (6, 11)),
}
SAMPLERS = list(itertools.product(("nearest", "bilinear", "bicubic"), PADDING_MODES, (False, True)))
CASES = [
    pytest.param(*family, *sampler, id=f"{name}, {' '.join(map(str, sampler))}")
    for (name, family), sampler in itertools.product(FAMILIES.items(), SAMPLERS)
    if not (family[0].rank == 3 and sampler[0] == "bicubic")
]


@pytest.mark.parametrize(("family", "size", "output_size", "mode", "padding_mode", "align_corners"), CASES)
def test_layer_and_op_equal_the_reference(
    family: Transformation,
    size: tuple[int, ...],
    output_size: tuple[int, ...],
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> None:
    generator = torch.Generator().manual_seed(4)
    image = torch.randn((2, 3, *size), generator=generator, dtype=torch.float64)
    noise = torch.randn((2, family.num_parameters), generator=generator, dtype=torch.float64)
    parameters = 1.3 * family.identity() + 0.1 * noise  # partly outside
    layer = SpatialTransformer(None, family, output_size, mode, padding_mode, align_corners)  # type: ignore[arg-type]
    theta = layer.double().theta(parameters)
    basis = family.basis(output_size, align_corners)
    grid = spatial_grid(theta.numpy(), basis.numpy(), output_size, family.kind == "projective")
    expected = grid_sample(image.numpy(), grid, mode, padding_mode, align_corners)
    # The images are smooth enough for float32: the rounding error of a coordinate is below 1e-5 pixels.
    double = layer(image, parameters).numpy()
    single = layer.float()(image.float(), parameters.float()).numpy()
    op = run_op(
        family.kind, image.numpy(), theta.numpy(), basis.numpy(), output_size, mode, padding_mode, align_corners
    )
    np.testing.assert_allclose(double, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(op, expected, rtol=0, atol=1e-4)
