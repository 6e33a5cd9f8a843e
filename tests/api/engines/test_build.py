"""Engines built by TensorRT-RTX's parser and builder, which need no GPU; and errors of `build`."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from benchmarks.op_files import op_file
from stn_infer.api.engines.build import build
from stn_infer.backends.tensorrt import engine as building
from stn_infer.backends.tensorrt.builder import build_plan, prepare, sampling_layers
from stn_infer.backends.tensorrt.engine_cache import Profiles, load_engine, sidecar_path
from stn_infer.backends.tensorrt.options import BuildOptions
from stn_infer.backends.tensorrt.profiles import Profile
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT
from stn_infer.cli.main import main
from stn_infer.errors import MissingDependencyError, ModelError, OutputError, UsageError
from stn_infer.fusion.fuse import fuse
from stn_infer.models import SHIPPED
from stn_infer.samplers import SamplerSpec
from tests.support.onnx_files import flow_model
from tests.support.shared import exported
from tests.support.tensorrt_parts import library_or_skip, parsed, run_script

RTX = BuildOptions(runtime="tensorrt-rtx", target="sm89", profile=Profile((1,), (2,), (4,)))
MODELS = (*SHIPPED, "st-cnn-projective")

# One worker exports the models, once.


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exported models, by name."""
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / f"{name}.onnx" for name in MODELS}
    for name, path in paths.items():
        path.write_bytes(exported(name))
    return paths


