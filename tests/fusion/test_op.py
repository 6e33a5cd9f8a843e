"""The op's node and its function body."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.basis import Kind, canonical_basis
from stn_infer.fusion.op import (
    DOMAIN,
    PROJECTIVE,
    SPATIAL,
    attach_functions,
    is_version_2,
    node_attributes,
    quotient_attributes,
)
from stn_infer.samplers import SamplerSpec
from tests.support.reference import grid_sample


def one_node(
    kind: Kind,
    size: tuple[int, ...] = (5, 7),
    output_size: tuple[int, ...] = (4, 6),
    mode: str = "bilinear",
    opset: int = 18,
    element: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model of one spatial transformer with theta as an input."""
    rank = len(size)
    rows = 3 if kind == "projective" else rank
    basis = canonical_basis(output_size).astype(np.float32)
    node = helper.make_node(
        PROJECTIVE if kind == "projective" else SPATIAL,
        ["image", "values", "basis"],
        ["warped"],
        name="warp",
        domain=DOMAIN,
        **node_attributes(kind, output_size, SamplerSpec(mode), opset),
    )
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info("image", element, ["batch", 3, *size]),
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", rows, len(basis)]),
        ],
        [helper.make_tensor_value_info("warped", element, ["batch", 3, *output_size])],
        [numpy_helper.from_array(basis, "basis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    attach_functions(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("opset", [16, 18, 20, 22])
@pytest.mark.parametrize("kind", ["affine", "projective"])
def test_body_runs_at_every_opset(kind: Kind, opset: int) -> None:
    model = one_node(kind, size=(4, 6), opset=opset)
    rows = 3 if kind == "projective" else 2
    images = np.random.default_rng(0).standard_normal((2, 3, 4, 6)).astype(np.float32)
    identity = np.broadcast_to(np.eye(rows, 3, dtype=np.float32), (2, rows, 3)).copy()
    result = OrtBackend(model.SerializeToString()).run({"image": images, "values": identity})
    np.testing.assert_allclose(result["warped"], images, atol=1e-5)


def test_volumes_and_an_empty_batch() -> None:
    backend = OrtBackend(one_node("affine", size=(3, 4, 5), output_size=(3, 4, 5)).SerializeToString())
    volume = np.random.default_rng(0).standard_normal((2, 3, 3, 4, 5)).astype(np.float32)
    identity = np.broadcast_to(np.eye(3, 4, dtype=np.float32), (2, 3, 4)).copy()
    np.testing.assert_allclose(backend.run({"image": volume, "values": identity})["warped"], volume, atol=1e-5)
    assert backend.run({"image": volume[:0], "values": identity[:0]})["warped"].shape == (0, 3, 3, 4, 5)


def test_half_precision_images_keep_single_precision_grids() -> None:
    """A half-precision grid of 1,024 columns would have an error of a quarter of a pixel."""
    model = one_node("affine", size=(1, 1024), output_size=(1, 1024), element=TensorProto.FLOAT16)
    images = np.tile(np.arange(1024, dtype=np.float16) / 1024, (1, 3, 1, 1))
    theta = np.eye(2, 3, dtype=np.float32)[None]
    warped = OrtBackend(model.SerializeToString()).run({"image": images, "values": theta})["warped"]
    assert warped.dtype == np.float16
    np.testing.assert_allclose(warped.astype(np.float32), images.astype(np.float32), atol=6e-4)


@pytest.mark.parametrize("opset", [16, 18, 22])
@pytest.mark.parametrize(("size", "output_size"), [((5, 7), (4, 6)), ((4, 5, 6), (3, 4, 2))])
def test_version_2_divides_by_a_clamped_row_over_any_basis(
    size: tuple[int, ...], output_size: tuple[int, ...], opset: int
) -> None:
    rank, count = len(size), 5
    generator = np.random.default_rng(3)
    basis = generator.standard_normal((count, prod(output_size))).astype(np.float32)
    theta = generator.standard_normal((2, rank + 1, count)).astype(np.float32)
    theta[1] *= 0.3
    offset = (0.25, -0.5, 0.125)[:rank]
    values = node_attributes("projective", output_size, SamplerSpec(), opset) | quotient_attributes(rank, 0.75, offset)
    node = helper.make_node(PROJECTIVE, ["image", "theta", "basis"], ["warped"], domain=DOMAIN, **values)
    images = generator.standard_normal((2, 3, *size)).astype(np.float32)
    inputs = {"image": images, "theta": theta}
    model = helper.make_model(
        helper.make_graph(
            [node],
            "one",
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, value.shape) for key, value in inputs.items()],
            [helper.make_tensor_value_info("warped", TensorProto.FLOAT, [2, 3, *output_size])],
            [numpy_helper.from_array(basis, "basis")],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    attach_functions(model)
    onnx.checker.check_model(model)
    points = theta.astype(np.float64) @ basis.astype(np.float64)
    below = points[:, rank] < 0.75
    assert below.any() and not below.all()
    grid = points[:, :rank] / np.maximum(points[:, rank:], 0.75) + np.array(offset)[:, None]
    grid = grid.transpose(0, 2, 1).reshape(2, *output_size, rank)
    warped = OrtBackend(model.SerializeToString(), plugin=False).run(inputs)["warped"]
    np.testing.assert_allclose(warped, grid_sample(images, grid), atol=2e-5)


def test_a_file_has_one_version_of_the_projective_transformer() -> None:
    """A node of version 1 beside one of version 2 becomes one of version 2, which divides as before."""
    model = one_node("projective")
    second = helper.make_node(
        PROJECTIVE,
        ["image", "values", "basis"],
        ["again"],
        domain=DOMAIN,
        **node_attributes("projective", (4, 6)) | quotient_attributes(2, 0.5),
    )
    generator = np.random.default_rng(1)
    theta = generator.standard_normal((2, 3, 3)).astype(np.float32)
    inputs = {"image": generator.standard_normal((2, 3, 5, 7)).astype(np.float32), "values": theta}
    before = OrtBackend(model.SerializeToString(), plugin=False).run(inputs)["warped"]
    model.graph.node.append(second)
    model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, ["batch", 3, 4, 6]))
    attach_functions(model)
    assert [is_version_2(node) for node in model.graph.node] == [True, True] and len(model.functions) == 1
    after = OrtBackend(model.SerializeToString(), plugin=False).run(inputs)
    np.testing.assert_allclose(after["warped"], before, atol=1e-6)
    assert np.abs(after["again"] - before).max() > 0.1
