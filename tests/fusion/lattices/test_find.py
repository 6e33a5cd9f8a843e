"""Lattices: found by a few probes in whatever form a model computes them, and left alone where they are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.fuse import Finding, fuse
from stn_infer.fusion.samplers import spatial_nodes
from stn_infer.reference.onnx_file import OnnxReference

Floats = NDArray[np.float32]
ROWS, COLS, HEIGHT, WIDTH = 9, 7, 40, 44


def interpolation(count: int, length: int, degree: int = 1) -> NDArray[np.float64]:
    """[length, count]: weights of linear (1) or cubic B-spline (3) interpolation, float32 values."""
    at = np.linspace(0, count - degree, length) if degree == 3 else np.linspace(0, count - 1, length)
    first = np.minimum(np.floor(at), count - degree - 1).astype(int)
    t = at - first
    weights = [1 - t, t]
    if degree == 3:
        weights = [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6]
    matrix = np.zeros((length, count))
    for step, weight in enumerate(weights):
        matrix[np.arange(length), first + step] = weight
    return matrix.astype(np.float32).astype(np.float64)


class Graph:
    """A model: image x [N, C, H, W] and parameters p to a grid, by nodes that are added one after another."""

    def __init__(self, *parameters: int, size: tuple[int, ...] = (HEIGHT, WIDTH)) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.parameters, self.size, self.last = parameters, size, "p"

    def constant(self, values: object, dtype: type = np.float32) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def then(self, op: str, *others: object, first: bool = True, **attributes: object) -> Graph:
        """Adds a node on the last tensor and constants; ``first``: the last tensor is its first input."""
        names = [self.constant(o, np.int64 if isinstance(o, list) else np.float32) for o in others]
        inputs = [self.last, *names] if first else [*names, self.last]
        self.nodes.append(helper.make_node(op, inputs, [f"t{len(self.nodes)}"], **attributes))  # type: ignore[arg-type]
        self.last = self.nodes[-1].output[0]
        return self

    def model(self) -> onnx.ModelProto:
        nodes = [*self.nodes, helper.make_node("GridSample", ["x", self.last], ["y"], align_corners=1, name="warp")]
        info = helper.make_tensor_value_info
        inputs = [
            info("x", TensorProto.FLOAT, ["N", 2, *(12,) * len(self.size)]),
            info("p", TensorProto.FLOAT, ["N", *self.parameters]),
        ]
        output = info("y", TensorProto.FLOAT, ["N", 2, *self.size])
        graph = helper.make_graph(nodes, "g", inputs, [output], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def fused(graph: Graph) -> tuple[onnx.ModelProto, Finding]:
    """The rewritten file, whose values are those of the original."""
    model = graph.model()
    onnx.checker.check_model(model, full_check=True)
    result, (finding,) = fuse(model)
    onnx.checker.check_model(result, full_check=True)
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        image = rng.standard_normal((batch, 2, *(12,) * len(graph.size))).astype(np.float32)
        feeds = {"x": image, "p": rng.uniform(-1, 1, (batch, *graph.parameters)).astype(np.float32)}
        expected = OnnxReference(model).run(list(feeds.values()))[0][0]
        np.testing.assert_allclose(OnnxReference(result).run(list(feeds.values()))[0][0], expected, atol=2e-6)
        np.testing.assert_allclose(OrtBackend(result.SerializeToString()).run(feeds)["y"], expected, atol=2e-4)
    return result, finding


def upsampled(graph: Graph, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> Graph:
    """Appends the products along both axes of [N, C, rows, cols]."""
    return graph.then("MatMul", rows, first=False).then("MatMul", cols.T)


MESH = np.stack(np.meshgrid(np.linspace(-1, 1, WIDTH), np.linspace(-1, 1, HEIGHT)), axis=-1)
LINEAR = interpolation(ROWS, HEIGHT), interpolation(COLS, WIDTH)
SPLINE = interpolation(ROWS, HEIGHT, 3), interpolation(COLS, WIDTH, 3)

FORMS: dict[str, Callable[[], Graph]] = {
    "components first": lambda: upsampled(Graph(2, ROWS, COLS), *LINEAR).then("Transpose", perm=[0, 2, 3, 1]),
    "components last": lambda: upsampled(Graph(ROWS, COLS, 2).then("Transpose", perm=[0, 3, 1, 2]), *SPLINE).then(
        "Transpose", perm=[0, 2, 3, 1]
    ),
    "y before x, in pixels": lambda: (
        upsampled(Graph(2, ROWS, COLS), *SPLINE)
        .then("Gather", [1, 0], axis=1)
        .then("Transpose", perm=[0, 2, 3, 1])
        .then("Mul", np.array([2 / WIDTH, 2 / HEIGHT]))
    ),
    "offsets from the pixels": lambda: (
        upsampled(Graph(2, ROWS, COLS), *LINEAR)
        .then("Transpose", perm=[0, 2, 3, 1])
        .then("Mul", 0.1)
        .then("Add", MESH[None])
    ),
    "columns before rows": lambda: upsampled(Graph(2, COLS, ROWS), LINEAR[1], LINEAR[0]).then(
        "Transpose", perm=[0, 3, 2, 1]
    ),
    "flat": lambda: upsampled(Graph(2 * ROWS * COLS).then("Reshape", [0, 2, ROWS, COLS]), *LINEAR).then(
        "Transpose", perm=[0, 2, 3, 1]
    ),
    "coordinates are mixed": lambda: (
        upsampled(Graph(2, ROWS, COLS), *LINEAR)
        .then("Transpose", perm=[0, 2, 3, 1])
        .then("MatMul", np.array([[0.8, 0.6], [-0.6, 0.8]]))
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_lattice_is_found(form: str) -> None:
    result, finding = fused(FORMS[form]())
    assert (finding.op, finding.kind) == ("TensorProductTransformer", "tensor_product"), finding.message
    assert finding.parameters == 2 * ROWS * COLS
    (node,) = spatial_nodes(result)
    assert node.basis is not None and node.basis.output_size == (HEIGHT, WIDTH)
    original = FORMS[form]().model().ByteSize()
    assert result.ByteSize() < original + 12_000


def test_a_volume_with_three_axes() -> None:
    sizes, points = (10, 12, 14), (4, 5, 6)
    planes, rows, cols = (interpolation(n, length, 3) for n, length in zip(points, sizes, strict=True))
    graph = Graph(3, *points, size=sizes).then("Reshape", [0, 3, 4, 30]).then("MatMul", planes, first=False)
    graph = upsampled(graph.then("Reshape", [0, 3, 10, 5, 6]), rows, cols).then("Transpose", perm=[0, 2, 3, 4, 1])
    _, finding = fused(graph)
    assert finding.message.startswith(
        "fused GridSample into stn::TensorProductTransformer (tensor product, lattice of 4 x 5 x 6, 360 parameters"
    )


def test_a_kronecker_product_that_was_multiplied_out_is_found() -> None:
    """The file becomes smaller."""
    dense = np.kron(LINEAR[0], LINEAR[1])  # [P, K]
    graph = Graph(2, ROWS * COLS).then("MatMul", dense.T).then("Transpose", perm=[0, 2, 1])
    graph.then("Reshape", [0, HEIGHT, WIDTH, 2])
    result, finding = fused(graph)
    assert finding.kind == "tensor_product" and finding.basis_rows == ROWS * COLS
    assert result.ByteSize() < graph.model().ByteSize() / 10


def test_small_lattices_stay_a_basis() -> None:
    graph = upsampled(Graph(2, 2, 3), interpolation(2, HEIGHT), interpolation(3, WIDTH))
    _, finding = fused(graph.then("Transpose", perm=[0, 2, 3, 1]))
    assert (finding.kind, finding.basis_rows) == ("basis", 6)


OTHER_GRIDS: dict[str, Callable[[], Graph]] = {
    "a clamp": lambda: FORMS["components first"]().then("Clip", -0.9, 0.9),
    "nonlinear functions": lambda: (
        upsampled(Graph(2, ROWS, COLS).then("Sigmoid"), *LINEAR).then("Transpose", perm=[0, 2, 3, 1]).then("Tanh")
    ),
    "a constant part that is not a small lattice": lambda: FORMS["components first"]().then(
        "Add", np.random.default_rng(0).standard_normal((1, HEIGHT, WIDTH, 2))
    ),
}


@pytest.mark.parametrize("form", OTHER_GRIDS)
def test_what_is_no_product_is_not_fused(form: str) -> None:
    _, finding = fused(OTHER_GRIDS[form]())
    assert finding.kind != "tensor_product"


def test_an_almost_product_is_not_one() -> None:
    """A dense map that differs from a product in one pixel's weight."""
    dense = np.kron(LINEAR[0], LINEAR[1])
    dense[HEIGHT * WIDTH // 2, 3] += 0.01
    graph = Graph(2, ROWS * COLS).then("MatMul", dense.T).then("Transpose", perm=[0, 2, 1])
    _, finding = fused(graph.then("Reshape", [0, HEIGHT, WIDTH, 2]))
    assert finding.kind != "tensor_product"


def mesh_weights(points: int, pixels: int, taps: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(5)
    index = np.stack([rng.permutation(points)[:taps] for _ in range(pixels)], axis=1)
    return index, rng.dirichlet(np.ones(taps), pixels).T


def test_an_irregular_lattice_becomes_index_and_weight() -> None:
    """A dense basis with three points per pixel, too large for the file: it was computed from a smaller one."""
    points, pixels, taps = 100, HEIGHT * WIDTH, 3
    index, weight = mesh_weights(points, pixels, taps)
    graph = Graph(2, points).then("Gather", index.ravel().tolist(), axis=2).then("Reshape", [0, 2, taps, pixels])
    graph.then("Mul", weight).then("ReduceSum", [2], keepdims=0).then("Transpose", perm=[0, 2, 1])
    result, finding = fused(graph.then("Reshape", [0, HEIGHT, WIDTH, 2]))
    assert finding.op == "LatticeTransformer" and "3 points per pixel" in finding.message, finding.message
    assert result.ByteSize() < graph.model().ByteSize()


@pytest.mark.parametrize("irregular", [False, True])
def test_samplers_at_one_grid_share_theta_and_constants(irregular: bool) -> None:
    """The second sampler adds one node, and no constant."""
    if irregular:
        points, pixels, taps = 100, HEIGHT * WIDTH, 3
        index, weight = mesh_weights(points, pixels, taps)
        graph = Graph(2, points).then("Gather", index.ravel().tolist(), axis=2).then("Reshape", [0, 2, taps, pixels])
        graph.then("Mul", weight).then("ReduceSum", [2], keepdims=0).then("Transpose", perm=[0, 2, 1])
        one = graph.then("Reshape", [0, HEIGHT, WIDTH, 2]).model()
    else:
        one = FORMS["offsets from the pixels"]().model()
    two = onnx.ModelProto.FromString(one.SerializeToString())
    second = helper.make_node("GridSample", ["x", two.graph.node[-1].input[1]], ["z"], align_corners=1, name="again")
    two.graph.node.append(second)
    two.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2, HEIGHT, WIDTH]))
    (single, _), (both, findings) = fuse(one), fuse(two)
    assert [finding.fused for finding in findings] == [True, True]
    assert len(both.graph.node) == len(single.graph.node) + 1
    assert len(both.graph.initializer) == len(single.graph.initializer)


@pytest.mark.slow
def test_no_rewrite_makes_the_file_much_larger() -> None:
    """Each pixel reads one of 32 points: a basis would take 4.7 MB, an index and a weight 0.3 MB."""
    points, side = 32, 192
    index, weight = mesh_weights(points, side * side, 1)
    graph = Graph(2, points, size=(side, side))
    graph.then("Gather", index[0].tolist(), axis=2).then("Mul", weight[0]).then("Transpose", perm=[0, 2, 1])
    original = graph.then("Reshape", [0, side, side, 2]).model()
    model, (finding,) = fuse(original)
    assert finding.op == "LatticeTransformer" and "1 points per pixel" in finding.message, finding.message
    assert model.ByteSize() < original.ByteSize() + 4 * 2**20
