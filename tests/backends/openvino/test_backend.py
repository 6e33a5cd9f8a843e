"""The OpenVINO backend: what it accepts and rejects, its threads, and files with functions and external data."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_infer.api.open import open_backend
from stn_infer.api.run import run
from stn_infer.api.verify import verify
from stn_infer.backends.base import Backend
from stn_infer.backends.openvino.backend import OpenVinoBackend
from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import InputError, ModelError, UsageError
from stn_infer.fusion.fuse import fuse
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.rule import Preprocess
from tests.support.batch_axes import KINDS, file_of
from tests.support.onnx_files import F32, affine_model, half_model, make
from tests.support.tensorrt_parts import module_or_skip


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    module_or_skip("openvino", "openvino")


def tiny_model(batch: str | int = "N", dtype: int = TensorProto.FLOAT, op: str = "Neg", domain: str = "") -> bytes:
    """``y = op(x)`` on [batch, 3], with metadata."""
    node = helper.make_node(op, ["x"], ["y"], domain=domain)
    domains = (domain,) if domain else ()
    model = make([node], {"x": (dtype, [batch, 3])}, {"y": (dtype, [batch, 3])}, [], domains=domains)
    helper.set_model_props(model, ModelMetadata(Preprocess(), ("a", "b", "c"), "tiny").to_props())
    return model.SerializeToString()


def batch_of(count: int, dtype: type = np.float32) -> np.ndarray:
    return np.arange(count * 3, dtype=dtype).reshape(count, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_axes_are_those_that_onnxruntime_finds(kind: str) -> None:
    content = file_of(kind).SerializeToString()
    found, wanted = OpenVinoBackend(content).inputs, OrtBackend(content).inputs
    assert [(it.name, it.shape, it.batch, it.batch_axis) for it in found] == [
        (it.name, it.shape, it.batch, it.batch_axis) for it in wanted
    ]


def test_inputs_outputs_and_metadata_are_described() -> None:
    backend = OpenVinoBackend(tiny_model())
    assert isinstance(backend, Backend)
    assert [(spec.name, spec.shape, spec.dtype) for spec in backend.inputs] == [("x", (None, 3), np.dtype("float32"))]
    assert [spec.name for spec in backend.outputs] == ["y"]
    assert backend.metadata == ModelMetadata(Preprocess(), ("a", "b", "c"), "tiny")
    described = backend.describe()
    assert (described["runtime"], described["plugin"], described["threads"]) == (
        "OpenVINO",
        "none" if backend._plugin is None else "libstn_openvino.so",
        "OpenVINO's choice",
    )


@pytest.mark.parametrize("batch", ["N", 4])
def test_every_batch_size_runs(batch: str | int) -> None:
    backend = OpenVinoBackend(tiny_model(batch=batch), threads=1)
    assert backend.inputs[0].shape == (None, 3)
    for count in (0, 1, 4, 5, 9):
        found = backend.run({"x": batch_of(count)})["y"]
        np.testing.assert_array_equal(found, -batch_of(count))
        assert found.shape == (count, 3)


@pytest.mark.parametrize("kind", ["float64", "float16", "int64", "uint8", "bool"])
def test_types_of_inputs(kind: str) -> None:
    op = "Not" if kind == "bool" else "Identity"
    content = tiny_model(dtype=helper.np_dtype_to_tensor_dtype(np.dtype(kind)), op=op)
    backend = OpenVinoBackend(content)
    assert backend.inputs[0].dtype == backend.outputs[0].dtype == np.dtype(kind)
    x = batch_of(2).astype(kind)
    for _ in range(3):
        np.testing.assert_array_equal(backend.run({"x": x})["y"], ~x if kind == "bool" else x)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": batch_of(1), "z": batch_of(1)}, "given: x, z"),
        ({"x": batch_of(1, np.float64)}, "takes float32 values, given float64"),
        ({"x": np.zeros((2, 4), np.float32)}, r"takes shape \[\?, 3\], given \[2, 4\]"),
    ],
)
def test_inputs_that_do_not_match_are_rejected(inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(InputError, match=words):
        OpenVinoBackend(tiny_model()).run(inputs)


def test_what_it_cannot_open_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"^OpenVINO rejects the model: No conversion rule found .* nowhere\.Neg"
    ) as info:
        OpenVinoBackend(tiny_model(domain="nowhere"))
    assert "\n" not in str(info.value) and "src/" not in str(info.value)
    with pytest.raises(ModelError, match="'x' has type bf16"):
        OpenVinoBackend(tiny_model(dtype=TensorProto.BFLOAT16))
    with pytest.raises(ModelError, match="does not exist"):
        OpenVinoBackend(tmp_path / "none.onnx")
    with pytest.raises(UsageError, match="runs on the CPU: device is cpu, not 'cuda:0'"):
        OpenVinoBackend(tiny_model(), "cuda:0")


def test_a_failure_while_it_runs_is_one_line() -> None:
    weights = [numpy_helper.from_array(np.array([2, 3]), "shape")]
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], name="reshape")
    model = make([node], {"x": (F32, ["n", 3])}, {"y": (F32, [2, 3])}, weights)
    backend = OpenVinoBackend(model.SerializeToString(), label="m.onnx")
    with pytest.raises(ModelError, match=r"^OpenVINO fails while running m\.onnx on x \[5, 3\]: ") as info:
        backend.run({"x": batch_of(5)})
    assert "\n" not in str(info.value) and "src/" not in str(info.value)
    np.testing.assert_array_equal(backend.run({"x": batch_of(2)})["y"], batch_of(2))  # and it still runs
    backend.close()
    with pytest.raises(ModelError, match="closed"):
        backend.run({"x": batch_of(2)})


@pytest.mark.parametrize("op", ["Cast", "Identity", "Reshape"])
def test_an_input_that_is_an_output_as_it_is(op: str) -> None:
    """OpenVINO writes such an output to the input's memory, which must not be the caller's."""
    attributes = {"to": TensorProto.FLOAT} if op == "Cast" else {}
    inputs = ["x", "shape"] if op == "Reshape" else ["x"]
    nodes = [helper.make_node(op, inputs, ["same"], **attributes), helper.make_node("Relu", ["x"], ["y"])]
    weights = [numpy_helper.from_array(np.array([-1, 64]), "shape")]
    model = make(nodes, {"x": (F32, ["n", 64])}, {"y": (F32, None), "same": (F32, ["n", 64])}, weights)
    backend = OpenVinoBackend(model.SerializeToString())
    generator = np.random.default_rng(0)
    for count in (3, 1, 8, 3, 200) * 4:
        x = generator.standard_normal((count, 64)).astype(np.float32)
        np.testing.assert_array_equal(backend.run({"x": x})["same"], x)


@pytest.mark.parametrize("threads", [1, 2])
def test_callers_at_once_get_their_own_results(threads: int) -> None:
    backend = OpenVinoBackend(tiny_model(), threads=threads)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: backend.run({"x": batch_of(3) * index})["y"], range(50)))
    for index, value in enumerate(found):
        np.testing.assert_array_equal(value, -batch_of(3) * index)


@pytest.mark.parametrize("stored", ["embedded", "external", "external, plain"])
def test_files_with_functions_and_external_data(stored: str, tmp_path: Path) -> None:
    model = affine_model(mode="bicubic", padding_mode="border")
    model = model if "plain" in stored else fuse(model)[0]
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data="external" in stored, size_threshold=512)
    x = np.random.default_rng(0).standard_normal((3, 1, 8, 8)).astype(np.float32)
    expected = OrtBackend(path, plugin=False).run({"x": x})["y"]
    found = open_backend(path, "openvino", threads=1).run({"x": x})["y"]
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_half_precision_files_compute_in_float32() -> None:
    model = fuse(half_model(8))[0].SerializeToString()
    generator = np.random.default_rng(1)
    feeds = {
        "x": generator.standard_normal((2, 1, 8, 8)).astype(np.float16),
        "theta": generator.uniform(-1, 1, (2, 2, 3)).astype(np.float16),
    }
    expected = OrtBackend(model, plugin=False).run(feeds)["y"]
    found = OpenVinoBackend(model, plugin=False).run(feeds)["y"]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), atol=2e-3)


def test_run_and_verify_take_it(tmp_path: Path) -> None:
    path, images = tmp_path / "model.onnx", tmp_path / "images.npy"
    path.write_bytes(fuse(affine_model(padding_mode="border"))[0].SerializeToString())
    x = np.random.default_rng(0).standard_normal((30, 1, 8, 8)).astype(np.float32)
    np.save(images, x)
    summary = run(path, images, tmp_path / "out", backend="openvino", batch_size=4, format="npz", workers=3)
    assert (summary.ok, summary.failed) == (30, 0)
    with np.load(tmp_path / "out" / "predictions-00000.npz") as found:
        expected = OrtBackend(path, plugin=False).run({"x": x})["y"]
        np.testing.assert_allclose(found["y"], expected, atol=1e-5)
    (report,) = verify(path, backends=["openvino"]).backends
    assert report.status == "passed" and report.about.startswith("OpenVINO 20")
    assert all(held for check in report.checks for held in check.invariants.values())
