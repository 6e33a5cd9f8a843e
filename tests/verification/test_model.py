"""``verify`` as a whole: one row per backend, files with and without a source, two files, TensorRT."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import stn_infer
from stn_infer import plugin
from stn_infer.api.verify import verify
from stn_infer.backends.tensorrt import backend as tensorrt
from stn_infer.backends.tensorrt.executor import Executor
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT, make_logger
from stn_infer.cli.main import main
from stn_infer.errors import InputError, MissingDependencyError, ModelError, SourceError, UsageError
from stn_infer.metadata import ModelMetadata
from stn_infer.precision.half import to_half
from stn_infer.precision.int8 import quantize
from stn_infer.proto.edit import replace_all
from stn_infer.reference.model import Reference
from stn_infer.reference.onnx_file import OnnxReference, OrtReference
from stn_infer.reference.samples import sample_batches
from stn_infer.samplers import SamplerSpec
from stn_infer.sources.load import LoadedModel
from stn_infer.verification.model import verify_model
from stn_infer.verification.runners import open_runner
from tests.support import tensorrt_standin as standin
from tests.support.batch_axes import arrays_of, file_of
from tests.support.onnx_files import F16, F32, affine_model, constant, make, sampler_model, then
from tests.support.shared import portable, source
from tests.support.streams_standin import Inline
from tests.support.wrong_files import Mutation, one_transformer, with_attribute

SHIPPED = "st-cnn-affine-rts"


def shipped() -> tuple[LoadedModel, onnx.ModelProto]:
    return source(SHIPPED), portable(SHIPPED)


def written(folder: Path, model: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    onnx.save(model, path)
    return path


def test_a_row_for_every_backend(tmp_path: Path) -> None:
    result = verify(written(tmp_path, shipped()[1]), source=SHIPPED)
    rows = {report.backend: report for report in result.backends}
    expected = ["eager", "eager-fused", "ort", "ort-fused", "openvino", "openvino-fused", "tensorrt", "tensorrt-rtx"]
    assert list(rows) == expected
    assert result.passed and result.title == "float64 eager PyTorch"
    for name in ("eager", "ort", *(("eager-fused", "ort-fused") if plugin.available() else ())):
        report = rows[name]
        assert report.status == "passed" and report.grids[0].max_px < 1e-4
        assert report.checks[0].passed and len(report.checks[0].invariants) == 5
    for report in rows.values():
        assert (report.status == "unavailable") == (not report.outputs)
        assert report.status != "unavailable" or report.reason


def test_a_file_alone_is_compared_with_itself_in_float64(tmp_path: Path) -> None:
    result = verify(written(tmp_path, shipped()[1]), backends=["ort"])
    assert result.passed and result.title == "the file evaluated in float64"
    assert result.reference == "float64" and result.grids[0].max_px < 1e-4
    with pytest.raises(UsageError, match="eager: this backend runs the PyTorch source"):
        verify(tmp_path / "model.onnx", backends=["eager"])


@pytest.mark.parametrize("image", [F32, F16])
def test_a_file_with_the_sampler_at_any_grid(image: int, tmp_path: Path) -> None:
    """Grids are compared in pixels, and each sampler runs in isolation, with the body and with the kernel."""
    backends = ["ort", *(["ort-fused"] if plugin.available() else [])]
    spec = SamplerSpec("bilinear", "border", True)
    model = sampler_model(image, size=(9, 8), spec=spec)
    tolerance = None if image == F32 else 1e-2
    shapes = [(3, 9, 8), (6, 7, 2)]
    result = verify(written(tmp_path, model), backends=backends, input_shapes=shapes, tolerance=tolerance)
    for report in result.backends:
        assert report.status == "passed", report.reason
        assert report.grids[0].max_px < 1e-4 and report.checks[0].passed
    assert result.passed


def test_a_half_precision_grid_of_the_sampler_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, sampler_model(F16, F16, size=(9, 8)))
    result = verify(path, backends=["ort"], input_shapes=[(3, 9, 8), (6, 7, 2)], tolerance=1e-2)
    assert result.backends[0].status == "failed" and "a sampling grid in float16" in result.backends[0].reason


def test_a_sampler_that_reads_another_grid_is_found(tmp_path: Path) -> None:
    """A body with the coordinates in the other order: the kernel is right, the function is not."""
    model = sampler_model(size=(9, 8))
    (function,) = model.functions
    swapped = [
        onnx.helper.make_node("Constant", [], ["stn_order"], value_ints=[1, 0]),
        onnx.helper.make_node("Gather", ["grid", "stn_order"], ["stn_swapped"], axis=-1),
    ]
    function.node[0].input[0] = "stn_swapped"
    nodes = [*swapped, *function.node]
    replace_all(function.node, nodes)
    result = verify(written(tmp_path, model), backends=["ort"], input_shapes=[(3, 9, 8), (6, 7, 2)])
    (report,) = result.backends
    assert report.status == "failed" and "swapped x and y" in report.checks[0].problem


def test_an_onnx_file_may_be_called_anything(tmp_path: Path) -> None:
    for name in ("model.ONNX", "model.pb", "model"):
        assert verify(written(tmp_path, one_transformer(), name), backends=["ort"]).passed
    (tmp_path / "image.png").write_bytes(b"no model")
    with pytest.raises(SourceError, match=r"image\.png is not a known kind of file: expected an ONNX file"):
        verify(tmp_path / "image.png")


def test_an_input_with_the_batch_on_a_later_axis_too(tmp_path: Path) -> None:
    """A matrix over pairs of samples: [n, n]; each batch is tried with n samples on both axes."""
    nodes = [helper.make_node("MatMul", ["a", "x"], ["y"])]
    model = make(nodes, {"a": (F32, ["n", "n"]), "x": (F32, ["n", 4])}, {"y": (F32, ["n", 4])}, [])
    result = verify(written(tmp_path, model), backends=["ort"])
    assert result.passed and result.inputs == "3 random, 1 random"


def test_two_files(tmp_path: Path) -> None:
    right = written(tmp_path, one_transformer(), "right.onnx")
    wrong = written(tmp_path, with_attribute(padding_mode="border")(one_transformer()), "wrong.onnx")
    assert verify(right, against=right, backends=["ort"]).passed
    result = verify(wrong, against=right, backends=["ort"])
    assert not result.passed and result.title == "right.onnx evaluated in float64"
    assert "border padding instead of zeros" in result.backends[0].reason
    assert verify(wrong, backends=["ort"]).passed, "its own attributes define the reference"
    with pytest.raises(UsageError, match="--against"):
        verify(wrong, against=right, source="x")


def test_a_shipped_model_in_float64_equals_pytorch_in_float64() -> None:
    loaded, model = shipped()
    inputs = [np.random.default_rng(0).random((3, *shape), dtype=np.float32) for shape in loaded.input_shapes]
    wanted, samplings = Reference(loaded.module, loaded.input_shapes).run(inputs)
    found, others = OnnxReference(model).run(inputs)
    np.testing.assert_allclose(found[0], wanted[0], rtol=0, atol=1e-12)
    assert samplings[0].spec == others[0].spec
    # the affine family's map is folded into the file's head, and the constants are float32
    assert np.abs(samplings[0].grid - others[0].grid).max() < 1e-6


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, Any], shape: list[Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}),
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ("MaxPool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 2]}),
        ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("AveragePool", {"kernel_shape": [2, 3], "strides": [1, 2]}),
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ],
)
def test_float64_operators_equal_onnxruntimes(op: str, attributes: dict[str, Any]) -> None:
    weight = np.random.default_rng(1).normal(size=(4, 3, 3, 2)).astype(np.float32)
    inputs, constants = (["x", "w"], {"w": weight}) if op == "Conv" else (["x"], {})
    model = graph_of([helper.make_node(op, inputs, ["y"], **attributes)], constants, ["n", 3, 9, 8])
    x = np.random.default_rng(2).normal(size=(2, 3, 9, 8)).astype(np.float32)
    (exact,), _ = OnnxReference(model).run([x])
    (single,), _ = OrtReference(model).run([x])
    assert exact.dtype == np.float64
    np.testing.assert_allclose(exact, single, atol=1e-5)


def test_a_float32_reference_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ModelError("no such operator")

    monkeypatch.setattr("stn_infer.reference.onnx_file.OnnxReference.__init__", refuse)
    result = verify(written(tmp_path, one_transformer()), backends=["ort"])
    assert result.passed and result.reference == "float32"
    assert any("cannot be evaluated in float64: no such operator" in note for note in result.notes)


def test_dynamic_sizes_need_a_shape(tmp_path: Path) -> None:
    model = one_transformer()
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    path = written(tmp_path, model)
    with pytest.raises(UsageError, match="--input-shape"):
        verify(path, backends=["ort"])
    assert verify(path, backends=["ort"], input_shapes=[(2, 12, 20), (2, 3)]).passed


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-9])
def test_an_output_of_a_file_without_a_source_is_judged_on_its_own_scale(size: float, tmp_path: Path) -> None:
    model = then(affine_model(), "Mul", size)
    right, wrong = written(tmp_path, model), written(tmp_path, then(model, "Mul", 1 + 5e-4), "wrong.onnx")
    assert verify(right).passed
    found = verify(wrong, against=right)
    assert not found.passed and found.outputs[0].scaled == pytest.approx(5e-4, rel=0.1)


def test_the_remainder_of_a_cancellation_in_a_file_is_not_an_error(tmp_path: Path) -> None:
    """x - 100.3 + 100.3 - x is exactly zero in theory, about 1e-6 in float32 and 1e-14 in float64."""
    nodes = [
        helper.make_node(operator, inputs, [output])
        for operator, inputs, output in [
            ("Sub", ["x", "c"], "a"),
            ("Add", ["a", "c"], "b"),
            ("Sub", ["b", "x"], "y"),
        ]
    ]
    shape = ["n", 3]
    model = make(nodes, {"x": (F32, shape)}, {"y": (F32, shape)}, [constant(100.3, "c", np.float32)])
    path = written(tmp_path, model)
    found = verify(path)
    assert found.passed and found.outputs[0].scale == 1 and found.outputs[0].max_error > 1e-7
    assert not verify(written(tmp_path, then(model, "Add", 1e-3), "wrong.onnx"), against=path).passed


@cache
def bfloat16_file() -> onnx.ModelProto:
    return to_half(portable(SHIPPED, bf16=True), "bf16").model


@pytest.mark.parametrize("mistake", [None, with_attribute(mode="nearest"), with_attribute(align_corners=1)])
def test_a_bfloat16_file_is_emulated_in_float32(tmp_path: Path, mistake: Mutation | None) -> None:
    """onnxruntime has no bfloat16 on the CPU, and a correct source does not show that the file is correct."""
    path = written(tmp_path, mistake(bfloat16_file()) if mistake else bfloat16_file())
    # without OpenVINO, which runs bfloat16 and rounds to it between the taps
    result = verify(path, source=SHIPPED, backends=["ort", "ort-rounded"])
    rows = {report.backend: report for report in result.backends}
    assert rows["ort"].status == "unavailable" and "no bfloat16" in rows["ort"].reason
    assert rows["ort-rounded"].status == ("failed" if mistake else "passed"), rows["ort-rounded"].failures
    assert result.passed == (mistake is None) and result.emulated
    assert "half precision was emulated in float32" in result.notes[0]


def test_given_inputs_replace_the_sample_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(34):
        Image.fromarray(np.full((42, 42), 7 * index, np.uint8)).save(folder / f"{index:02}.png")
    path = written(tmp_path, shipped()[1])
    result = verify(path, source=SHIPPED, backends=["ort"], inputs=[folder])
    assert result.passed and result.inputs == "32 given samples"
    assert "32 of 34 given samples were used, evenly spaced" in result.notes
    with pytest.raises(InputError, match="no such file or folder"):
        verify(path, source=SHIPPED, inputs=[tmp_path / "none"])
    np.save(tmp_path / "wrong.npy", np.zeros((2, 3, 5, 5), np.float32))
    with pytest.raises(InputError, match=r"no given sample can be read: .*takes \[N, 1, 42, 42\]"):
        verify(path, source=SHIPPED, inputs=[tmp_path / "wrong.npy"])


@pytest.mark.parametrize("kind", ["shared", "own"])
def test_samples_are_counted_on_their_own_axis(kind: str, tmp_path: Path) -> None:
    """Not on the first input's: that is a scalar, or an image of all samples."""
    path = written(tmp_path, file_of(kind))
    np.savez(tmp_path / "five.npz", **arrays_of(kind, 5))  # type: ignore[arg-type]
    result = verify(path, backends=["ort"], inputs=[tmp_path / "five.npz"])
    assert result.passed and result.inputs == "5 given samples"
    np.savez(tmp_path / "two.npz", **arrays_of(kind, 2))  # type: ignore[arg-type]
    result = verify(path, backends=["ort"], inputs=[tmp_path / "two.npz", tmp_path / "five.npz"])
    assert result.passed and result.inputs == "2 given samples, 5 given samples"
    assert not any("batch-dependent" in note for note in result.notes)


