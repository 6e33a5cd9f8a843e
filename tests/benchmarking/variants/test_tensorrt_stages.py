"""Where an engine's time goes, against the stand-in's profiler and the names that the real parser gives."""

from __future__ import annotations

from typing import Any

import onnx
import onnx.parser
import pytest
import torch

from stn_infer.backends.tensorrt.executor import Executor
from stn_infer.backends.tensorrt.runtime import TensorRT, make_logger
from stn_infer.benchmarking.variants.tensorrt_stages import LayerNames, engine_stages, layer_times, names_of
from stn_infer.errors import ModelError
from tests.support import tensorrt_standin as standin
from tests.support.shared import portable
from tests.support.tensorrt_parts import module_or_skip, parsed
from tests.support.tensorrt_standin import Cuda, Module, Script

NAMES = LayerNames(frozenset({"sample"}), frozenset({"image"}), frozenset({"points", "grid"}))


def split(*layers: tuple[str, float], names: LayerNames = NAMES) -> Any:
    return engine_stages(list(layers) * 5, 5, names)


def test_layers_go_to_the_stage_that_their_names_say() -> None:
    found = split(
        ("conv + relu", 3.0), ("points + grid", 1.0), ("image + sample_5", 2.0), ("PWN(PWN(a), b)", 0.5), ("c", 0.5)
    )
    assert found.stages == {"grid": 1.0, "sampling": 2.0, "rest": 4.0} and not found.left_out


def test_the_first_runs_are_passed_over() -> None:
    layers = [("conv", 90.0 if run < 3 else 1.0) for run in range(5)]
    both = [it for layer in layers for it in (layer, ("sample", 2.0))]
    found = engine_stages(both, 5, LayerNames(frozenset({"sample"}), frozenset(), frozenset()))
    assert found.stages == {"grid": 0.0, "sampling": 2.0, "rest": 1.0}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((("conv", 1.0), ("sample + conv2", 1.0)), "one layer with conv2"),
        ((("{ForeignNode[conv...sample]}", 1.0),), "none of the engine's layers"),
        ((("__myl_MovConc_myl0_5", 1.0), ("Reformatting CopyNode for Input Tensor 0 to sample", 1.0)), "none of the"),
    ],
)
def test_what_was_fused_is_not_told(layers: tuple[tuple[str, float], ...], message: str) -> None:
    found = split(*layers)
    assert found.stages is None and message in found.left_out["stages"]


def test_a_grid_inside_another_layer_leaves_sampling_and_rest() -> None:
    found = split(("conv + points", 1.0), ("sample", 2.0))
    assert found.stages == {"sampling": 2.0, "rest": 1.0} and "the grid's share" in found.left_out


def test_a_grid_that_is_not_wholly_known_is_not_told() -> None:
    unknown = LayerNames(frozenset({"sample"}), frozenset(), None)
    for found, reason in (
        (split(("conv", 1.0), ("sample", 2.0), names=unknown), "not clear from the file"),
        (split(("points", 1.0), ("grid + conv", 5.0), ("sample", 2.0)), "in one layer with conv"),
        (split(("points", 1.0), ("{ForeignNode[a...b]}", 5.0), ("sample", 2.0)), "a name of TensorRT's own"),
        (split(("points", 1.0), ("__myl_Fc_myl0_1", 5.0), ("sample", 2.0)), "a name of TensorRT's own"),
    ):
        assert "grid" not in found.stages and reason in found.left_out["the grid's share"]
        assert sum(found.stages.values()) in (3.0, 8.0)
    # folded into constants, or a layer of nothing: where all layers go by their nodes' names, nothing is hidden
    whole = split(("points", 1.0), ("conv", 5.0), ("sample", 2.0))
    assert whole.stages == {"grid": 1.0, "sampling": 2.0, "rest": 5.0} and not whole.left_out
    all_named = split(("points", 1.0), ("grid", 1.0), ("__myl_Fc_myl0_1", 5.0), ("sample", 2.0))
    assert all_named.stages == {"grid": 2.0, "sampling": 2.0, "rest": 5.0}


