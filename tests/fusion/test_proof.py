"""The proof's rules, one small graph each, from theta [N, 2, 3] (or p [N, 6]) to a grid [N, 4, 5, 2]."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.fuse import Finding, fuse

HEIGHT, WIDTH = 4, 5


def mesh() -> np.ndarray:
    """[3, 20]: x, y, 1 at the pixel centers, float32."""
    y, x = np.meshgrid((2 * np.arange(HEIGHT) + 1) / HEIGHT - 1, (2 * np.arange(WIDTH) + 1) / WIDTH - 1, indexing="ij")
    return np.stack([x.ravel(), y.ravel(), np.ones(x.size)]).astype(np.float32)


def model(body: str, parameters: str = "N, 2, 3", opset: int = 18, **constants: object) -> onnx.ModelProto:
    """A sampler whose ``grid`` the ``body`` computes from ``p`` (float[parameters]) and constants."""
    text = f"""
    <ir_version: 9, opset_import: ["" : {opset}]>
    warp (float[N, 2, 6, 7] image, float[{parameters}] p) => (float[N, 2, {HEIGHT}, {WIDTH}] output)
    {{
        {body}
        output = GridSample <align_corners = 0, mode = "{"linear" if opset >= 20 else "bilinear"}"> (image, grid)
    }}
    """
    made = parser.parse_model(text)
    values = {"mesh": mesh(), "shape": np.array([-1, HEIGHT, WIDTH, 2]), **constants}
    for name, value in values.items():
        array = np.asarray(value)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return made


def outputs(made: onnx.ModelProto, parameters: np.ndarray, plugin: bool | None = None) -> np.ndarray:
    images = np.random.default_rng(5).standard_normal((len(parameters), 2, 6, 7)).astype(np.float32)
    return OrtBackend(made.SerializeToString(), plugin=plugin).run({"image": images, "p": parameters})["output"]


def check(made: onnx.ModelProto, shape: tuple[int, ...]) -> Finding:
    """Fuses, and checks that outputs do not change, whether or not the sampler was fused."""
    rewritten, (finding,) = fuse(made)
    values = 0.4 * np.random.default_rng(6).standard_normal((3, *shape)).astype(np.float32)
    np.testing.assert_allclose(outputs(rewritten, values), outputs(made, values), atol=2e-5)
    return finding


PRODUCT = "points = MatMul(p, mesh) t = Transpose<perm=[0,2,1]>(points) grid = Reshape(t, shape)"

LINEAR = {
    "matmul": (PRODUCT, "N, 2, 3", {}),
    "einsum": ('t = Einsum<equation="ndk,kp->npd">(p, mesh) grid = Reshape(t, shape)', "N, 2, 3", {}),
    "samples last, then first": (
        "q = Transpose<perm=[1,2,0]>(p) r = Transpose<perm=[2,0,1]>(q) points = MatMul(r, mesh)"
        " t = Transpose<perm=[0,2,1]>(points) grid = Reshape(t, shape)",
        "N, 2, 3",
        {},
    ),
    "batch and pixels on one axis": (
        "m = Transpose<perm=[1,0]>(mesh) e = Unsqueeze(p, one) x = Unsqueeze(m, two) r = Mul(x, e)"
        " flat = Reshape(r, rows) s = ReduceSum<keepdims=0>(flat, one) grid = Reshape(s, shape)",
        "N, 3, 2",
        {"one": np.array([1]), "two": np.array([2]), "rows": np.array([-1, 3, 2])},
    ),
    "split, scale, join": (
        "a, b = Split<axis=1, num_outputs=2>(p) n = Neg(b) m = Neg(n) h = Concat<axis=1>(a, m) d = Div(h, half)"
        " d2 = Mul(d, half) points = MatMul(d2, mesh) t = Transpose<perm=[0,2,1]>(points) grid = Reshape(t, shape)",
        "N, 2, 3",
        {"half": np.float32(0.5)},
    ),
    "slice and gather": (
        "a = Slice(p, zero, three, one) b = Gather<axis=1>(p, picks) h = Concat<axis=1>(a, b)"
        " q = Reshape(h, theta) points = MatMul(q, mesh) t = Transpose<perm=[0,2,1]>(points) grid = Reshape(t, shape)",
        "N, 6",
        {
            "zero": np.array([0]),
            "three": np.array([3]),
            "one": np.array([1]),
            "picks": np.array([3, 4, 5]),
            "theta": np.array([-1, 2, 3]),
        },
    ),
    "constant condition": (
        "w = Where(mask, p, other) points = MatMul(w, mesh) t = Transpose<perm=[0,2,1]>(points)"
        " grid = Reshape(t, shape)",
        "N, 2, 3",
        {"mask": np.array([[True, False, True], [True, True, False]]), "other": np.full((2, 3), 0.25, np.float32)},
    ),
    "shape read from the batch": (
        "s = Shape<start=0, end=1>(p) full = Concat<axis=0>(s, tail) wide = Expand(mesh, full)"
        " points = MatMul(p, wide) t = Transpose<perm=[0,2,1]>(points) grid = Reshape(t, shape)",
        "N, 2, 3",
        {"tail": np.array([3, HEIGHT * WIDTH])},
    ),
}


@pytest.mark.parametrize("case", LINEAR)
def test_linear(case: str) -> None:
    body, parameters, constants = LINEAR[case]
    shape = tuple(int(size) for size in parameters.split(",")[1:])
    finding = check(model(body, parameters, **constants), shape)
    assert finding.fused, finding.message
    assert (finding.kind, finding.basis_rows, finding.parameters) == ("affine", 3, 6)


NOT_LINEAR = {
    "sum over the batch": ("m = ReduceSum<keepdims=1>(p, zero) q = Add(p, m)", "samples of a batch", {"zero": [0]}),
    "order of samples": (
        "q = Slice(p, last, before_first, zero, back)",
        "part of the batch",
        {"last": [-1], "before_first": [-(2**31)], "zero": [0], "back": [-1]},
    ),
    "clip": ("q = Clip(p, low, high)", "Clip", {"low": np.float32(-99), "high": np.float32(99)}),
    "power": ("q = Pow(p, four)", "a power of a value", {"four": np.float32(4)}),
    "absolute": ("q = Abs(p)", "Abs", {}),
}


@pytest.mark.parametrize("case", NOT_LINEAR)
def test_the_cut_is_placed_after_a_nonlinear_operator(case: str) -> None:
    """Before the product the values are still few, so the grid is fused from the operator's output."""
    before, _, constants = NOT_LINEAR[case]
    body = f"{before} {PRODUCT.replace('MatMul(p', 'MatMul(q')}"
    made = model(body, **{name: np.asarray(value) for name, value in constants.items()})
    finding = check(made, (2, 3))
    assert finding.fused and finding.cut == ("q",)


