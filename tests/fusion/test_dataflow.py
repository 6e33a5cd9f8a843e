"""What a grid may depend on besides its parameters: the batch size, data-dependent shapes, randomness, reused names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import NodeProto, helper, numpy_helper

from stn_infer.errors import ModelError
from stn_infer.fusion import dataflow
from stn_infer.fusion.fuse import fuse
from tests.support.zoo_graphs import IN_FUNCTION, Graph

BEFORE = "points = MatMul(p, mesh) t = Transpose<perm=[0,2,1]>(points) plain = Reshape(t, shape) "
ZERO, ONE = {"zero": np.array(0)}, {"one": np.array(1)}
ADD_SIZE = " sizes = Shape(shaped) first = Gather(sizes, zero) c = Cast<to=1>(first) grid = Add(plain, c)"
# p's largest value in hundreds, as an integer: 0 for all random trial values
HUNDREDS = "m = ReduceMax<keepdims=0>(p) parts = Div(m, hundred) i = Cast<to=7>(parts) "
HUNDRED = {"hundred": np.float32(100), **ZERO}


def graph(body: str, functions: str = "", more: str = "", **constants: object) -> Graph:
    return Graph(
        BEFORE + body, constants=constants, functions=functions, imports=', "pkg" : 1' if functions else "", more=more
    )


def function(name: str, body: str, domain: str = "pkg", inputs: str = "x") -> str:
    return f'<domain: "{domain}", opset_import: ["" : 18]> {name} ({inputs}) => (y) {{ {body} }}'


#: Each equals a linear grid for batches of 1, 2, 3 and 5 samples and for normal random numbers.
DISGUISED: dict[str, Callable[[], onnx.ModelProto]] = {
    "a table indexed by the batch size": graph(
        "s = Shape(p) n = Gather(s, zero) f = Gather(table, n) grid = Add(plain, f)",
        table=np.array([0, 0, 0, 0, 1, 0], np.float32),
        **ZERO,
    ),
    "the batch size divided by eight": graph(
        "s = Shape(p) n = Gather(s, zero) d = Div(n, eight) f = Cast<to=1>(d) grid = Add(plain, f)",
        eight=np.array(8),
        **ZERO,
    ),
    "a number of values that depends on the batch size divided by eight": graph(
        "s = Shape(p) n = Gather(s, zeros) d = Div(n, eight) e = Add(d, six) "
        "o = ConstantOfShape<value=float[1]{0.1}>(e) f = ReduceSum<keepdims=0>(o) grid = Add(plain, f)",
        zeros=np.array([0]),
        eight=np.array(8),
        six=np.array([6]),
    ),
    "the size of a data-dependent split": graph(
        HUNDREDS + "u = Unsqueeze(i, zeros) j = Sub(five, u) both = Concat<axis=0>(u, j) "
        "shaped, rest = Split(table, both)"
        + ADD_SIZE,
        zeros=np.array([0]),
        five=np.array([5]),
        table=np.zeros(5, np.float32),
        **HUNDRED,
    ),
    "the size of a data-dependent sequence element": graph(
        HUNDREDS + "all = SequenceConstruct(short, long) shaped = SequenceAt(all, i)" + ADD_SIZE,
        short=np.zeros(5, np.float32),
        long=np.zeros(6, np.float32),
        **HUNDRED,
    ),
    "the data-dependent size of a function's output": graph(
        "found = pkg.large(p) shaped = Transpose(found)" + ADD_SIZE,
        function("large", "h = Constant<value_float=100.0>() g = Greater(x, h) y = NonZero(g)"),
        **ZERO,
    ),
    "a function with the name of a shape operator": graph(
        "f = pkg.Shape(p) c = ReduceMean<keepdims=0>(f) grid = Mul(plain, c)", function("Shape", "y = Exp(x)")
    ),
    "dropout of a constant": graph(
        "d = Dropout(ones, half, on) grid = Mul(plain, d)",
        ones=np.ones((4, 5, 2), np.float32),
        half=np.float32(0.5),
        on=np.array(True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DISGUISED)
def test_grids_that_are_linear_only_at_the_trial_points_are_not_fused(case: str) -> None:
    (finding,) = fuse(DISGUISED[case]())[1]
    assert not finding.fused, finding.message


@pytest.mark.parametrize("name", ["sizes", "lengths", "m2", "tell"])
def test_names_of_tensors_do_not_decide(name: str) -> None:
    made = DISGUISED["the size of a data-dependent split"]()
    for node in made.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if one == "sizes" else one for one in names]
    (finding,) = fuse(made)[1]
    assert not finding.fused, finding.message


def test_a_function_that_only_reshapes_by_constants_does_not_prevent_fusion() -> None:
    body = "flat = pkg.view(p, one_row) shaped = Transpose(flat)" + ADD_SIZE
    made = graph(
        body, function("view", "y = Reshape(x, sizes)", inputs="x, sizes"), one_row=np.array([-1, 6]), **ZERO
    )()
    (finding,) = fuse(made)[1]
    assert finding.fused, finding.message


def test_a_function_with_the_name_of_a_standard_operator_raises() -> None:
    made = graph("grid = Neg(plain)", function("Neg", "y = Sin(x)", domain=""))()
    with pytest.raises(ModelError, match="name of the standard operator 'Neg'"):
        fuse(made)


@pytest.mark.parametrize("batches", [(3, 3), (3, 1), (1, 3)])
def test_parameters_with_separate_batch_sizes_are_broadcast(batches: tuple[int, int]) -> None:
    body = "points2 = MatMul(q, mesh) t2 = Transpose<perm=[0,2,1]>(points2) other = Reshape(t2, shape) "
    made = graph(body + "grid = Add(plain, other)", more=", float[M, 2, 3] q")()
    rewritten, (finding,) = fuse(made)
    assert finding.fused, finding.message
    rng = np.random.default_rng(0)
    shapes = {"image": (3, 2, 6, 7), "p": (batches[0], 2, 3), "q": (batches[1], 2, 3)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    outputs = [
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for model in (made, rewritten)
    ]
    np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5)


def test_an_input_that_is_declared_too_large_to_run() -> None:
    """A kilobyte of a file that the pass would run on 128 GiB of random numbers, to see its shapes."""
    model = IN_FUNCTION()
    model.graph.input[1].type.tensor_type.shape.dim[2].dim_value = 2**32
    with pytest.raises(
        ModelError, match=r"input 'p' of shape \[2, 2, 4294967296\] is too large to run on random values"
    ):
        fuse(model)


def test_nested_bodies_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level of nesting doubled the work: a file of 3 kB took minutes."""
    model, levels = IN_FUNCTION(), 24
    nodes, result = [helper.make_node("Identity", ["p"], ["inside_0"])], "inside_0"
    for level in range(levels):
        deeper = helper.make_graph(nodes, "deeper", [], [onnx.ValueInfoProto(name=result)])
        other = helper.make_graph(
            [helper.make_node("Identity", ["p"], [f"other_{level}"])],
            "o",
            [],
            [onnx.ValueInfoProto(name=f"other_{level}")],
        )
        result = f"inside_{level + 1}"
        nodes = [helper.make_node("If", ["flag"], [result], then_branch=deeper, else_branch=other)]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    calls = NodeProto.FromString(model.graph.node[0].SerializeToString())
    calls.input[1] = result
    del model.graph.node[:]
    model.graph.node.extend([*nodes, calls])
    seen: list[str] = []
    draws = dataflow._draws
    monkeypatch.setattr(dataflow, "_draws", lambda node: seen.append(node.op_type) or draws(node))
    _, findings = fuse(model)
    assert [finding.fused for finding in findings] == [True]
    assert len(seen) < 20 * levels