def test_samples_on_a_later_axis(tmp_path: Path) -> None:
    path = written(tmp_path, file_of("later"))
    assert verify(path, backends=["ort"]).inputs == "3 random, 1 random"
    np.savez(tmp_path / "s.npz", **arrays_of("later", 5))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="input 'theta' has its samples on axis 1; expected them on axis 0: put a Tr"):
        verify(path, backends=["ort"], inputs=[tmp_path / "s.npz"])


def test_an_int8_file_is_compared_on_images_only(tmp_path: Path) -> None:
    loaded, model = shipped()
    samples = [{"input": batch.inputs[0]} for batch in sample_batches(loaded) if batch.kind == "images"]
    result = verify(written(tmp_path, quantize(model, samples)), source=SHIPPED, backends=["ort"])
    assert result.passed and result.inputs == "8 images" and any("--inputs" in note for note in result.notes)


def test_ort_rounded_is_for_half_precision_only(tmp_path: Path) -> None:
    path = written(tmp_path, one_transformer())
    assert "ort-rounded" not in [report.backend for report in verify(path).backends]
    with pytest.raises(UsageError, match="no float16 or bfloat16 values"):
        verify(path, backends=["ort-rounded"])


def test_a_file_that_no_backend_runs_is_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ModelError("no such operator")

    monkeypatch.setattr("stn_infer.backends.ort.OrtBackend.__init__", refuse)
    monkeypatch.setitem(sys.modules, "openvino", None)  # not installed
    path = written(tmp_path, shipped()[1])
    result = CliRunner().invoke(main, ["verify", str(path), "--source", SHIPPED])
    assert result.exit_code == 1 and result.stdout == ""
    assert (
        result.stderr == f"error: {path} is not verified: no backend on this machine runs it; ort: no such operator\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": "model.onnx", "weights": Path("w.pt")}, "--weights belong to a source"),
        ({"source": SHIPPED, "input_shapes": [(1, 32, 32)]}, "the file's inputs are 1x42x42, not 1x32x32"),
        ({"tolerance": float("nan")}, "a tolerance must be a positive number, not nan"),
        ({"backends": ["ort", "onnx"]}, "unknown backend 'onnx': expected one of eager"),
    ],
)
def test_arguments_that_do_not_go_together(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        verify(written(tmp_path, shipped()[1]), **options)


# ---- TensorRT, replaced by a stand-in that computes y = 2 x ------------------------------------------------------


def doubling(factor: float) -> onnx.ModelProto:
    constants = {"factor": np.float32(factor)}
    return graph_of([helper.make_node("Mul", ["x", "factor"], ["y"])], constants, ["n", 3])


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> standin.Script:
    script = standin.Script()

    def open_tensorrt(model: bytes, runtime: str, device: str) -> tensorrt.TensorRTBackend:
        assert onnx.ModelProto.FromString(model).graph.node and device == "cuda:0"
        loaded = TensorRT(runtime, standin.Module(script), "11.4.0")  # type: ignore[arg-type]
        executor = Executor(loaded, b"engine", standin.Cuda(script), make_logger(loaded.module))
        opened = tensorrt.Opened("engine", loaded, Gpu("a GPU", "sm89"), "cpu", 0)
        return tensorrt.TensorRTBackend(executor, opened, ModelMetadata(), Inline())

    monkeypatch.setattr(tensorrt, "open_tensorrt", open_tensorrt)
    return script


def test_an_engine_is_verified(tmp_path: Path, fake: standin.Script) -> None:
    right = verify(written(tmp_path, doubling(2)), backends=["tensorrt"])
    assert right.passed and right.backends[0].about == "TensorRT 11.4.0"
    assert any(call[0] == "execute_async_v3" for call in fake.calls if isinstance(call, tuple))
    wrong = verify(written(tmp_path, doubling(2.001)), backends=["tensorrt"])
    assert not wrong.passed and "output 'y' is off by" in wrong.backends[0].reason


def test_an_engine_that_fails_is_a_failure(tmp_path: Path, fake: standin.Script) -> None:
    fake.runs = False
    result = verify(written(tmp_path, doubling(2)), backends=["tensorrt"])
    assert [report.status for report in result.backends] == ["failed"]
    assert "TensorRT failed while running" in result.backends[0].reason


def test_a_missing_tensorrt_is_a_row_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise MissingDependencyError("a GPU is required")

    monkeypatch.setattr(tensorrt, "open_tensorrt", missing)
    path = written(tmp_path, one_transformer())
    report = next(report for report in verify(path).backends if report.backend == "tensorrt")
    assert (report.status, report.reason) == ("unavailable", "a GPU is required")
    with pytest.raises(MissingDependencyError, match="tensorrt: a GPU is required"):
        verify(path, backends=["tensorrt"])


# ---- the command line --------------------------------------------------------------------------------------------


def test_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, one_transformer())
    result = CliRunner().invoke(main, ["verify", str(path)])
    assert result.exit_code == 0, result.output
    assert "reference: the file evaluated in float64" in result.output and result.output.endswith("passed\n")
    assert "eager" in result.output and "the PyTorch source" in " ".join(result.output.split())


