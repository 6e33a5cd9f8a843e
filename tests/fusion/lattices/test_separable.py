"""Bases as products of one function per axis: which have factors, what a file stores, and how it is read back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.basis import canonical_basis
from stn_infer.fusion.fuse import Finding, fuse
from stn_infer.fusion.lattices import cost
from stn_infer.fusion.lattices.separable import factors_of
from stn_infer.fusion.samplers import spatial_nodes
from stn_infer.precision.coordinates import coordinate_nodes

SIZE = (24, 40)


@pytest.mark.parametrize("size", [(5, 7), (1, 9), (3, 4, 5)])
def test_the_rows_of_an_affine_basis_are_exact_products(size: tuple[int, ...]) -> None:
    basis = canonical_basis(size)
    found = factors_of(basis, size)
    assert found is not None and sum(factor.size for factor in found) == len(basis) * sum(size)
    product = found[0]
    for factor in found[1:]:
        product = product * factor
    np.testing.assert_array_equal(product.reshape(basis.shape), basis.astype(np.float32))


def test_products_of_powers_are_and_radii_are_not() -> None:
    x, y, one = canonical_basis(SIZE)
    assert factors_of(np.stack([x * y, x**2, y**3, 0 * one]), SIZE) is not None
    assert factors_of(np.stack([one, x**2 + y**2]), SIZE) is None
    assert factors_of(np.stack([one, x + y]), SIZE) is None


def grid_of(kind: str, size: tuple[int, int] = SIZE) -> onnx.ModelProto:
    """A model whose grid the plain nodes compute from rows that they make of two short axes."""
    height, width = size
    mix = "t = MatMul(p, rows)"
    parts = {
        "affine": (3, 2, f"rows = Concat<axis=0>(x, y, one) {mix}"),
        "homography": (3, 3, f"rows = Concat<axis=0>(x, y, one) {mix}"),
        "clamped": (3, 3, f"rows = Concat<axis=0>(x, y, one) {mix}"),
        "rational": (
            6,
            3,
            f"xx = Mul(x, x) xy = Mul(x, y) yy = Mul(y, y) rows = Concat<axis=0>(x, y, one, xx, xy, yy) {mix}",
        ),
        "polynomial": (5, 2, f"xx = Mul(x, x) xy = Mul(x, y) rows = Concat<axis=0>(x, y, one, xx, xy) {mix}"),
        "radial": (
            6,
            2,
            "xx = Mul(x, x) yy = Mul(y, y) r = Add(xx, yy) r1 = Exp(r) r2 = Sqrt(r) r3 = Mul(r1, r2) "
            f"rows = Concat<axis=0>(x, y, one, r1, r2, r3) {mix}",
        ),
    }
    count, coordinates, text = parts[kind]
    divide = "points = Identity(t)"
    if coordinates == 3:
        least = "Max(w, least)" if kind != "homography" else "Identity(w)"
        divide = f"u = Slice(t, zero, two, axis1) w = Slice(t, two, three, axis1) v = {least} points = Div(u, v)"
    model = parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["" : 18]>
        warp (float[N, 2, 6, 7] image, float[N, {coordinates}, {count}] p) => (float[N, 2, {height}, {width}] output)
        {{
            xs = Expand(column, whole) ys = Expand(row, whole) ones = Expand(unit, whole)
            x = Reshape(xs, flat) y = Reshape(ys, flat) one = Reshape(ones, flat)
            {text} {divide}
            turned = Transpose<perm=[0, 2, 1]>(points) grid = Reshape(turned, shape)
            output = GridSample<align_corners=0, mode="bilinear">(image, grid)
        }}
        """
    )
    centers = [(2 * np.arange(n) + 1) / n - 1 for n in (width, height)]
    constants: dict[str, tuple[object, type]] = {
        "column": (centers[0][None], np.float32),
        "row": (centers[1][:, None], np.float32),
        "unit": ([[1]], np.float32),
        "least": (0.2, np.float32),
        "whole": (size, np.int64),
        "flat": ([1, -1], np.int64),
        "shape": ([-1, height, width, 2], np.int64),
        **{name: ([value], np.int64) for name, value in (("zero", 0), ("two", 2), ("three", 3), ("axis1", 1))},
    }
    used = {name for node in model.graph.node for name in node.input}
    for name, (value, dtype) in constants.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
    return model


def fed(model: onnx.ModelProto, batch: int = 2) -> dict[str, NDArray[np.float32]]:
    """An image and parameters near the identity, whose denominator is near 1."""
    rng = np.random.default_rng(0)
    rows, count = (dim.dim_value for dim in model.graph.input[1].type.tensor_type.shape.dim[1:])
    p = 0.1 * rng.standard_normal((batch, rows, count)) + np.eye(rows, count)
    if rows == 3:
        p[:, 2, :3] += [0, 0, 1]
    image = rng.standard_normal((batch, 2, 6, 7))
    return {"image": image.astype(np.float32), "p": p.astype(np.float32)}


def rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Finding]:
    """The rewritten file, whose results are the original's."""
    result, (finding,) = fuse(model)
    onnx.checker.check_model(result, full_check=True)
    feeds = fed(model)
    expected = OrtBackend(model.SerializeToString()).run(feeds)["output"]
    np.testing.assert_allclose(OrtBackend(result.SerializeToString()).run(feeds)["output"], expected, atol=2e-4)
    return result, finding


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may grow by 3,000 bytes, a quarter of an affine basis."""
    monkeypatch.setattr(cost, "MOST_BYTES", 3_000)
    monkeypatch.setattr("stn_infer.fusion.lattices.plan._MAX_MORE", 2_000)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize(
    ("kind", "op"),
    [
        ("affine", "SpatialTransformer"),
        ("homography", "ProjectiveTransformer"),
        ("clamped", "ProjectiveTransformer"),
        ("rational", "ProjectiveTransformer"),
        ("polynomial", "SpatialTransformer"),
    ],
)
def test_a_file_stores_factors_where_its_basis_is_too_large(kind: str, op: str) -> None:
    model = grid_of(kind)
    result, finding = rewritten(model)
    assert finding.op == op, finding.message
    assert result.ByteSize() < model.ByteSize() + 6_000  # with the function's body
    (node,) = spatial_nodes(result)
    assert (
        node.basis is not None
        and len(node.basis.constants["basis"]) == model.graph.input[1].type.tensor_type.shape.dim[2].dim_value
    )
    names = {result.graph.node[index].output[0] for index in coordinate_nodes(result)}
    basis = next(n for n in result.graph.node if n.op_type == op).input[2]
    assert basis in names  # which reduced precision leaves alone


@pytest.mark.usefixtures("small_files")
def test_a_basis_without_factors_leaves_a_sampler_at_the_grid() -> None:
    model = grid_of("radial")
    result, finding = rewritten(model)
    assert finding.op == "Sampler" and "basis of 6 rows would make the file larger" in finding.message
    assert result.ByteSize() < model.ByteSize() + 6_000


def test_a_small_basis_is_stored_whole() -> None:
    result, finding = rewritten(grid_of("affine"))
    assert finding.fused
    (node,) = (node for node in result.graph.node if node.op_type == "SpatialTransformer")
    assert node.input[2] in {tensor.name for tensor in result.graph.initializer}
