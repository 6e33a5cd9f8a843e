"""Random programs that compute quotients: fused if the denominator is linear or clamped from below, else unchanged.

The programs are those of ``test_fuse_random``, for numerators and denominator. Bounds are chosen so that the clamps are
active at part of the points. ``QUOTIENT_PROGRAMS`` sets how many are drawn, for a long run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from stn_infer import plugin
from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.fuse import fuse
from stn_infer.fusion.samplers import spatial_nodes
from tests.fusion.test_fuse_random import PARAMETERS, Program, described, random_numbers, step
from tests.support.onnx_files import behind, check_only_samplers_changed

COUNT = int(os.environ.get("QUOTIENT_PROGRAMS", "8"))
RUNS = settings(max_examples=COUNT, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
IMAGES, OUTPUTS = {2: (6, 5), 3: (4, 5, 6)}, {2: (7, 8), 3: (3, 4, 5)}
BATCHES = (1, 4)


@dataclass
class Quotient:
    """A program under construction: numerators [N, P, D] and a denominator [N, P, 1], float32 tensors by name."""

    program: Program
    rank: int
    numerators: str = ""
    denominator: str = ""
    varying: bool = True
    least: float | None = None
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def points(self) -> int:
        return int(np.prod(OUTPUTS[self.rank]))

    def model(self, grid: str) -> onnx.ModelProto:
        shape = [-1, *OUTPUTS[self.rank], self.rank]
        placed = self.program.node("Reshape", [grid, self.program.constant(np.array(shape))], ())
        sampler = helper.make_node("GridSample", ["image", placed], ["output"], mode="linear", padding_mode="border")
        return self._model([*self.program.nodes, sampler], "output", ["N", 1, *OUTPUTS[self.rank]])

    def _model(self, nodes: list[onnx.NodeProto], output: str, shape: list[object]) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, *IMAGES[self.rank]]),
            helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", PARAMETERS]),
        ]
        result = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
        for node in nodes:  # the steps spell the mode as before opset 20
            for attribute in node.attribute:
                if attribute.s == b"bilinear":
                    attribute.s = b"linear"
        graph = helper.make_graph(nodes, "random", inputs, [result], self.program.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def measured(self, name: str) -> np.ndarray:
        """The values of a tensor at the inputs that outputs are compared at."""
        model = self._model(self.program.nodes, name, ["N", self.points, None])
        return np.concatenate([run(model, feeds(self.rank, batch), False).ravel() for batch in BATCHES])


def feeds(rank: int, batch: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(batch)
    return {
        "image": generator.standard_normal((batch, 1, *IMAGES[rank])).astype(np.float32),
        "p": generator.uniform(-1, 1, (batch, PARAMETERS)).astype(np.float32),
    }


def run(model: onnx.ModelProto, inputs: dict[str, np.ndarray], library: bool | None) -> np.ndarray:
    if library is not False:
        return OrtBackend(model.SerializeToString(), threads=1, plugin=library).run(inputs)["output"]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, inputs)
    return np.asarray(answer)


def spread(draw: st.DrawFn, program: Program, name: str, points: int, rows: int) -> str:
    """[N, P, rows], linear in a tensor, by a matrix product over a random basis."""
    size = int(np.prod(program.shapes[name]))
    flat = program.node("Reshape", [name, program.constant(np.array([0, size]))], (size,))
    weights = program.constant(random_numbers(draw, size, points * rows) / size)
    values = program.node("MatMul", [flat, weights], (points * rows,))
    return program.node("Reshape", [values, program.constant(np.array([-1, points, rows]))], (points, rows))


@st.composite
def quotients(draw: st.DrawFn) -> Quotient:
    """Numerators and a denominator whose values at the compared inputs are known."""
    made = Quotient(Program(), draw(st.sampled_from((2, 3))))
    program, ends = made.program, []
    for _ in range(2):
        name = "p"
        for _ in range(draw(st.integers(0, 5))):
            latest = step(draw, program, name)
            name = draw(st.sampled_from([latest, latest, *program.shapes]))
        ends.append(name)
    made.numerators = spread(draw, program, ends[0], made.points, made.rank)
    made.denominator = spread(draw, program, ends[1], made.points, 1)
    made.values = made.measured(made.denominator)
    made.varying = "p" in behind(made.model(made.numerators), made.denominator)
    return made


def clamped(draw: st.DrawFn, made: Quotient) -> str:
    """The denominator far from zero, or clamped from below at one of its values in one of several ways."""
    program, values = made.program, made.values
    how = draw(st.sampled_from(("none", "clip", "max", "max, bound first", "relu", "clip, scaled", "clip, moved")))
    far = program.constant(np.float32(0.5 + 1.5 * np.abs(values).max()))
    positive = program.node("Add", [made.denominator, far], (made.points, 1))
    if how == "none":
        return positive
    moved = values + 0.5 + 1.5 * np.abs(values).max()
    least = np.float32(np.quantile(moved, draw(st.sampled_from((0.1, 0.5, 0.9)))))
    made.least = float(least)
    bound, shape = program.constant(least), (made.points, 1)
    if how == "relu":
        above = program.node("Relu", [program.node("Sub", [positive, bound], shape)], shape)
        return program.node("Add", [bound, above], shape)
    if how.startswith("max"):
        return program.node("Max", [bound, positive] if "first" in how else [positive, bound], shape)
    kept = program.node("Clip", [positive, bound], shape)
    if how == "clip, scaled":
        made.least = None  # the scale moves between numerators and denominator
        return program.node("Mul", [kept, program.constant(np.float32(draw(st.sampled_from((0.5, 3.0)))))], shape)
    if how == "clip, moved":
        made.least += 0.25
        return program.node("Add", [kept, program.constant(np.float32(0.25))], shape)
    return kept


def after(draw: st.DrawFn, made: Quotient, divided: str) -> str:
    """Scales, moves, exchanges or negates coordinates after the division."""
    program, shape = made.program, (made.points, made.rank)
    for _ in range(draw(st.integers(0, 2))):
        how = draw(st.sampled_from(("scale", "move", "exchange", "negate")))
        if how == "exchange":
            order = program.constant(np.array(draw(st.permutations(range(made.rank)))))
            divided = program.node("Gather", [divided, order], shape, axis=2)
        elif how == "negate":
            divided = program.node("Neg", [divided], shape)
        else:
            numbers = program.constant(random_numbers(draw, made.rank) + 1.0)
            divided = program.node("Mul" if how == "scale" else "Add", [divided, numbers], shape)
    return divided


@given(quotients(), st.data())
@RUNS
def test_quotients_are_fused_with_their_clamp_and_offset(made: Quotient, data: st.DataObject) -> None:
    shape = (made.points, made.rank)
    bottom = clamped(data.draw, made)
    if data.draw(st.booleans()):
        divided = made.program.node("Div", [made.numerators, bottom], shape)
    else:
        divided = made.program.node(
            "Mul", [made.numerators, made.program.node("Reciprocal", [bottom], (made.points, 1))], shape
        )
    grid = after(data.draw, made, divided)
    model = made.model(grid)
    note(described(model))
    rewritten, (*_, finding) = fuse(model)
    assert finding.fused == ("p" in behind(model, grid)), finding.message
    onnx.checker.check_model(rewritten)
    if finding.fused:
        node = spatial_nodes(rewritten)[-1]
        assert node.basis is not None and (node.basis.kind == "projective") == made.varying, finding.message
        if made.varying and made.least is not None:
            assert node.basis.w_min == pytest.approx(made.least, rel=1e-5)
    for batch in BATCHES:
        inputs = feeds(made.rank, batch)
        expected = run(model, inputs, False)
        np.testing.assert_allclose(run(rewritten, inputs, False), expected, rtol=0, atol=2e-4)
        if plugin.available():
            np.testing.assert_allclose(run(rewritten, inputs, None), expected, rtol=0, atol=2e-4)


BENDS = (
    "two sides",
    "from above",
    "magnitude",
    "chosen",
    "bounds per pixel",
    "by pixel",
    "by data",
    "two denominators",
)


@given(quotients(), st.sampled_from(BENDS), st.data())
@RUNS
def test_other_quotients_stay_at_their_grid(made: Quotient, bend: str, data: st.DataObject) -> None:
    program, values, shape = made.program, made.values, (made.points, 1)
    whole = (made.points, made.rank)
    moved = values + 0.5 + 1.5 * np.abs(values).max()
    positive = program.node("Add", [made.denominator, program.constant(np.float32(moved[0] - values[0]))], shape)
    low, high = (program.constant(np.float32(np.quantile(moved, share))) for share in (0.3, 0.8))
    bottom, more = program.node("Clip", [positive, low], shape), ""
    if bend == "two sides":
        bottom = program.node("Clip", [positive, low, high], shape)
    elif bend == "from above":
        bottom = program.node("Min", [positive, high], shape)
    elif bend == "magnitude":
        bottom = program.node("Abs", [positive], shape)
    elif bend == "chosen":
        bottom = program.node("Where", [program.node("Less", [positive, low], shape), low, positive], shape)
    elif bend == "bounds per pixel":
        bounds = program.constant(np.linspace(0.5, 2, made.points)[:, None] * np.quantile(moved, 0.3))
        bottom = program.node("Max", [positive, bounds], shape)
    elif bend == "by pixel":
        more = program.constant(random_numbers(data.draw, *whole))
    elif bend == "by data":
        more = made.numerators
    else:
        other = program.node("Mul", [positive, program.constant(np.linspace(1, 2, made.points)[:, None])], shape)
        factors = [other, *[positive] * (made.rank - 1)]
        bottom = program.node("Concat", factors, whole, axis=2)
    grid = program.node("Div", [made.numerators, bottom], whole)
    if more:
        grid = program.node("Add", [grid, more], whole)
    model = made.model(grid)
    note(described(model))
    rewritten, (*_, finding) = fuse(model)
    if not made.varying:  # the denominator is constant, however it is computed
        assert finding.fused == ("p" in behind(model, grid)), finding.message
        return
    assert not finding.fused, finding.message
    check_only_samplers_changed(model, rewritten)