def test_exit_code_3_and_the_reason(tmp_path: Path) -> None:
    right = written(tmp_path, one_transformer(), "right.onnx")
    wrong = written(tmp_path, with_attribute(mode="nearest")(one_transformer()), "wrong.onnx")
    result = CliRunner().invoke(main, ["verify", str(wrong), "--against", str(right), "--backend", "ort"])
    assert result.exit_code == 3
    assert "likely cause: nearest sampling instead of bilinear" in result.output


def test_json(tmp_path: Path) -> None:
    right = written(tmp_path, one_transformer(), "right.onnx")
    result = CliRunner().invoke(main, ["verify", str(right), "--backend", "ort", "--json"])
    assert result.exit_code == 0
    content = json.loads(result.output)
    assert content["passed"] and content["backends"][0]["status"] == "passed"
    assert content["backends"][0]["checks"][0]["invariants"]["identity"] is True
    wrong = written(tmp_path, with_attribute(mode="nearest")(one_transformer()), "wrong.onnx")
    failed = CliRunner().invoke(main, ["verify", str(wrong), "--against", str(right), "--backend", "ort", "--json"])
    assert failed.exit_code == 3
    assert json.loads(failed.stdout)["backends"][0]["failures"]


def test_a_models_own_prints_are_not_in_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "printing.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def forward(self, x):\n"
        "        print('forward')\n        return x * 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(main, ["verify", "printing:Net", "--input-shape", "4", "--backend", "ort", "--json"])
    assert json.loads(result.stdout)["passed"] and "forward" in result.stderr


