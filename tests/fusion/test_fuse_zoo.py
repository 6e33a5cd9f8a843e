"""The pass on the zoo: expected findings, correct outputs, unchanged interface and opset."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from stn_infer.fusion.fuse import Finding, fuse
from stn_infer.fusion.op import DOMAIN, SAMPLER
from tests.support.onnx_files import check_only_samplers_changed
from tests.support.zoo import ANIMALS, SLOW, Animal, Fused, NotFused, load
from tests.support.zoo_graphs import HALF_MESH, POINTS, Graph


@cache
def results(animal: Animal) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    return fuse(load(animal))


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def inputs(model: onnx.ModelProto, batch: int) -> dict[str, np.ndarray]:
    """Plausible random inputs of transformers: images of normal values, parameters of smaller spread."""
    generator = np.random.default_rng(batch)
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        sizes = [d.dim_value or (batch if axis == 0 else 9 + axis) for axis, d in enumerate(tensor.shape.dim)]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        spread = 0.4 if value.name in ("p", "input_1", "scale") else 1.0
        feeds[value.name] = (spread * generator.standard_normal(sizes)).astype(dtype)
    return feeds


ALL = [pytest.param(animal, marks=pytest.mark.slow) if animal.name in SLOW else animal for animal in ANIMALS]


@pytest.mark.parametrize("animal", ALL, ids=lambda animal: animal.name)
def test_animal(animal: Animal) -> None:
    model = load(animal)
    before = model.SerializeToString()
    rewritten, findings = results(animal)
    assert model.SerializeToString() == before, "the given model was changed"
    check_findings(animal, findings)
    check_interface(model, rewritten)
    if not any(finding.written for finding in findings):
        assert rewritten.SerializeToString() == before, "nothing was replaced, but the model changed"
        return
    if not animal.linear and not model.functions:
        check_only_samplers_changed(model, rewritten)
    onnx.checker.check_model(rewritten, full_check=True)
    again, more = fuse(rewritten)
    assert again.SerializeToString() == rewritten.SerializeToString()
    assert not any(finding.fused for finding in more)
    if animal.runs:
        check_outputs(animal, model, rewritten)


def check_findings(animal: Animal, findings: tuple[Finding, ...]) -> None:
    assert len(findings) == len(animal.expected), findings
    for finding, expected in zip(findings, animal.expected, strict=True):
        if isinstance(expected, NotFused):
            assert not finding.fused, finding.message
            assert (finding.op == SAMPLER) != ("stays a GridSample, because" in finding.message), finding.message
            assert expected.reason in finding.message and finding.grid in finding.message
            continue
        assert finding.fused, finding.message
        assert (finding.kind, finding.basis_rows, finding.precision) == (
            expected.kind,
            expected.rows,
            expected.precision,
        )
        assert expected.values in (None, finding.parameters), finding.message


def check_interface(model: onnx.ModelProto, rewritten: onnx.ModelProto) -> None:
    assert list(rewritten.graph.input) == list(model.graph.input)
    assert list(rewritten.graph.output) == list(model.graph.output)
    versions = {entry.domain: entry.version for entry in model.opset_import}
    found = {entry.domain: entry.version for entry in rewritten.opset_import}
    assert found[""] == versions[""]
    assert set(found) - set(versions) <= {DOMAIN}


def check_outputs(animal: Animal, model: onnx.ModelProto, rewritten: onnx.ModelProto) -> None:
    original, fused = session(model), session(rewritten)
    for batch in animal.batches:
        feeds = inputs(model, batch)
        for one, other in zip(original.run(None, feeds), fused.run(None, feeds), strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(other, one, rtol=0, atol=animal.tolerance * max(1.0, np.abs(one).max()))


def test_the_zoo_is_large_and_nearly_all_linear_grids_are_fused() -> None:
    assert len(ANIMALS) >= 40
    assert len({animal.name for animal in ANIMALS}) == len(ANIMALS)
    linear = [animal for animal in ANIMALS if animal.linear and animal.name not in SLOW]
    assert {animal.name for animal in ANIMALS} >= SLOW
    fused = [animal for animal in linear if any(finding.fused for finding in results(animal)[1])]
    assert len(fused) >= 0.95 * len(linear)


def test_findings_name_the_subgraph_of_a_sampler() -> None:
    scopes = {}
    for animal in ANIMALS:
        if animal.name in ("sampler in both branches", "sampler in a loop"):
            scopes[animal.name] = [finding.scope for finding in results(animal)[1]]
    assert [scope.split(" of ")[0] for scope in scopes["sampler in both branches"]] == ["then_branch", "else_branch"]
    assert scopes["sampler in a loop"][0].startswith("body of ")


def test_theta_of_a_shared_input_is_computed_once() -> None:
    animal = next(animal for animal in ANIMALS if animal.name == "one theta for all")
    rewritten, _ = results(animal)
    expands = [node for node in rewritten.graph.node if node.op_type == "Expand"]
    assert len(expands) == 1
    assert isinstance(animal.expected[0], Fused)


def test_a_half_precision_model_equals_a_float32_model_with_the_same_stored_constants() -> None:
    """onnxruntime can't run the original; a float32 model with the same constants is the reference."""
    halves, _ = fuse(Graph(POINTS, types=("float16", "float16"), constants={"mesh": HALF_MESH})())
    singles = Graph(POINTS, constants={"mesh": HALF_MESH.astype(np.float32)})()
    feeds = inputs(halves, 3)
    (expected,) = session(singles).run(None, {name: value.astype(np.float32) for name, value in feeds.items()})
    (found,) = session(halves).run(None, feeds)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=1e-3, atol=1e-3)
