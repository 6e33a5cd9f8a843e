"""The pass on models as users write them: what it must fuse, what it must not fuse, and that outputs stay correct."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from stn_infer.backends.ort import OrtBackend
from stn_infer.fusion.fuse import Finding, fuse
from stn_infer.fusion.op import DOMAIN
from stn_infer.fusion.samplers import spatial_nodes, with_theta
from stn_infer.metadata import ModelMetadata
from stn_infer.sources.load import LoadedModel
from stn_infer.torch_export.plain import export_plain
from stn_infer.verification.model import verify_model
from tests.support.onnx_files import check_only_samplers_changed
from tests.support.stn_styles import FUSED, NOT_FUSED, SHAPE, AssignedTheta, RectifierTPS, TwoTransformers


@cache
def plain(style: type[nn.Module]) -> tuple[nn.Module, onnx.ModelProto]:
    torch.manual_seed(3)
    module = style().eval()
    return module, export_plain(module, [SHAPE])


def fused(style: type[nn.Module]) -> tuple[LoadedModel, onnx.ModelProto, tuple[Finding, ...]]:
    module, model = plain(style)
    rewritten, findings = fuse(model)
    return LoadedModel(style.__name__, module, (SHAPE,), ModelMetadata(), "factory"), rewritten, findings


@pytest.mark.parametrize("style", FUSED, ids=lambda style: style.__name__)
def test_linear_grids_are_fused_and_correct(style: type[nn.Module]) -> None:
    kind, rows, values = FUSED[style]
    loaded, model, (finding,) = fused(style)
    assert finding.fused, finding.message
    assert (finding.kind, finding.basis_rows, finding.parameters) == (kind, rows, values)
    assert not [node for node in model.graph.node if node.op_type == "GridSample"]
    onnx.checker.check_model(model, full_check=True)
    verification = verify_model(loaded, model)
    verification.check(style.__name__)
    assert len(verification.grids) == 1


@pytest.mark.parametrize("style", NOT_FUSED, ids=lambda style: style.__name__)
def test_other_grids_are_not_fused_and_the_reason_is_given(style: type[nn.Module]) -> None:
    loaded, model, (finding,) = fused(style)
    assert not finding.fused
    assert NOT_FUSED[style] in finding.message
    assert finding.message.startswith("GridSample became stn::Sampler: grid ")
    check_only_samplers_changed(plain(style)[1], model)
    verify_model(loaded, model).check(style.__name__)


def test_restricted_families_need_no_extra_layer() -> None:
    _, model, _ = fused(AssignedTheta)
    # The layers of features and theta: the second layer's weights turn three parameters into six values.
    assert [node.op_type for node in model.graph.node if node.op_type in ("Gemm", "MatMul")] == ["Gemm", "Gemm"]


def test_parallel_and_stacked_transformers_share_a_theta() -> None:
    loaded, model, findings = fused(TwoTransformers)
    assert [finding.fused for finding in findings] == [True, True, True]
    nodes = spatial_nodes(model)
    by_mode = {(node.spec.mode, node.spec.padding_mode): node for node in nodes}
    assert set(by_mode) == {("bilinear", "zeros"), ("bicubic", "zeros"), ("bilinear", "reflection")}
    assert by_mode["bilinear", "zeros"].theta == by_mode["bilinear", "reflection"].theta
    assert by_mode["bilinear", "zeros"].theta != by_mode["bicubic", "zeros"].theta
    assert len({node.basis.rows.tobytes() for node in nodes if node.basis}) == 1
    assert sum(initializer.name.endswith("basis") for initializer in model.graph.initializer) == 1
    verify_model(loaded, model).check("TwoTransformers")


def test_the_given_model_is_not_changed() -> None:
    style = next(iter(FUSED))
    _, model = plain(style)
    before = model.SerializeToString()
    fuse(model)
    assert model.SerializeToString() == before


def test_a_model_without_a_sampler_has_no_findings() -> None:
    model = export_plain(nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).eval(), [(1, 2, 3)])
    rewritten, findings = fuse(model)
    assert findings == ()
    assert DOMAIN not in {entry.domain for entry in rewritten.opset_import}


def test_the_file_holds_no_paths_or_stack_traces_of_the_exporting_machine() -> None:
    _, model, _ = fused(next(iter(FUSED)))
    content = model.SerializeToString()
    assert b".py" not in content and b"stack_trace" not in content


def test_theta_is_what_the_network_predicts() -> None:
    """A text rectifier's theta is its control points, x row over y row."""
    loaded, model, _ = fused(RectifierTPS)
    images = np.random.default_rng(0).standard_normal((4, *SHAPE)).astype(np.float32)
    theta = OrtBackend(with_theta(model).SerializeToString()).run({"x": images})["theta"]
    with torch.no_grad():
        points = loaded.module.loc(torch.from_numpy(images)).view(4, -1, 2).numpy()
    np.testing.assert_allclose(theta, points.transpose(0, 2, 1), atol=1e-5)