def small_model(opset: int = 18, mode: str = "bilinear", batch: str | int = "n", scale: float = 1.0) -> onnx.ModelProto:
    """A plain GridSample of [batch, 1, 4, 5] at a grid that is an input, times a weight."""
    graph = helper.make_graph(
        [
            helper.make_node("GridSample", ["x", "grid"], ["sampled"], name="sample", mode=mode),
            helper.make_node("Mul", ["sampled", "scale"], ["y"], name="scale"),
        ],
        "small",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, 4, 5]),
            helper.make_tensor_value_info("grid", TensorProto.FLOAT, [batch, 2, 3, 2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 1, 2, 3])],
        [numpy_helper.from_array(np.array([scale], np.float32), "scale")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


@pytest.mark.parametrize("name", MODELS)
def test_every_shipped_model_builds_with_native_layers(
    rtx: TensorRT, files: dict[str, Path], name: str, tmp_path: Path
) -> None:
    output = tmp_path / "model.engine"
    engine = build(files[name], output, RTX, cache=tmp_path / "cache")
    assert engine.built
    data, sidecar = load_engine(output)
    assert data == engine.data and len(data) > 10_000
    assert sidecar == engine.sidecar and sidecar is not None
    assert sidecar.key.runtime_version == rtx.version
    assert (sidecar.key.gpu, sidecar.key.sm, sidecar.key.plugin_sha256) == ("", "sm89", "")
    assert sidecar.key.precision == "float32" and sidecar.key.flags == ()
    ((profile,),) = sidecar.key.profiles
    assert [shape[0] for shape in (profile.min, profile.opt, profile.max)] == [1, 2, 4]
    props = {entry.key: entry.value for entry in onnx.load(files[name]).metadata_props}
    assert sidecar.metadata == props


@pytest.mark.parametrize("name", MODELS)
def test_the_parser_reads_our_files_as_linear_with_zeros(rtx: TensorRT, files: dict[str, Path], name: str) -> None:
    model = onnx.load(files[name])
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    network, _alive = parsed(rtx, files[name].read_bytes())
    layers = sampling_layers(rtx.module, network)
    assert len(layers) == 1
    assert layers[0].interpolation_mode == rtx.module.InterpolationMode.LINEAR
    assert layers[0].sample_mode == rtx.module.SampleMode.FILL
    assert [network.get_layer(i).type.name for i in range(network.num_layers)].count("PLUGIN_V3") == 0


@pytest.mark.parametrize("opset, mode", [(18, "bilinear"), (20, "linear")])
def test_both_spellings_of_linear_are_read_as_linear(rtx: TensorRT, opset: int, mode: str) -> None:
    network, _alive = parsed(rtx, small_model(opset, mode).SerializeToString())
    assert sampling_layers(rtx.module, network)[0].interpolation_mode == rtx.module.InterpolationMode.LINEAR


@pytest.mark.parametrize(
    "name, made",
    [
        ("st-cnn-affine-rts", "created: SpatialTransformer affine bilinear zeros"),
        ("st-cnn-tps-e", "created: SpatialTransformer basis bilinear zeros"),
        ("st-cnn-projective", "created: ProjectiveTransformer bilinear zeros"),
    ],
)
def test_the_parser_creates_our_plugin_from_the_same_file(
    rtx: TensorRT, files: dict[str, Path], name: str, made: str
) -> None:
    library = library_or_skip()
    _, errors, code = run_script(
        "rtx_parse_with_plugin.py",
        str(library),
        str(files[name]),
        environment={"STN_TENSORRT_DEVICE": "cpu"},
    )
    assert made in errors
    assert code != 0, "TensorRT-RTX takes plugins now: build --plugin can be allowed for it"


def test_the_parser_creates_our_sampler_from_a_written_file(rtx: TensorRT, tmp_path: Path) -> None:
    model = tmp_path / "flow.onnx"
    onnx.save(fuse(flow_model())[0], model)
    script = ("rtx_parse_with_plugin.py", str(library_or_skip()), str(model))
    _, errors, _ = run_script(*script, environment={"STN_TENSORRT_DEVICE": "cpu"})
    assert "Sampler 'sample' created: Sampler bilinear zeros half_pixel" in errors
    engine = build(model, tmp_path / "flow.engine", RTX, cache=tmp_path / "cache")
    assert engine.sidecar.fused == ()  # native layers, from the function


def test_the_parser_creates_version_2_of_our_projective_plugin(rtx: TensorRT, tmp_path: Path) -> None:
    model, size = tmp_path / "quotient.onnx", (3, 4, 5)
    basis = np.ones((6, 60), np.float32)
    content = op_file("projective", (2, 4, 5, 6), basis, size, SamplerSpec(), w_min=0.1, offset=(0.25, 0, -1))
    onnx.save(content, model)
    script = ("rtx_parse_with_plugin.py", str(library_or_skip()), str(model))
    _, errors, _ = run_script(*script, environment={"STN_TENSORRT_DEVICE": "cpu"})
    made = "created: ProjectiveTransformer bilinear zeros half_pixel 3x4x5 w_min 0.100000001 offset 0.25 0 -1"
    assert made in errors


@pytest.mark.parametrize("rank", [2, 3])
def test_version_2_of_the_projective_op_is_built_from_its_function(rtx: TensorRT, rank: int, tmp_path: Path) -> None:
    model, size = tmp_path / "quotient.onnx", (3, 4, 5)[:rank]
    basis = np.ones((6, prod(size)), np.float32)
    onnx.save(op_file("projective", (2, *size), basis, size, SamplerSpec(), w_min=0.1), model)
    engine = build(model, tmp_path / "quotient.engine", RTX, cache=tmp_path / "cache")
    assert engine.sidecar.fused == ()


def test_the_parser_creates_our_grid_sample_from_an_unmodified_file(rtx: TensorRT, tmp_path: Path) -> None:
    model = tmp_path / "small.onnx"
    onnx.save(small_model(mode="bicubic"), model)
    _, errors, _ = run_script(
        "rtx_parse_with_plugin.py",
        str(library_or_skip()),
        str(model),
        environment={"STN_TENSORRT_DEVICE": "cpu"},
    )
    assert "created: GridSample bicubic zeros half_pixel" in errors


def test_a_misread_sampler_is_an_error(rtx: TensorRT) -> None:
    # What TensorRT up to 11.1 does with mode="linear": tell the check that the file says linear where it says nearest.
    model = small_model(mode="nearest")
    built = build_plan(rtx, model, _profiles(model), target="sm89")
    assert built.fused == ()

    class Misreading:
        def __init__(self, network: Any, logger: Any) -> None:
            self.parser = rtx.module.OnnxParser(network, logger)

        def parse(self, data: bytes) -> bool:
            return bool(self.parser.parse(model.SerializeToString()))

    class Module:
        OnnxParser = Misreading

        def __getattr__(self, name: str) -> Any:
            return getattr(rtx.module, name)

    linear = small_model(opset=20, mode="linear")
    with pytest.raises(ModelError, match=r"11.1.0 parses the sampler 'sample' as NEAREST, which is wrong; .*opset 18"):
        build_plan(TensorRT("tensorrt", Module(), "11.1.0"), linear, _profiles(linear), target="sm89")


def _profiles(model: onnx.ModelProto) -> Profiles:
    return building.resolve_profiles(model, None)


def test_parsers_before_10_8_get_no_functions(files: dict[str, Path]) -> None:
    model = onnx.load(files["st-cnn-affine-rts"])
    new, old = (TensorRT("tensorrt", None, version) for version in ("10.8.0.43", "10.7.0.23"))
    assert prepare(model, new, plugin=True) is model
    assert prepare(model, new, plugin=False) is model

    for_plugin = prepare(model, old, plugin=True)
    assert not for_plugin.functions and model.functions
    assert [node.op_type for node in for_plugin.graph.node] == [node.op_type for node in model.graph.node]

    native = prepare(model, old, plugin=False)
    assert not native.functions
    assert {node.domain for node in native.graph.node} == {""}
    x = np.random.default_rng(0).random((3, 1, *_size(model)), np.float32)
    answers = [
        onnxruntime.InferenceSession(it.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"input": x})
        for it in (model, native)
    ]
    np.testing.assert_allclose(answers[0][0], answers[1][0], atol=1e-6)