def test_a_node_whose_name_ends_in_a_number_is_itself() -> None:
    names = LayerNames(frozenset({"sample"}), frozenset(), frozenset({"node_mul"}), frozenset({"node_mul_3"}))
    found = split(("node_mul", 0.5), ("node_mul_4", 0.5), ("sample", 1.0), ("node_mul_3", 4.0), names=names)
    assert found.stages == {"grid": 1.0, "sampling": 1.0, "rest": 4.0}


def test_a_grid_that_the_file_does_not_tell_is_none() -> None:
    text = """
        <ir_version: 9, opset_import: ["" : 18]>
        g (float[N, 1, 8, 8] x, float[N, 8, 8, 2] flow) => (float[N, 1, 8, 8] y) {
            [node_mul] grid = Mul (flow, flow)
            [node_sample] y = GridSample (x, grid)
            }"""
    model = onnx.parser.parse_model(text)
    assert names_of(model, False, ()).grid is None
    assert names_of(model, False, ("flow",)).grid == frozenset({"node_mul"})


def test_runs_that_report_otherwise_say_nothing() -> None:
    assert "same layers" in engine_stages([("a", 1.0)] * 3, 2, NAMES).left_out["stages"]
    assert "same layers" in engine_stages([], 5, NAMES).left_out["stages"]
    assert "same layers" in engine_stages([("a", 1.0), ("b", 1.0)], 2, NAMES).left_out["stages"]


def test_the_profiler_is_on_a_context_of_its_own() -> None:
    script = Script()
    module = Module(script)
    executor = Executor(TensorRT("tensorrt", module, "11.4.0"), b"engine", Cuda(script), make_logger(module))
    x = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    for _ in range(3):  # a graph is recorded, which the profile has to leave alone
        executor.run({"x": x})
    reporter = layer_times(executor.module)
    script.calls.clear()
    executor.profile({"x": x}, reporter, 2)
    assert reporter.layers == [("first", 0.25), ("second", 0.5)] * 2
    assert script.calls.count("create_execution_context") == 1 and "replay" not in script.calls
    assert script.calls[-1] == "synchronize"
    script.calls.clear()
    assert torch.equal(executor.run({"x": x})["y"], x * 2)
    assert script.calls == ["ordered", "replay"]
    script.runs = False
    with pytest.raises(ModelError, match="failed while running"):
        executor.profile({"x": x}, reporter, 1)


def test_a_profiler_is_one_of_the_real_api() -> None:
    rtx = module_or_skip("tensorrt_rtx", "tensorrt-rtx")
    assert hasattr(rtx.IExecutionContext, "profiler") and hasattr(standin.Module, "IProfiler")
    reporter = layer_times(rtx)
    assert isinstance(reporter, rtx.IProfiler)
    reporter.report_layer_time("conv", 0.5)
    assert reporter.layers == [("conv", 0.5)]


def test_the_real_parsers_names_are_known(rtx: TensorRT) -> None:
    model = portable("st-cnn-affine-rts")
    network, _alive = parsed(rtx, model.SerializeToString())
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    names = names_of(model, False, ())
    found = engine_stages([(layer.name, 1.0) for layer in layers], 1, names)
    assert found.stages is not None and not found.left_out
    # MatMul, Transpose and Reshape of the function's body; the sampler, and the casts around it are 0 or rest
    assert (found.stages["grid"], found.stages["sampling"]) == (3.0, 1.0)
    fused = names_of(model, True, ())
    assert (fused.samplers, fused.beside, fused.grid) == (frozenset({"node_grid_sampler"}), frozenset(), frozenset())
    assert {node.name for node in model.graph.node if node.name} - fused.samplers <= fused.others