def test_a_passing_source_does_not_verify_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, shipped()[1])
    result = CliRunner().invoke(main, ["verify", str(path), "--source", SHIPPED, "--backend", "eager"])
    assert result.exit_code == 0, result.output
    assert "note: no backend on this machine runs the file itself" in result.output
    assert result.output.endswith("passed in PyTorch only: no backend on this machine runs the file\n")


def test_an_unknown_backend(tmp_path: Path) -> None:
    path = written(tmp_path, one_transformer())
    result = CliRunner().invoke(main, ["verify", str(path), "--backend", "caffe"])
    assert result.exit_code == 2 and "unknown backend 'caffe': expected one of eager" in result.output


def test_the_public_name() -> None:
    assert stn_infer.verify is verify


class TakesTwo(torch.nn.Module):
    """A model whose code was written for batches of at most two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > 2:
            raise ValueError("at most\ntwo")
        return torch.nn.functional.grid_sample(x, x.new_zeros(len(x), 4, 4, 2), align_corners=False)


def test_a_source_whose_own_code_fails_is_one_line(tmp_path: Path) -> None:
    module, x = TakesTwo(), np.zeros((3, 1, 8, 8), np.float32)
    message = r"^toy fails in PyTorch \({}\) on \[3, 1, 8, 8\]: ValueError: at most two$"
    with pytest.raises(ModelError, match=message.format("eager, float64")):
        Reference(module, [(1, 8, 8)], "toy").run([x])
    loaded = LoadedModel("toy", module, ((1, 8, 8),), ModelMetadata(), "factory")
    with pytest.raises(ModelError, match=message.format("eager")):
        open_runner("eager", onnx.ModelProto(), loaded, "cpu").run([x])
    path = written(tmp_path, shipped()[1])
    result = CliRunner().invoke(main, ["verify", str(path), "--source", f"{__name__}:TakesTwo"])
    assert result.exit_code == 1 and "TakesTwo fails in PyTorch" in result.stderr, result.stderr
    assert "internal error" not in result.stderr and result.stderr.count("\n") == 1


def test_a_file_that_fails_while_running_is_one_line() -> None:
    """The message is the same as in export's own verification."""
    graph = onnx.parser.parse_graph("g (float[n, 1, 8, 8] x) => (float[7, 5] y) { y = Reshape(x, size) }")
    graph.initializer.append(numpy_helper.from_array(np.array([7, 5]), "size"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    loaded = LoadedModel("toy", torch.nn.Identity(), ((1, 8, 8),), ModelMetadata(), "factory")
    with pytest.raises(ModelError, match=r"on x \[\d+, 1, 8, 8\]: Reshape node: The input tensor cannot be reshaped"):
        verify_model(loaded, model)
