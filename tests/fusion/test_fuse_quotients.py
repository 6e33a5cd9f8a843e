"""Quotients against float64: active clamps, denominators near zero, NaN, and denominators that prevent fusion."""

from __future__ import annotations

import numpy as np
import pytest

from stn_infer import plugin
from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.fuse import fuse
from stn_infer.fusion.op import is_version_2
from stn_infer.fusion.samplers import spatial_nodes, with_theta
from stn_infer.reference.onnx_file import OnnxReference
from stn_infer.repairs.inlined import inlined
from tests.support.onnx_files import check_only_samplers_changed
from tests.support.zoo import ANIMALS, Animal, Fused, load
from tests.support.zoo_graphs import Graph, mesh

WORDS = ("plane sweep", "voxels", "rational camera", "projective volume")
GENERAL = [
    animal for animal in ANIMALS if any(word in animal.name for word in WORDS) and isinstance(animal.expected[0], Fused)
]
# Neither has a clamp, and kernels of volumes and of many rows are tested in plugins/ too.
SLOW = {"script 16: rational camera", "script 20: projective volume"}
LIBRARY = [None] if plugin.available() else []  # None: the library, which must be there


@pytest.mark.parametrize(
    "animal",
    [pytest.param(it, marks=pytest.mark.slow) if it.name in SLOW else it for it in GENERAL],
    ids=lambda animal: animal.name,
)
def test_body_operators_and_kernels_equal_the_original_in_float64(animal: Animal) -> None:
    original = load(animal)
    fused, _ = fuse(original)
    assert sum(map(is_version_2, fused.graph.node)) == len(animal.expected)
    input = original.graph.input[0]
    shape = [dim.dim_value for dim in input.type.tensor_type.shape.dim[1:]]
    # far enough from the networks' identity that clamps are active
    feeds = {input.name: 3 * np.random.default_rng(4).standard_normal((4, *shape)).astype(np.float32)}
    (expected,), _ = OnnxReference(original).run(list(feeds.values()))
    variants = [(fused, False), (inlined(fused), False), *((fused, library) for library in LIBRARY)]
    for model, library in variants:
        found = OrtBackend(model.SerializeToString(), plugin=library).run(feeds)
        np.testing.assert_allclose(next(iter(found.values())), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    with_thetas = with_theta(fused)
    outputs = OrtBackend(with_thetas.SerializeToString(), plugin=False).run(feeds)
    thetas = list(outputs.values())[-len(animal.expected) :]
    for value, theta in zip(with_thetas.graph.output[-len(thetas) :], thetas, strict=True):
        assert tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[1:]) == theta.shape[1:]
    for node, theta in zip(spatial_nodes(fused), thetas, strict=True):
        basis = node.basis
        denominators = (theta @ basis.rows)[:, -1]
        if basis.w_min is not None:
            assert 0.01 < (denominators < basis.w_min).mean() < 0.99


DIVISION = (
    "a = MatMul(p, mesh) s, w = Split<axis=1>(a, parts) {} d = Div(s, {})"
    " t = Transpose<perm=[0,2,1]>(d) grid = Reshape(t, shape)"
)
CONSTANTS = {
    "parts": np.array([2, 1]),
    "low": np.float32(0.4),
    "high": np.float32(2),
    "small": np.float32(1e-3),
    "axes": np.array([1, 2]),
}


def divided(clamp: str, bottom: str = "c") -> Graph:
    """Two rows of p · mesh over the third, which ``clamp`` makes ``bottom`` of."""
    return Graph(DIVISION.format(clamp, bottom), "N, 3, 3", constants=CONSTANTS)