@pytest.mark.parametrize("case", NOT_LINEAR)
def test_a_nonlinear_operator_after_the_product_prevents_fusion(case: str) -> None:
    after, reason, constants = NOT_LINEAR[case]
    body = (
        f"{PRODUCT.replace('grid =', 'g =')} {after.replace('(p', '(g').replace('p)', 'g)').replace('q =', 'grid =')}"
    )
    if case == "sum over the batch":
        body = body.replace("Add(p,", "Add(g,")
    made = model(body, **{name: np.asarray(value) for name, value in constants.items()})
    finding = check(made, (2, 3))
    assert not finding.fused
    assert reason in finding.message


def test_a_quotient_is_not_summed() -> None:
    body = (
        "points = MatMul(p, mesh) xy, w = Split<axis=1>(points, parts) q = Div(xy, w) s = ReduceSum<keepdims=1>(q, one)"
        " r = Concat<axis=1>(s, s) t = Transpose<perm=[0,2,1]>(r) grid = Reshape(t, shape)"
    )
    finding = check(model(body, "N, 3, 3", parts=np.array([2, 1]), one=np.array([1])), (3, 3))
    assert not finding.fused
    assert "different denominators" in finding.message


def test_two_denominators_are_not_a_projective_map() -> None:
    body = (
        "points = MatMul(p, mesh) xy, w = Split<axis=1>(points, parts) q = Div(xy, w)"
        " t = Transpose<perm=[0,2,1]>(q) grid = Reshape(t, shape)"
    )
    finding = check(model(body, "N, 4, 3", parts=np.array([2, 2])), (4, 3))
    assert not finding.fused
    assert "different values" in finding.message


def test_the_files_own_opset_is_kept() -> None:
    made = model(PRODUCT, opset=20)
    rewritten, (finding,) = fuse(made)
    assert finding.fused
    assert [entry.version for entry in rewritten.opset_import if entry.domain == ""] == [20]
    (node,) = [node for node in rewritten.graph.node if node.op_type == "SpatialTransformer"]
    assert {attribute.s for attribute in node.attribute if attribute.name == "mode"} == {b"linear"}
    check(made, (2, 3))