def _size(model: onnx.ModelProto) -> list[int]:
    return [axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim][2:]


def test_an_op_without_layer_and_function_is_an_error_and_not_a_crash(
    rtx: TensorRT, files: dict[str, Path], tmp_path: Path
) -> None:
    model = onnx.load(files["st-cnn-affine-rts"])
    del model.functions[:]
    path = tmp_path / "bare.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="stn::SpatialTransformer: TensorRT-RTX has no layer"):
        build(path, tmp_path / "x.engine", RTX, cache=tmp_path / "cache")
    assert not (tmp_path / "x.engine").exists()


def test_a_parser_error_is_one_line(rtx: TensorRT, tmp_path: Path) -> None:
    model = small_model(opset=20, mode="linear")
    model.graph.node.append(helper.make_node("AffineGrid", ["theta", "size"], ["g2"], name="grid"))
    model.graph.input.append(helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["n", 2, 3]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 4, 5]), "size"))
    model.graph.output.append(helper.make_tensor_value_info("g2", TensorProto.FLOAT, ["n", 4, 5, 2]))
    path = tmp_path / "affine_grid.onnx"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="cannot parse the model") as caught:
        build(path, tmp_path / "x.engine", RTX, cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_an_engine_is_built_again_only_for_a_reason(rtx: TensorRT, tmp_path: Path) -> None:
    model, output, cache = tmp_path / "m.onnx", tmp_path / "m.engine", tmp_path / "cache"
    onnx.save(small_model(), model)

    def reason(options: BuildOptions = RTX, **more: Any) -> str:
        engine = build(model, output, options, cache=cache, **more)
        return ("built: " if engine.built else "kept: ") + engine.reason

    assert reason() == f"built: no engine of {model} is cached"
    lines = str(build(model, output, RTX, cache=cache)).splitlines()
    assert lines[0] == "reused: it is up to date" and lines[-1].startswith(f"{output} (")
    assert reason() == "kept: it is up to date"
    output.unlink()
    assert reason() == "kept: the same engine is in the cache"
    onnx.save(small_model(scale=2.0), model)
    assert reason() == "built: since it was last built: the model's weights changed"
    onnx.save(small_model(scale=2.0, mode="nearest"), model)
    assert reason() == "built: since it was last built: the model's graph changed"
    other = BuildOptions(runtime="tensorrt-rtx", target="sm75", profile=Profile((1,), (2,), (8,)), tf32=True)
    assert "architecture changed from sm89 to sm75; the optimization profiles changed from x=" in reason(other)
    assert reason() == "kept: the same engine is in the cache"
    assert reason(rebuild=True) == "built: it was requested"
    output.write_bytes(output.read_bytes()[:1000])  # truncated: taken from the cache again
    assert reason() == "kept: the same engine is in the cache"
    for path in cache.glob("*.engine"):
        path.write_bytes(b"damaged")
    output.unlink()
    sidecar_path(output).unlink()
    assert reason() == "built: the cached engine is damaged"


def test_bytes_and_loaded_models_are_built(
    rtx: TensorRT, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "st-cnn-affine-rts"
    monkeypatch.setattr("stn_infer.api.export.export_bytes", lambda loaded: files[loaded.name].read_bytes())
    loaded = build(name, tmp_path / "source.engine", RTX, cache=tmp_path)
    assert loaded.built and loaded.sidecar.source == name
    for same in (files[name].read_bytes(), files[name]):
        engine = building.engine_for(same, RTX, cache=tmp_path)
        assert (engine.built, engine.data) == (False, loaded.data)


def test_fixed_and_dynamic_shapes(rtx: TensorRT, tmp_path: Path) -> None:
    fixed = small_model(batch=3)
    assert _profiles(fixed) == ()
    with pytest.raises(UsageError, match="has fixed shapes and takes no profile"):
        building.resolve_profiles(fixed, Profile())
    path = tmp_path / "fixed.onnx"
    onnx.save(fixed, path)
    engine = build(path, tmp_path / "x.engine", BuildOptions("tensorrt-rtx", "sm89"), cache=tmp_path / "cache")
    assert engine.built and engine.sidecar.key.profiles == ()

    free = small_model()
    free.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(UsageError, match=r"input 'x' is \?x1x\?x5: --profile needs complete shapes"):
        _profiles(free)
    ((x, _grid),) = _profiles(small_model())
    assert (x.min, x.opt, x.max) == ((1, 1, 4, 5), (64, 1, 4, 5), (256, 1, 4, 5))
    with pytest.raises(UsageError, match="--profile has 1x2x4x5"):
        building.resolve_profiles(small_model(), Profile.parse("1x2x4x5:1x2x4x5:1x2x4x5"))


def test_options_that_cannot_be_combined(rtx: TensorRT, files: dict[str, Path], tmp_path: Path) -> None:
    model, output = files["st-cnn-affine-rts"], tmp_path / "x.engine"
    with pytest.raises(UsageError, match=r"does not support custom plugins; build with --native"):
        build(model, output, BuildOptions("tensorrt-rtx", "sm89", plugin=True))
    with pytest.raises(UsageError, match=r"supports the targets .*sm89.*, not sm90"):
        build(model, output, BuildOptions("tensorrt-rtx", "sm90"))
    with pytest.raises(OutputError, match="no such folder"):
        build(model, tmp_path / "none" / "x.engine", RTX)
    with pytest.raises(ModelError, match="does not exist"):
        build(tmp_path / "none.onnx", output, RTX)


def test_without_a_gpu_the_target_has_to_be_named(
    rtx: TensorRT, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MissingDependencyError, match=r"a GPU is required .*--target sm89"):
        build(files["st-cnn-affine-rts"], tmp_path / "x.engine", BuildOptions("tensorrt-rtx"))


def test_an_unsupported_gpu_is_refused(
    rtx: TensorRT, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "current_gpu", lambda index: Gpu("a GPU", "sm90"))
    with pytest.raises(UsageError, match=r"supports the targets .*, not a GPU \(sm90\)"):
        build(files["st-cnn-affine-rts"], tmp_path / "x.engine", BuildOptions("tensorrt-rtx"))


def test_the_plugin_is_part_of_the_key_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "libstn_plugins.so"
    library.write_bytes(b"library")
    monkeypatch.setattr(building, "load_runtime", lambda name: TensorRT("tensorrt", None, "11.1.0.106"))
    monkeypatch.setattr(building, "current_gpu", lambda index: Gpu("a GPU", "sm90"))
    monkeypatch.setattr(building, "_cuda_library", lambda device: library)
    with_sampler = building.request_engine(small_model().SerializeToString(), BuildOptions())
    assert with_sampler.plugin == library and len(with_sampler.key.plugin_sha256) == 64
    plain = small_model()
    plain.graph.node[0].CopyFrom(helper.make_node("AveragePool", ["x"], ["sampled"], kernel_shape=[3, 3]))
    without = building.request_engine(plain.SerializeToString(), BuildOptions())
    assert without.plugin is None and without.key.plugin_sha256 == ""
    assert without.notes == ("the model has no spatial transformer for the plugin",)
    native = building.request_engine(small_model().SerializeToString(), BuildOptions(plugin=False))
    assert native.plugin is None and native.notes == ()


def test_kernels_that_do_not_run_mean_native_layers_or_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "load_runtime", lambda name: TensorRT("tensorrt", None, "11.1.0.106"))
    monkeypatch.setattr(building, "current_gpu", lambda index: Gpu("a GPU", "sm90"))
    monkeypatch.setattr("stn_infer.plugin.load", lambda: None)
    monkeypatch.setattr("stn_infer.plugin.cuda_problem", lambda device: f"no kernels for cuda:{device}")
    request = building.request_engine(small_model().SerializeToString(), BuildOptions(device=1))
    assert request.plugin is None and request.notes == ("native layers, no plugin: no kernels for cuda:1",)
    with pytest.raises(MissingDependencyError, match="no kernels for cuda:0"):
        building.request_engine(small_model().SerializeToString(), BuildOptions(plugin=True))


def test_tensorrt_builds_for_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(building, "load_runtime", lambda name: TensorRT("tensorrt", None, "11.1.0.106"))
    monkeypatch.setattr(building, "current_gpu", lambda index: Gpu("a GPU", "sm90"))
    with pytest.raises(UsageError, match=r"builds for the GPU it runs on, a GPU \(sm90\), not for sm89"):
        build("m.onnx", tmp_path / "x.engine", BuildOptions(target="sm89", plugin=False))
    monkeypatch.setattr(building, "load_runtime", lambda name: TensorRT("tensorrt", None, "8.6.1"))
    with pytest.raises(MissingDependencyError, match=r"8\.6\.1 is too old"):
        build("m.onnx", tmp_path / "x.engine")


def test_the_command_builds_and_explains(rtx: TensorRT, tmp_path: Path) -> None:
    model, output = tmp_path / "m.onnx", tmp_path / "m.engine"
    onnx.save(small_model(), model)
    arguments = ["build", str(model), "-o", str(output), "--runtime", "tensorrt-rtx", "--target", "sm89"]
    arguments += ["--profile", "1:2:4", "--cache", str(tmp_path / "cache")]
    first, second = (CliRunner().invoke(main, arguments) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    assert "no engine of" in first.stdout and "by native layers" in first.stdout
    assert "profile x=1x1x4x5:2x1x4x5:4x1x4x5" in first.stdout
    assert "reused: it is up to date" in second.stdout
    content = json.loads(sidecar_path(output).read_text())
    assert content["key"]["runtime"] == "tensorrt-rtx" and content["engine_size"] == output.stat().st_size


@pytest.mark.parametrize(
    "extra, code, message",
    [
        (["--runtime", "tensorrt-rtx", "--plugin"], 2, "TensorRT-RTX does not support custom plugins"),
        (["--runtime", "tensorrt-rtx", "--target", "sm89", "--profile", "2:1:4"], 2, "OPT at least MIN"),
        (["--device", "cpu"], 2, "engines run on GPUs"),
    ],
)
def test_the_command_refuses_in_one_line(
    rtx: TensorRT, tmp_path: Path, extra: list[str], code: int, message: str
) -> None:
    model = tmp_path / "m.onnx"
    onnx.save(small_model(), model)
    result = CliRunner().invoke(main, ["build", str(model), "-o", str(tmp_path / "x"), *extra])
    assert result.exit_code == code
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1
