"""What is said about a target without its parser: what is known, and of every other operator nothing."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from stn_infer.repairs.large_weights import detach_weights
from stn_infer.targets.judgment import Judgment
from stn_infer.targets.known import judge_by_facts
from stn_infer.targets.target import TENSORRT_VERSIONS, Target
from tests.support.onnx_files import F16, F32, affine_grid_model, affine_model, flow_model, make, sampler_model

INT8, BF16 = TensorProto.INT8, TensorProto.BFLOAT16


def judged(model: onnx.ModelProto, version: str, runtime: Any = "tensorrt") -> Judgment:
    return judge_by_facts(model, Target(runtime, version, ""))


def sample(
    size: tuple[int, ...] = (4, 6), kind: int = F32, opset: int = 16, grid: int | None = None, **attributes: Any
) -> onnx.ModelProto:
    """A GridSample and nothing else."""
    rank = len(size)
    node = helper.make_node("GridSample", ["x", "g"], ["y"], name="sample", **attributes)
    inputs: dict[str, Any] = {"x": (kind, ["n", 1, *size]), "g": (grid or kind, ["n", *size, rank])}
    return make([node], inputs, {"y": (kind, ["n", 1, *size])}, [], opset=opset)


@pytest.mark.parametrize("version", TENSORRT_VERSIONS)
def test_grid_sample_of_images_alone_is_known_everywhere(version: str) -> None:
    for kind in (F32, F16):
        assert judged(sample(kind=kind, mode="bicubic", padding_mode="border"), version).outcome == "supported"


@pytest.mark.parametrize("version", TENSORRT_VERSIONS)
def test_other_operators_are_never_a_pass(version: str) -> None:
    judgment = judged(affine_model(opset=16), version)
    assert judgment.outcome == "not judged" and judgment.reasons == ()
    assert {"Conv (1 node)", "Reshape (2 nodes)"} <= set(judgment.unjudged)
    assert not any(name.startswith("GridSample") for name in judgment.unjudged)


# model, version, outcome, a piece of the reason or of what is not judged
CASES: list[tuple[Any, str, str, str]] = [
    (lambda: sample(opset=20, mode="linear"), "10.3", "refused", "mode 'linear' is read as NEAREST"),
    (lambda: sample(opset=20, mode="cubic"), "11.1", "refused", "mode 'cubic' is read as NEAREST"),
    (lambda: sample(opset=20, mode="linear"), "11.4", "not judged", "GridSample (1 node)"),
    (lambda: sample(opset=20), "10.3", "not judged", "GridSample (1 node)"),
    (lambda: sample(opset=20, mode="nearest"), "10.3", "supported", ""),
    (lambda: sample((3, 4, 5)), "10.16", "refused", "volumes (5-D) is native from 11.2.1 on"),
    (lambda: sample((3, 4, 5)), "11.4", "supported", ""),
    (lambda: sample((3, 4, 5), mode="bicubic"), "11.4", "refused", "bicubic sampling of volumes"),
    (lambda: sample(kind=BF16), "10.16", "refused", "bfloat16 is native from 11.2.1 on"),
    (lambda: sample(kind=BF16), "11.4", "supported", ""),
    (lambda: sample(kind=INT8), "11.4", "refused", "8-bit integers"),
    (lambda: sample(grid=F16), "11.4", "refused", "one type, not float and float16"),
    (lambda: sample(kind=TensorProto.DOUBLE), "11.4", "not judged", "GridSample (1 node)"),
    (lambda: sample(opset=18), "8.6", "not judged", "opset 18 is newer than 17, the newest documented"),
    (
        lambda: sample(opset=22, mode="nearest"),
        "10.8",
        "not judged",
        "opset 22 is newer than 20, the newest documented",
    ),
    (lambda: sample(opset=22, mode="nearest"), "10.16", "supported", ""),
    (affine_grid_model, "11.4", "refused", "AffineGrid has no importer"),
    (sampler_model, "8.6", "refused", "stn::Sampler is a model-local function: TensorRT knows them from 9.0 on"),
    (sampler_model, "10.3", "not judged", "stn::Sampler (a function) (1 node)"),
    (sampler_model, "10.8", "not judged", "Cast (5 nodes)"),
]


@pytest.mark.parametrize(("make_model", "version", "outcome", "piece"), CASES)
def test_tensorrt(make_model: Any, version: str, outcome: str, piece: str) -> None:
    judgment = judged(make_model(), version)
    assert judgment.outcome == outcome, judgment
    told = [reason.text for reason in judgment.reasons] or [judgment.note, *judgment.unjudged]
    assert any(piece in text for text in told), told


def test_a_sampler_of_unknown_type_is_not_judged() -> None:
    model = sample()
    model.graph.node.insert(0, helper.make_node("Strange", ["x"], ["image"], domain="their"))
    model.graph.node[1].input[0] = "image"
    model.opset_import.append(helper.make_opsetid("their", 1))
    assert set(judged(model, "11.4").unjudged) == {"their::Strange (1 node)", "GridSample (1 node)"}


def test_detached_weights_are_not_taken_for_operators() -> None:
    model = affine_model(opset=16)
    before = judged(model, "10.3")
    for tensor in model.graph.initializer:
        if tensor.name in ("w", "fc_w"):
            tensor.data_location = TensorProto.EXTERNAL
    light, detached = detach_weights(model)
    assert set(detached) == {"w", "fc_w"} and judged(light, "10.3") == before


def in_branch(domain: str = "") -> onnx.ModelProto:
    """An AffineGrid in both branches of an If, or in a function called there if ``domain`` is given."""
    branches = {}
    for name in ("then_branch", "else_branch"):
        op = "grid_of" if domain else "AffineGrid"
        node = helper.make_node(op, ["theta", "size"], [name], name=f"grid_{name}", domain=domain)
        value = helper.make_tensor_value_info(name, F32, None)
        branches[name] = helper.make_graph([node], name, [], [value])
    choice = helper.make_node("If", ["yes"], ["y"], name="choice", **branches)
    inputs: dict[str, Any] = {
        "yes": (TensorProto.BOOL, []),
        "theta": (F32, [1, 2, 3]),
        "size": (TensorProto.INT64, [4]),
    }
    functions = []
    if domain:
        inner = helper.make_node("AffineGrid", ["t", "s"], ["g"], name="inner")
        functions = [helper.make_function(domain, "grid_of", ["t", "s"], ["g"], [inner], [helper.make_opsetid("", 20)])]
    outputs: dict[str, Any] = {"y": (F32, None)}
    return make([choice], inputs, outputs, [], opset=20, domains=(domain,) if domain else (), functions=functions)


def test_nodes_in_subgraphs_are_judged() -> None:
    judgment = judged(in_branch(), "11.4")
    found = {(reason.node, reason.within) for reason in judgment.reasons}
    assert found == {("grid_then_branch", "If 'choice'"), ("grid_else_branch", "If 'choice'")}


def test_nodes_in_functions_are_judged_under_their_own_names() -> None:
    judgment = judged(in_branch("their"), "11.4")
    assert {(reason.node, reason.within) for reason in judgment.reasons} == {("inner", "a function")}
    calls = judged(in_branch("their"), "8.6").reasons
    called = {reason.node for reason in calls if "model-local" in reason.text}
    assert called == {"grid_then_branch", "grid_else_branch"}


def test_openvino_and_rtx_without_their_packages() -> None:
    (reason,) = judged(sampler_model(), "", "openvino").reasons
    assert reason.text == "stn::Sampler is a model-local function: OpenVINO knows none" and reason.node == "sampler"
    assert judged(sample(), "", "openvino").outcome == "not judged"
    assert judged(affine_grid_model(), "", "tensorrt-rtx").outcome == "refused"
    assert judged(flow_model(grid=F16), "", "tensorrt-rtx").reasons[0].node == "sample"
    assert judged(sample(), "", "tensorrt-rtx").outcome == "not judged"