@pytest.mark.parametrize("library", [False, *LIBRARY])
@pytest.mark.parametrize("graph", [divided("", "w"), divided("c = Clip(w, low)")], ids=["free", "clamped"])
def test_denominators_near_zero_and_nan(graph: Graph, library: bool | None) -> None:
    """What the float64 reference says; a sample with NaN changes no other one."""
    original = graph()
    fused, (finding,) = fuse(original)
    assert finding.fused
    generator = np.random.default_rng(0)
    theta = generator.standard_normal((7, 3, 3)).astype(np.float32)
    theta[1, 2] = 0, 0, 1e-30
    theta[2, 2] = 1, 0, 0  # zero along the middle column
    theta[3, 2] = 0, 0, -1e-6
    theta[4, 2], theta[5, 0, 0], theta[6, 2, 0] = 0, np.nan, np.nan
    images = generator.standard_normal((7, 2, 6, 7)).astype(np.float32)
    (expected,), (call,) = OnnxReference(original).run([images, theta])
    found = OrtBackend(fused.SerializeToString(), plugin=library).run({"image": images, "p": theta})["output"]
    checked = (np.abs(call.grid) < 1e6).all(-1)  # elsewhere onnxruntime's GridSample reads any pixel
    assert checked[0].all() and not checked[5:].any()
    if library is None:
        checked[:] = True
    np.testing.assert_allclose(np.moveaxis(found, 1, -1)[checked], np.moveaxis(expected, 1, -1)[checked], atol=2e-6)


OBSTACLES = {
    "clamped on both sides": ("c = Clip(w, low, high)", "'c' (Clip): it also limits the denominator from above"),
    "clamped from above": ("c = Min(w, high)", "'c' (Min): a clamp"),
    "clamped from above by data": ("m = ReduceMean(p, axes) c = Min(w, m)", "'c' (Min): a clamp"),
    "clamped from below by data": ("m = ReduceMean(p, axes) c = Max(w, m)", "'c' (Max): a clamp"),
    "magnitude": ("m = Abs(w) c = Add(m, small)", "'m' (Abs): the operator is not known to be linear"),
    "moved away from zero": ("g = Sign(w) m = Mul(g, small) c = Add(w, m)", "'g' (Sign): the operator"),
    "replaced where small": ("m = Abs(w) l = Less(m, small) c = Where(l, small, w)", "'c' (Where): the condition"),
    "exponential": ("c = Exp(w)", "'c' (Exp): the operator is not known to be linear"),
    "softplus": ("c = Softplus(w)", "'c' (Softplus): the operator is not known to be linear"),
    "length": ("q = Mul(w, w) r = Add(q, small) c = Sqrt(r)", "'c' (Sqrt): the operator is not known to be linear"),
    "leaky": ("c = LeakyRelu(w)", "'c' (LeakyRelu): the operator is not known to be linear"),
}


@pytest.mark.parametrize(("clamp", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_other_denominators_are_not_fused_and_the_finding_names_the_operator(clamp: str, reason: str) -> None:
    original = divided(clamp)()
    rewritten, (finding,) = fuse(original)
    assert not finding.fused and reason in finding.message, finding.message
    check_only_samplers_changed(original, rewritten)


LINEAR = {
    "moved": ("c = Add(w, small)", None, 3),
    "clamped, then moved": ("m = Clip(w, low) c = Add(m, high)", 2.4, 3),
    "squared": ("c = Mul(w, w)", None, 6),
}


@pytest.mark.parametrize(("change", "least", "rows"), LINEAR.values(), ids=LINEAR)
def test_denominators_that_are_linear_after_all(change: str, least: float | None, rows: int) -> None:
    original = divided(change)()
    fused, (finding,) = fuse(original)
    assert finding.fused and (finding.kind, finding.basis_rows) == ("projective", rows), finding.message
    (node,) = spatial_nodes(fused)
    assert node.basis.w_min == (None if least is None else pytest.approx(least))
    theta = np.random.default_rng(1).standard_normal((3, 3, 3)).astype(np.float32)
    theta[:, 2, 2] += 6  # far from zero
    assert ((theta @ mesh())[:, 2] > 0.5).all()
    feeds = {"image": np.random.default_rng(2).standard_normal((3, 2, 6, 7)).astype(np.float32), "p": theta}
    (expected,), _ = OnnxReference(original).run(list(feeds.values()))
    for library in (False, *LIBRARY):
        found = OrtBackend(fused.SerializeToString(), plugin=library).run(feeds)["output"]
        np.testing.assert_allclose(found, expected, atol=5e-6)