def test_affine_grid_operator() -> None:
    made = model(
        "size = Concat<axis=0>(n, rest) grid = AffineGrid(p, size)", opset=20, rest=np.array([2, HEIGHT, WIDTH])
    )
    made.graph.node.insert(0, onnx.helper.make_node("Shape", ["p"], ["n"], start=0, end=1))
    finding = check(made, (2, 3))
    assert finding.fused, finding.message
    assert finding.kind == "affine"


def test_a_basis_of_few_rows_for_many_parameters() -> None:
    """Twelve coefficients of four fixed fields: K is four."""
    fields = np.random.default_rng(2).standard_normal((4, HEIGHT * WIDTH)).astype(np.float32)
    mixing = np.random.default_rng(3).standard_normal((12, 8)).astype(np.float32)
    body = (
        "c = MatMul(p, mixing) r = Reshape(c, two) points = MatMul(r, fields) t = Transpose<perm=[0,2,1]>(points)"
        " grid = Reshape(t, shape)"
    )
    made = model(body, "N, 12", fields=fields, mixing=mixing, two=np.array([-1, 2, 4]))
    finding = check(made, (12,))
    assert finding.fused, finding.message
    assert (finding.kind, finding.basis_rows) == ("basis", 4)


BEHIND = {
    "rounding to half": ("h = Cast<to=10>(p) q = Cast<to=1>(h)", {}),
    "rounding to integers": ("i = Cast<to=7>(p) q = Cast<to=1>(i)", {}),
    "dropout": ("q = Dropout(p, ratio, training)", {"ratio": np.float32(0.5), "training": np.array(True)}),
}


@pytest.mark.parametrize("case", BEHIND)
def test_the_cut_is_placed_after_rounding_and_dropout(case: str) -> None:
    before, constants = BEHIND[case]
    _, (finding,) = fuse(model(f"{before} {PRODUCT.replace('MatMul(p', 'MatMul(q')}", **constants))
    assert finding.fused and finding.cut == ("q",)


AFTER = {
    "a number computed from the batch size": (
        "n = Shape<start=0, end=1>(p) m = Min(n, most) f = Cast<to=1>(m) d = Cast<to=1>(n) r = Div(d, f)"
        " grid = Mul(g, r)",
        {"most": np.array([16])},
        "computed from the batch size",
    ),
    "a shape that is data": (
        "b = Greater(p, low) z = NonZero(b) n = Shape<start=1, end=2>(z) f = Cast<to=1>(n) r = Div(f, f)"
        " grid = Mul(g, r)",
        {"low": np.float32(-1e9)},
        "",
    ),
}


@pytest.mark.parametrize("case", AFTER)
def test_values_that_are_constant_only_at_the_trial_points_end_the_proof(case: str) -> None:
    after, constants, reason = AFTER[case]
    finding = check(model(f"{PRODUCT.replace('grid =', 'g =')} {after}", **constants), (2, 3))
    assert not finding.fused
    assert reason in finding.message


def test_the_cut_is_placed_after_a_slice_of_the_batch() -> None:
    constants = {"zero": np.array([0]), "sixteen": np.array([16])}
    body = f"q = Slice(p, zero, sixteen, zero) {PRODUCT.replace('MatMul(p', 'MatMul(q')}"
    _, (finding,) = fuse(model(body, **constants))
    assert finding.cut == ("q",)


def test_small_responses_of_large_parameters_are_kept() -> None:
    """Identity plus 1e-7 of a field for each of four parameters of about a million."""
    fields = 1e-7 * np.random.default_rng(2).standard_normal((4, HEIGHT * WIDTH * 2)).astype(np.float32)
    identity = mesh()[:2].T.reshape(1, HEIGHT, WIDTH, 2)
    made = model(
        "d = MatMul(p, fields) r = Reshape(d, shape) grid = Add(r, identity)", "N, 4", fields=fields, identity=identity
    )
    rewritten, (finding,) = fuse(made)
    assert finding.fused and finding.kind == "basis"
    values = 1e6 * np.random.default_rng(6).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_allclose(outputs(rewritten, values), outputs(made, values), atol=2e-5)


