"""Sessions: the options they are opened with, and the formatting of onnxruntime errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from stn_infer import plugin
from stn_infer.errors import ModelError
from stn_infer.proto.session import Stored, open_session, reason
from tests.support.onnx_files import F32, constant, make
from tests.support.paths import ROOT
from tests.support.wrong_files import one_transformer, with_attribute

SOURCE = "/onnxruntime_src/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:91"
SIGNATURE = "onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, std::function<void()>, bool)"


def reshape(to: tuple[int, ...] = (7, 5), name: str = "head") -> onnx.ModelProto:
    """x [n, 6] reshaped to a size that it does not have: it loads, but fails at run time."""
    node = helper.make_node("Reshape", ["x", "size"], ["y"], name=name)
    return make([node], {"x": (F32, ["n", 6])}, {"y": (F32, list(to))}, [constant(to, "size", np.int64)])


def one_node(op: str, domain: str = "", opset: int = 18, **attributes: object) -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], ["y"], name="it", domain=domain, **attributes)
    domains = (domain,) if domain else ()
    return make([node], {"x": (F32, ["n", 6])}, {"y": (F32, None)}, [], opset=opset, domains=domains)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : two\n lines", "two lines"),
        ("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from /a b/m.onnx failed:no protobuf", "no protobuf"),
        ("[ONNXRuntimeError] : 1 : FAIL : Load model from m.onnx failed:Fatal error: acme:Fancy", "acme:Fancy"),
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception during initialization: stn: no", "stn: no"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. Name:'a b' "
            f"Status Message: {SOURCE} {SIGNATURE} size() == n was false. It (a tensor) does not fit.\n",
            "Reshape node 'a b': It (a tensor) does not fit.",
        ),
        (f"{SOURCE} {SIGNATURE} size() == n was false. ", "size() == n was false."),
        (f"{SOURCE} T* a::B<T>::operator()(int) const [with T = float] Missing Input: x", "Missing Input: x"),
        ("Error: w: tensorprotoutils.cc:461 CheckExternalPath There is none (w)", "w: There is none (w)"),
        (
            f"{SOURCE} bool onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError] CUDA failure 2: "
            "out of memory ; GPU=0 ; hostname=box ; file=/a/b.cc ; line=76 ; expr=cudaMalloc(&p, n);",
            "CUDA failure 2: out of memory",
        ),
        (MemoryError("std::bad_alloc"), "out of memory (std::bad_alloc)"),
        (ValueError(), "ValueError"),
        ("x" * 1000, "x" * 499 + "…"),
    ],
)
def test_error_messages_have_no_source_locations(message: str | BaseException, expected: str) -> None:
    assert reason(message) == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (one_node("Fancy"), "Fancy"),
        (one_node("Fancy", "acme"), "acme:Fancy"),
        (one_node("Relu", opset=99), "Opset 99 is under development"),
        (one_node("Concat"), "axis"),
        (one_node("Cast", to=99), "a valid type"),
        (with_attribute(mode="fancy")(one_transformer()), "expected mode bilinear, nearest or bicubic, got fancy"),
        (onnx.ModelProto(), "No graph was found"),
    ],
)
def test_a_model_that_cannot_be_loaded(model: onnx.ModelProto, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    library = plugin.info().path
    if library is None and "mode" in expected:
        pytest.skip("the plugin library is not built")
    for given, label in ((path, "m.onnx"), (path.read_bytes(), "the model"), (Stored(model), "the model")):
        with pytest.raises(ModelError) as caught:
            open_session(given, library=library)
        line = str(caught.value)
        assert line.startswith(f"onnxruntime rejects {label}: ") and expected in line, line
        assert not any(
            part in line for part in ("\n", "ONNXRuntimeError", "onnxruntime_src", "::common", str(tmp_path))
        )


@pytest.mark.parametrize("content", [b"", b"\x08\xff\xffgarbage", b"no protobuf at all"])
def test_bytes_that_are_not_a_model(content: bytes) -> None:
    with pytest.raises(ModelError, match=r"^onnxruntime rejects m: .*(protobuf|graph)"):
        open_session(content, label="m")


def test_a_path_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    """Python has such bytes as surrogates, which onnxruntime's binding does not take."""
    model = one_transformer()
    right, wrong = tmp_path / "café", tmp_path / os.fsdecode(b"caf\xe9")
    for folder in (right, wrong):
        folder.mkdir()
        (folder / "m.onnx").write_bytes(model.SerializeToString())
    assert open_session(right / "m.onnx").inputs == open_session(Stored(model, right)).inputs
    for given, place in ((wrong / "m.onnx", wrong / "m.onnx"), (Stored(model, wrong), wrong)):
        with pytest.raises(ModelError) as caught:
            open_session(given)
        wanted = f"onnxruntime cannot open {place}: its path is not valid UTF-8; rename it, or its folder"
        assert str(caught.value) == wanted


def test_external_data_that_is_missing(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = make([node], {"x": (F32, ["n", 6])}, {"y": (F32, ["n", 6])}, [constant(np.ones((6, 6)), "w", np.float32)])
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    light = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    feeds = {"x": np.ones((2, 6), np.float32)}
    for given in (tmp_path / "m.onnx", Stored(light, tmp_path)):
        np.testing.assert_array_equal(open_session(given).run(feeds)[0], np.full((2, 6), 6.0))
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"rejects m\.onnx: .*data path does not exist"):
        open_session(tmp_path / "m.onnx")


