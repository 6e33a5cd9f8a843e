"""The results of optimize in TensorRT-RTX's parser and builder: they parse, sample correctly, and build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from stn_infer.api.lint import lint
from stn_infer.api.optimize import optimize
from stn_infer.backends.tensorrt.builder import build_plan, prepare, sampling_layers
from stn_infer.backends.tensorrt.engine_cache import InputProfile, Profiles
from stn_infer.backends.tensorrt.runtime import TensorRT
from stn_infer.errors import ModelError
from tests.support.onnx_files import F16, affine_grid_model, affine_model, flow_model, half_model
from tests.support.tensorrt_parts import parsed
from tests.support.zoo import ANIMALS, Animal, Fused, load


def profiles(model: onnx.ModelProto) -> Profiles:
    """One profile, in which each dynamic input has 1 to 4 samples."""
    found = []
    for value in model.graph.input:
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        if 0 in sizes:
            found.append(InputProfile(value.name, *(tuple(size or n for size in sizes) for n in (1, 2, 4))))
    return (tuple(found),) if found else ()


def build(rtx: TensorRT, model: onnx.ModelProto) -> bytes:
    return build_plan(rtx, prepare(model, rtx, plugin=False), profiles(model), target="sm89").engine


def modes(rtx: TensorRT, model: onnx.ModelProto) -> list[str]:
    """How the parser reads each sampler."""
    network, _alive = parsed(rtx, model.SerializeToString())
    return [layer.interpolation_mode.name for layer in sampling_layers(rtx.module, network)]


MM = {"interpolation_mode": 0, "padding_mode": 1, "align_corners": 0}
MODELS: dict[str, tuple[Any, list[str]]] = {
    "affine at 16": (lambda: affine_model(opset=16), ["LINEAR"]),
    "affine at 20": (lambda: affine_model(opset=20, mode="linear"), ["LINEAR"]),
    "nearest at 22": (lambda: affine_model(opset=22, mode="nearest"), ["NEAREST"]),
    "cubic at 20": (lambda: affine_model(opset=20, mode="cubic", padding_mode="reflection"), ["CUBIC"]),
    "AffineGrid": (affine_grid_model, ["LINEAR"]),
    "AffineGrid of a volume": (lambda: affine_grid_model(volume=True), ["LINEAR"]),
    "onnxruntime's own": (lambda: affine_model(opset=11, domain="com.microsoft", ir_version=6), ["LINEAR"]),
    "mmdeploy's own": (
        lambda: affine_model(opset=11, sampler="grid_sampler", domain="mmdeploy", attributes=MM, ir_version=6),
        ["LINEAR"],
    ),
    "a flow field": (lambda: flow_model(opset=20, mode="linear"), ["LINEAR"]),
    "float16 grid, float image": (lambda: flow_model(grid=F16), ["LINEAR"]),
    "float grid, float16 image": (lambda: flow_model(image=F16), ["LINEAR"]),
    "half precision": (half_model, ["LINEAR"]),
    "too new": (lambda: affine_model(opset=28, mode="linear", ir_version=14), ["LINEAR"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_builds(name: str, rtx: TensorRT, tmp_path: Path) -> None:
    make_model, wanted = MODELS[name]
    (tmp_path / "in.onnx").write_bytes(make_model().SerializeToString())
    optimize(tmp_path / "in.onnx", tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert modes(rtx, written) == wanted
    assert len(build(rtx, written)) > 1000


def test_affine_grid_does_not_build_without(rtx: TensorRT) -> None:
    with pytest.raises(ModelError, match="cannot parse the model: node 'affine'"):
        build(rtx, affine_grid_model())


@pytest.mark.parametrize("image, grid", [(F16, 1), (1, F16)])
def test_mixed_types_do_not_build_without(image: int, grid: int, rtx: TensorRT) -> None:
    with pytest.raises(ModelError, match=r"cannot (parse|build)"):
        build(rtx, flow_model(image=image, grid=grid))


# exported models take seconds to export, and fusion/test_fuse_zoo.py compares their outputs
BUILT = [animal for animal in ANIMALS if not animal.name.startswith(("dynamo", "script"))]
# TensorRT-RTX has no Scan over samples and no Compress, with or without the pass.
NO_LAYER = {"sampler in a scan over samples", "compressed"}


@pytest.mark.parametrize("animal", BUILT, ids=lambda animal: animal.name)
def test_it_keeps_its_outputs_and_builds(animal: Animal, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(load(animal).SerializeToString())
    report = optimize(path, tmp_path / "out.onnx")
    assert [finding.fused for finding in report.findings] == [isinstance(entry, Fused) for entry in animal.expected]
    assert all(output.scaled <= output.limit for output in report.comparison.outputs)
    assert all(output.limit < 1e-3 for output in report.comparison.outputs), "rounding alone must not hide an error"
    errors = {finding.code for finding in lint(tmp_path / "out.onnx").findings if finding.fixable}
    assert not errors
    if animal.name not in NO_LAYER and report.fused:
        assert build(request.getfixturevalue("rtx"), onnx.load(tmp_path / "out.onnx"))