def test_a_default_that_a_caller_may_override_is_not_a_constant() -> None:
    made = model(PRODUCT)
    made.graph.input.append(onnx.helper.make_tensor_value_info("mesh", onnx.TensorProto.FLOAT, [3, HEIGHT * WIDTH]))
    rewritten, (finding,) = fuse(made)
    assert not finding.fused
    values = np.random.default_rng(6).standard_normal((3, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(outputs(rewritten, values, plugin=False), outputs(made, values))


def divided(clamp: str, bottom: str = "c") -> str:
    """x / w of a product of three rows, with w clamped to ``c``, in x and y."""
    return (
        f"a = MatMul(p, mesh) s, w = Split<axis=1>(a, parts) {clamp} d = Div(s, {bottom})"
        " t = Transpose<perm=[0,2,1]>(d) grid = Reshape(t, shape)"
    )


LOW = {"low": np.float32(0.4), "parts": np.array([2, 1])}
DIVIDED = {
    "clip": (divided("c = Clip(w, low)"), LOW),
    "max": (divided("c = Max(low, w)"), LOW),
    "relu and a constant": (
        divided("m = Sub(w, low) r = Relu(m) c = Add(low, r)"),
        LOW,
    ),
    "scaled, then expanded": (
        divided("m = Clip(w, low) n = Mul(m, two) c = Concat<axis=1>(n, n)"),
        LOW | {"two": np.float32(2)},
    ),
    "in pixel units": (
        "a = MatMul(p, mesh) s, w = Split<axis=1>(a, parts) c = Clip(w, low) d = Div(s, c) e = Mul(d, scale)"
        " f = Sub(one, e) t = Transpose<perm=[0,2,1]>(f) grid = Reshape(t, shape)",
        LOW | {"scale": np.float32([[0.5], [0.25]]), "one": np.float32([[1], [-0.5]])},
    ),
    "by a reciprocal": (
        "a = MatMul(p, mesh) s, w = Split<axis=1>(a, parts) c = Clip(w, low) r = Reciprocal(c) d = Mul(s, r)"
        " n = Neg(d) t = Transpose<perm=[0,2,1]>(n) grid = Reshape(t, shape)",
        LOW,
    ),
}


@pytest.mark.parametrize(("body", "constants"), DIVIDED.values(), ids=DIVIDED)
def test_a_denominator_may_be_clamped_from_below(body: str, constants: dict[str, object]) -> None:
    made = model(body, "N, 3, 3", **constants)
    rewritten, (finding,) = fuse(made)
    assert finding.fused and finding.kind == "projective" and "denominator of at least" in finding.message
    values = np.random.default_rng(6).standard_normal((5, 3, 3)).astype(np.float32)
    below = (values @ mesh().astype(np.float32))[:, 2] < 0.4
    assert below.any() and not below.all()
    expected = outputs(made, values, plugin=False)
    np.testing.assert_allclose(outputs(rewritten, values, plugin=False), expected, atol=2e-4)


OBSTACLES = {
    "limited from above": (divided("c = Clip(w, low, high)"), "'c' (Clip): it also limits the denominator from above"),
    "its sign changed": (divided("m = Clip(w, low) c = Neg(m)"), "'m' (Clip): a clamp"),
    "scaled by a negative number": (divided("m = Clip(w, low) c = Mul(m, down)"), "(Mul): it changes the sign"),
    "clamped at several values": (divided("c = Max(w, lows)"), "its denominator is clamped at different values"),
    "an absolute value": (divided("c = Abs(w)"), "'c' (Abs)"),
    "a minimum": (divided("c = Min(w, low)"), "'c' (Min): a clamp"),
    "a numerator": (
        "a = MatMul(p, mesh) s, w = Split<axis=1>(a, parts) c = Clip(w, low) n = Add(s, c) d = Div(n, c)"
        " t = Transpose<perm=[0,2,1]>(d) grid = Reshape(t, shape)",
        "'c' (Clip): a clamp",
    ),
    "moved by data": (
        "a = MatMul(p, mesh) s, w = Split<axis=1>(a, parts) c = Clip(w, low) d = Div(s, c) e = Add(d, s)"
        " t = Transpose<perm=[0,2,1]>(e) grid = Reshape(t, shape)",
        "'e' (Add): a sum of quotients has no common denominator",
    ),
    "moved by pixel": (
        "a = MatMul(p, mesh) s, w = Split<axis=1>(a, parts) c = Clip(w, low) d = Div(s, c) e = Add(d, mesh2)"
        " t = Transpose<perm=[0,2,1]>(e) grid = Reshape(t, shape)",
        "is not the same at all pixels",
    ),
}


@pytest.mark.parametrize(("body", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_other_clamps_of_a_denominator_are_named(body: str, reason: str) -> None:
    """And not the number of dimensions that the clamped values would span as parameters."""
    constants = LOW | {"high": np.float32(2), "down": np.float32(-2), "mesh2": mesh().astype(np.float32)[:2]}
    constants["lows"] = np.linspace(0.1, 0.5, HEIGHT * WIDTH, dtype=np.float32)
    finding = check(model(body, "N, 3, 3", **constants), (3, 3))
    assert not finding.fused and reason in finding.message, finding.message