def test_a_run_that_fails_names_the_model_the_inputs_and_the_node() -> None:
    session = open_session(Stored(reshape()), label="net.onnx")
    with pytest.raises(ModelError) as caught:
        session.run({"x": np.ones((3, 6), np.float32)})
    assert str(caught.value) == (
        "onnxruntime fails while running net.onnx on x [3, 6]: Reshape node 'head': The input tensor cannot be "
        "reshaped to the requested shape. Input shape:{3,6}, requested shape:{7,5}"
    )
    for feeds, expected in (
        ({}, "running net.onnx: Required inputs"),
        ({"x": np.ones((3, 7), np.float32)}, r"on x \[3, 7\]: Got invalid dimensions .* index: 1 Got: 7 Expected: 6"),
        ({"x": np.ones((3, 6))}, "Unexpected input data type"),
    ):
        with pytest.raises(ModelError, match=expected):
            session.run(feeds)


def test_error_messages_list_only_some_of_many_inputs() -> None:
    names = [f"x{index}" for index in range(6)]
    model = make(
        [helper.make_node("Concat", names, ["y"], axis=0)],
        {name: (F32, None) for name in names},
        {"y": (F32, None)},
        [],
    )
    feeds = {name: np.ones((1, 2 + (name == "x5")), np.float32) for name in names}
    with pytest.raises(
        ModelError, match=r"on x0 \[1, 2\], x1 \[1, 2\], x2 \[1, 2\], x3 \[1, 2\], 2 more: Concat node: "
    ):
        open_session(Stored(model)).run(feeds)


def test_the_plugin_op_s_error_says_what_it_expected() -> None:
    library = plugin.info().path
    if library is None:
        pytest.skip("the plugin library is not built")
    session = open_session(Stored(one_transformer()), library=library)
    feeds = {"image": np.ones((2, 2, 12, 16), np.float32), "theta": np.ones((3, 2, 3), np.float32)}
    expected = r"SpatialTransformer node: stn::SpatialTransformer: expected theta \[2, 2, K\], got \[3, 2, 3\]$"
    with pytest.raises(ModelError, match=expected):
        session.run(feeds)


def test_outputs_by_name_or_in_the_models_order() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])]
    model = make(nodes, {"x": (F32, ["n"])}, {"b": (F32, ["n"]), "a": (F32, ["n"])}, [])
    session = open_session(Stored(model), spin="while-running", threads=1, arena=False)
    x = np.array([1.0, -2.0], np.float32)
    assert (session.inputs, session.outputs, session.providers) == (["x"], ["b", "a"], ["CPUExecutionProvider"])
    np.testing.assert_array_equal(np.stack(session.run({"x": x})), [np.abs(x), -x])
    np.testing.assert_array_equal(session.run({"x": x}, ["a"])[0], -x)


def test_each_option_reaches_onnxruntime(tmp_path: Path) -> None:
    model = Stored(reshape((-1, 3), "kept"))
    session = open_session(model, threads=1, optimized=False, spin="while-running", profile=tmp_path)
    options = session.raw.get_session_options()
    assert (options.intra_op_num_threads, options.log_severity_level, options.enable_cpu_mem_arena) == (1, 4, True)
    assert "DISABLE_ALL" in str(options.graph_optimization_level)
    entries = ("session.intra_op.allow_spinning", "session.force_spinning_stop")
    assert [options.get_session_config_entry(entry) for entry in entries] == ["1", "1"]
    session.run({"x": np.ones((3, 6), np.float32)})
    profile = Path(session.raw.end_profiling())
    assert profile.parent == tmp_path and json.loads(profile.read_text())
    assert onnx.load(tmp_path / "optimized.onnx").graph.node[0].name == "kept"
    other = open_session(model, arena=False).raw.get_session_options()
    assert [other.get_session_config_entry(entry) for entry in entries] == ["0", "0"]
    assert not other.enable_cpu_mem_arena and "ENABLE_ALL" in str(other.graph_optimization_level)
    assert open_session(model, spin="always").raw.get_session_options().get_session_config_entry(entries[0]) == "1"


def test_no_other_module_opens_a_session() -> None:
    """Session options and error messages are defined in one place."""
    package = Path(plugin.__file__).parent
    program = package / "serving" / "program.py"  # runs where this package is not installed
    elsewhere = [
        path.name
        for path in package.rglob("*.py")
        if path not in (package / "proto" / "session.py", program)
        and any(word in path.read_text() for word in ("InferenceSession", "SessionOptions(", "import onnxruntime\n"))
    ]
    assert elsewhere == []


def test_onnxruntime_sends_and_leaves_nothing(tmp_path: Path) -> None:
    """Its packages have telemetry, which keeps a session file in TMPDIR and a database in the user's cache."""
    for name in ("scratch", "home"):
        (tmp_path / name).mkdir()
    places = {"TMPDIR": str(tmp_path / "scratch"), "HOME": str(tmp_path / "home")}
    environment = {**os.environ, **places, "PYTHONPATH": str(ROOT)}
    for name in ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"):
        environment.pop(name, None)
    code = "from stn_infer.proto.session import import_onnxruntime; import_onnxruntime()"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.glob("*/*"))
