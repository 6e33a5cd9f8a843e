"""Cost of the pass: CPU time on long graphs, memory on large ones."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_infer.fusion.fuse import fuse
from tests.support.zoo_fields import resize

SIZE = 32
MIB = 1 << 20


def model(features: int, parameters: int, grid: int, size: int = SIZE, points: int = 0) -> onnx.ModelProto:
    """A transformer with the given numbers of nodes before theta's linear layer, after the layer, and after the grid.

    ``points``: number of control points of a spline; 0 for an affine map.
    """
    generator = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []

    def constant(name: str, values: object, dtype: type = np.float32) -> str:
        tensors.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def chain(name: str, count: int, prefix: str, ops: tuple[str, ...]) -> str:
        for index in range(count):
            op, output = ops[index % len(ops)], f"{prefix}{index}"
            inputs = [name] if op == "Relu" else [name, constant(f"{output}_k", 0.001 if op == "Add" else 1.0)]
            nodes.append(helper.make_node(op, inputs, [output]))
            name = output
        return name

    count, rows = (2 * points, points) if points else (6, 3)
    centers = (2 * np.arange(size) + 1) / size - 1
    y, x = np.meshgrid(centers, centers, indexing="ij")
    basis = np.stack([x.ravel(), y.ravel(), np.ones(size * size)])
    if points:
        basis = np.exp(-((x.ravel() - generator.uniform(-1, 1, (points, 1))) ** 2 * 9) - (y.ravel() - 0.1) ** 2)
        basis += generator.uniform(-1, 1, (points, size * size)) * 0.1
    nodes.append(helper.make_node("Flatten", [chain("x", features, "f", ("Relu", "Mul"))], ["flat"]))
    constant("w", generator.standard_normal((size * size, count)) * 0.001)
    constant("b", np.resize([1, 0, 0, 0, 1, 0], count))
    nodes.append(helper.make_node("Gemm", ["flat", "w", "b"], ["p"]))
    constant("theta_shape", [-1, 2, rows], np.int64)
    nodes.append(helper.make_node("Reshape", [chain("p", parameters, "q", ("Add", "Mul")), "theta_shape"], ["theta"]))
    nodes.append(helper.make_node("MatMul", ["theta", constant("basis", basis)], ["points"]))
    nodes.append(helper.make_node("Transpose", ["points"], ["turned"], perm=[0, 2, 1]))
    nodes.append(helper.make_node("Reshape", ["turned", constant("shape", [-1, size, size, 2], np.int64)], ["grid"]))
    nodes.append(helper.make_node("GridSample", ["x", chain("grid", grid, "g", ("Add", "Mul"))], ["y"]))
    image = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1, size, size]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "long", image[:1], image[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("features", "parameters", "grid", "seconds"),
    [(90, 0, 0, 2), (0, 90, 0, 2), (0, 0, 90, 2), (5000, 0, 0, 30), (0, 5000, 0, 30), (1000, 1000, 3000, 30)],
)
def test_time(features: int, parameters: int, grid: int, seconds: float) -> None:
    made = model(features, parameters, grid)
    start = time.process_time()
    _, (finding,) = fuse(made)
    assert time.process_time() - start < seconds
    assert finding.fused and finding.parameters == 6


PROGRAM = """
import sys
import onnx, onnxruntime
from stn_infer.fusion.fuse import fuse

def memory(which):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(which))

imports = memory("VmRSS")
model = onnx.load(sys.argv[1])
_, (finding,) = fuse(model)
assert finding.fused, finding.message
print(memory("VmHWM") - imports)
"""


def peak(made: onnx.ModelProto, path: Path) -> int:
    """Peak memory of loading and fusing, without the memory of the imported packages."""
    path.write_bytes(made.SerializeToString())
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_of_a_large_model(tmp_path: Path) -> None:
    """Weights of layers after the warp and of a layer before it."""
    made = model(0, 0, 0)
    weights = np.zeros((SIZE * SIZE, 32 * MIB // (4 * SIZE * SIZE)), np.float32)
    for index in range(3):
        source = "flat" if index == 0 else "warped"
        made.graph.initializer.append(numpy_helper.from_array(weights, f"big{index}"))
        made.graph.node.append(helper.make_node("MatMul", [source, f"big{index}"], [f"z{index}"]))
    made.graph.node.insert(len(made.graph.node) - 2, helper.make_node("Flatten", ["y"], ["warped"]))
    made.graph.output.extend(helper.make_tensor_value_info(f"z{i}", TensorProto.FLOAT, None) for i in range(3))
    size = made.ByteSize()
    assert size > 96 * MIB
    # While the file is read, its bytes and the model are both in memory.
    assert peak(made, tmp_path / "large.onnx") < 2 * size + 200 * MIB


@pytest.mark.parametrize(
    ("size", "points", "beside"),
    [(256, 0, 200), (128, 60, 125), pytest.param(192, 60, 200, marks=pytest.mark.slow)],
)
def test_memory_of_a_large_grid(size: int, points: int, beside: int, tmp_path: Path) -> None:
    made = model(0, 4, 4, size, points)
    assert peak(made, tmp_path / "grid.onnx") < 2 * made.ByteSize() + beside * MIB


def test_a_large_basis_in_place_of_small_constants_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coarse grid of 3x4 points has a basis of 12 rows, and no constants to replace but the mesh."""
    monkeypatch.setattr("stn_infer.fusion.lattices.plan._MAX_MORE_ROWS", 8)
    # It has two smaller forms.
    monkeypatch.setattr("stn_infer.fusion.lattices.plan.Chooser._lattice", lambda self: None)
    monkeypatch.setattr("stn_infer.fusion.lattices.plan.factors_of", lambda basis, size: None)
    coarse = resize("linear", "align_corners")()
    _, (finding,) = fuse(coarse)
    assert not finding.fused and "grid 'grid' is linear, but its basis of 12 rows would take" in finding.message
    monkeypatch.undo()
    _, (finding,) = fuse(coarse)
    assert finding.fused
