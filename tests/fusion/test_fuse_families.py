"""The package's layer with every transformation family: fused with the documented K, with correct outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from stn_infer.fusion.fuse import fuse
from stn_infer.fusion.samplers import spatial_nodes
from stn_infer.layers import SpatialTransformer
from stn_infer.metadata import ModelMetadata
from stn_infer.sources.load import LoadedModel
from stn_infer.torch_export.plain import export_plain
from stn_infer.transforms import (
    Affine,
    Attention,
    Camera,
    CoarseLattice,
    CubicBSpline,
    PiecewiseAffine,
    Projective,
    RationalPolynomial,
    Rigid,
    Similarity,
    ThinPlateSpline,
    Transformation,
    Translation,
    plane_points,
)
from stn_infer.verification.model import verify_model


class Warp(nn.Module):
    """A small network around one spatial transformer, with a head that is not at the identity."""

    def __init__(self, transformation: Transformation, shape: tuple[int, ...], **options: object) -> None:
        super().__init__()
        size = int(torch.tensor(shape).prod())
        head = nn.Linear(20, transformation.num_parameters)
        localization = nn.Sequential(nn.Flatten(), nn.Linear(size, 20), nn.ReLU(), head)
        self.transformer = SpatialTransformer(localization, transformation, **options)  # type: ignore[arg-type]
        nn.init.normal_(head.weight, std=0.03)

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(x)


INTRINSICS = torch.tensor([[9.0, 0, 3], [0, 8, 2], [0, 0, 1]])
IMAGE, VOLUME = (2, 10, 13), (1, 4, 5, 6)
CASES = {
    "translation": (Translation(), IMAGE, dict(output_size=(10, 13)), "affine", 3),
    "attention, enlarged": (Attention(), IMAGE, dict(output_size=(17, 21), padding_mode="border"), "affine", 3),
    "attention, fixed scale": (Attention(scale=0.5), IMAGE, dict(output_size=(5, 6)), "affine", 3),
    "affine, corners": (Affine(), IMAGE, dict(output_size=(8, 9), align_corners=True), "affine", 3),
    "affine, mixed conventions": (
        Affine(),
        IMAGE,
        dict(output_size=(8, 9), align_corners=True, grid_align_corners=False, padding_mode="reflection"),
        "affine",
        3,
    ),
    "affine, bicubic": (Affine(), IMAGE, dict(output_size=(8, 9), mode="bicubic"), "affine", 3),
    "affine, nearest": (Affine(), IMAGE, dict(output_size=(8, 9), mode="nearest"), "affine", 3),
    "affine 3-D": (Affine(rank=3), VOLUME, dict(output_size=(4, 5, 6)), "affine", 4),
    "projective 8": (Projective(), IMAGE, dict(output_size=(10, 13)), "projective", 3),
    "projective 9, corners": (
        Projective(num_parameters=9),
        IMAGE,
        dict(output_size=(10, 13), align_corners=True),
        "projective",
        3,
    ),
    "projective 3-D, clamped": (
        Projective(16, 3, 0.97),
        VOLUME,
        dict(output_size=(4, 5, 6), padding_mode="border"),
        "projective",
        4,
    ),
    "rational polynomial": (RationalPolynomial(2), IMAGE, dict(output_size=(10, 13)), "projective", 6),
    "rational polynomial, clamped": (
        RationalPolynomial(2, w_min=0.97),
        IMAGE,
        dict(output_size=(10, 13), align_corners=True),
        "projective",
        6,
    ),
    "camera": (
        Camera(plane_points(INTRINSICS, [1.0, 2.0], (5, 6)), (10, 13), torch.eye(3, 4), 1.0),
        IMAGE,
        dict(output_size=(10, 6)),
        "projective",
        4,
    ),
    "piecewise affine": (PiecewiseAffine((3, 3)), IMAGE, dict(output_size=(10, 13)), "basis", 9),
    "thin plate spline": (ThinPlateSpline((4, 4)), IMAGE, dict(output_size=(10, 13)), "basis", 16),
    "thin plate spline, offsets": (
        ThinPlateSpline((2, 5), offsets=True),
        IMAGE,
        dict(output_size=(10, 13), grid_align_corners=True),
        "basis",
        10,
    ),
    "thin plate spline 3-D": (ThinPlateSpline((2, 2, 2)), VOLUME, dict(output_size=(4, 5, 6)), "basis", 8),
    "rigid": (Rigid(2, (13.0, 10.0)), IMAGE, dict(output_size=(10, 13)), "affine", 3),
    "similarity 3-D": (Similarity(3), VOLUME, dict(output_size=(4, 5, 6)), "affine", 4),
    "coarse lattice": (CoarseLattice((3, 4)), IMAGE, dict(output_size=(10, 13)), "basis", 12),
    "coarse lattice, bicubic offsets": (
        CoarseLattice((3, 4), "bicubic", offsets=True),
        IMAGE,
        dict(output_size=(10, 13), align_corners=True),
        "basis",
        14,  # the points, x and y
    ),
    "b-spline": (CubicBSpline((4, 5), offsets=True), IMAGE, dict(output_size=(10, 13)), "basis", 20),
}


SLOW = {
    "rational polynomial",
    "rational polynomial, clamped",
    "thin plate spline 3-D",
    "rigid",
    "coarse lattice",
    "b-spline",
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES]
)
def test_family(case: str) -> None:
    torch.manual_seed(1)
    transformation, shape, options, kind, rows = CASES[case]
    module = Warp(transformation, shape, **options).eval()
    model, (finding,) = fuse(export_plain(module, [shape]))
    assert finding.fused, finding.message
    assert (finding.kind, finding.basis_rows) == (kind, rows)
    # For a rotation, theta may be taken from the layer that computes it rather than from sine and cosine.
    assert finding.parameters in {transformation.num_features, math.prod(transformation.theta_shape)}
    (node,) = spatial_nodes(model)
    assert node.basis is not None and node.basis.output_size == tuple(options["output_size"])
    assert node.spec.mode == options.get("mode", "bilinear")
    assert node.spec.padding_mode == options.get("padding_mode", "zeros")
    assert node.spec.align_corners == options.get("align_corners", False)
    assert getattr(node.basis, "w_min", None) == (
        None if transformation.w_min is None else pytest.approx(transformation.w_min)
    )
    loaded = LoadedModel(case, module, (shape,), ModelMetadata(), "factory")
    verification = verify_model(loaded, model)
    verification.check(case)
    assert verification.grids[0].mode == node.spec.mode


def test_wrong_values_are_caught() -> None:
    """Verification must detect each of these changes, although the changed file still runs."""
    torch.manual_seed(1)
    module = Warp(Affine(), IMAGE, output_size=(8, 9)).eval()
    loaded = LoadedModel("warp", module, (IMAGE,), ModelMetadata(), "factory")
    model, _ = fuse(export_plain(module, [IMAGE]))
    (node,) = [node for node in model.graph.node if node.op_type == "SpatialTransformer"]
    attributes = {attribute.name: attribute for attribute in node.attribute}
    assert verify_model(loaded, model).passed
    for name, wrong in (("mode", b"nearest"), ("padding_mode", b"border"), ("align_corners", 1)):
        attribute = attributes[name]
        field = "i" if isinstance(wrong, int) else "s"
        right = getattr(attribute, field)
        setattr(attribute, field, wrong)
        assert not verify_model(loaded, model).passed, name
        setattr(attribute, field, right)
    assert verify_model(loaded, model).passed
