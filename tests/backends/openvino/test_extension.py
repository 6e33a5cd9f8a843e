"""The OpenVINO extension: where it is found, and its ops against onnxruntime's with the same kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from benchmarks.op_files import op_file
from stn_infer import plugin
from stn_infer.api.bench import bench
from stn_infer.api.verify import verify
from stn_infer.backends.openvino import extension
from stn_infer.backends.openvino.backend import OpenVinoBackend
from stn_infer.backends.openvino.runtime import load_openvino
from stn_infer.backends.ort import OrtBackend
from stn_infer.benchmarking.request import Method
from stn_infer.cli.main import main
from stn_infer.errors import MissingDependencyError, ModelError
from stn_infer.fusion.basis import NO_CLAMP, canonical_basis
from stn_infer.fusion.fuse import fuse
from stn_infer.samplers import SamplerSpec
from tests.support.onnx_files import F16, F32, flow_model, sampler_model
from tests.support.tensorrt_parts import library_or_skip, module_or_skip

BF16 = onnx.TensorProto.BFLOAT16


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    module_or_skip("openvino", "openvino")
    library_or_skip()


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_without_it_the_functions_are_inlined(empty_cache: Path) -> None:
    content = op_file("affine", (1, 8, 8), canonical_basis((8, 8)), (8, 8), SamplerSpec()).SerializeToString()
    assert OpenVinoBackend(content).describe()["plugin"] == "none"
    with pytest.raises(MissingDependencyError, match="not built for this OpenVINO; `stn-infer plugin build"):
        OpenVinoBackend(content, plugin=True)
    result = CliRunner().invoke(main, ["plugin", "info"])
    assert "OpenVINO     no: the OpenVINO extension is not built" in result.output


def test_a_file_of_another_user_is_not_loaded(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = extension._path(load_openvino())
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert extension.find() == path
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(MissingDependencyError, match="belongs to another user"):
        extension.find()


def test_each_build_of_openvino_has_its_own(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = load_openvino()
    first = extension._path(openvino)
    assert first.parent.name.startswith(openvino.version)
    monkeypatch.setattr(openvino.module, "get_version", lambda: "2026.4.1-22983-0123456789a-releases")
    assert extension._path(load_openvino()) != first


def test_it_has_no_cuda_kernels() -> None:
    result = CliRunner().invoke(main, ["plugin", "build", "--openvino", "--cuda"])
    assert result.exit_code == 2 and "no CUDA kernels" in result.output


# ---- built: five seconds of compiling ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        result = CliRunner().invoke(main, ["plugin", "build", "--openvino"])
        assert result.exit_code == 0, result.output
        path = Path(result.output.strip())
        assert path == extension.find() and path.parent.stat().st_mode & 0o077 == 0
        yield path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def case(kind: Any, rank: int) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """theta [K], the output's size, the basis."""
    size = (6, 7) if rank == 2 else (4, 5, 6)
    rows = canonical_basis(size).astype(np.float32)
    if kind == "basis":
        rows = np.concatenate([rows, noise(4, rows.shape[1])])
    theta = np.eye(3 if kind == "projective" else rank, len(rows), dtype=np.float32)
    return theta + 0.1 * noise(*theta.shape), size, rows


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "rank", "mode"),
    [
        ("affine", 2, "bilinear"),
        ("basis", 2, "bicubic"),
        ("projective", 2, "nearest"),
        ("affine", 3, "bilinear"),
        ("basis", 3, "nearest"),
    ],
)
def test_its_ops_compute_what_onnxruntimes_do(built: Path, kind: Any, rank: int, mode: str, dtype: str) -> None:
    theta, size, basis = case(kind, rank)
    sampler = SamplerSpec.of(mode, "reflection", True)
    image_size = (9, 8) if rank == 2 else (5, 6, 7)
    content = op_file(kind, (2, *image_size), basis, size, sampler, dtype=dtype).SerializeToString()
    there, here = OpenVinoBackend(content, plugin=True), OrtBackend(content, plugin=True)
    assert there.describe()["plugin"] == "libstn_openvino.so"
    for count in (0, 1, 2, 65):
        thetas = theta + 0.1 * noise(count, *theta.shape)
        feeds = {"input": noise(count, 2, *image_size), "theta": thetas.astype(np.float32)}
        found, expected = there.run(feeds)["output"], here.run(feeds)["output"]
        if dtype == "float32":
            np.testing.assert_array_equal(found, expected)
        else:  # OpenVINO computes half precision in float32
            np.testing.assert_allclose(found, expected, atol=2e-2 if dtype == "float16" else 1e-1)


def quotient(rank: int, mode: str = "bilinear", w_min: float = 0.7) -> tuple[onnx.ModelProto, np.ndarray]:
    """A file with ProjectiveTransformer of version 2, and theta [D + 1, K]; w lies on both sides of 0.7."""
    size = (6, 7) if rank == 2 else (4, 5, 6)
    basis = np.concatenate([canonical_basis(size), 0.2 * noise(2, int(np.prod(size)))])
    sampler, offset = SamplerSpec.of(mode, "border", True), (0.1, -0.2, 0.3)[:rank]
    model = op_file("projective", (2, *(5, 6, 7)[:rank]), basis, size, sampler, w_min=w_min, offset=offset)
    return model, np.eye(rank + 1, len(basis), dtype=np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "mode"), [(2, "bilinear"), (2, "bicubic"), (3, "bilinear"), (3, "nearest")])
@pytest.mark.parametrize("w_min", [0.7, NO_CLAMP])
def test_version_2_of_its_projective_op_computes_what_onnxruntimes_does(
    built: Path, rank: int, mode: str, w_min: float
) -> None:
    model, theta = quotient(rank, mode, w_min)
    content = model.SerializeToString()
    there, here = OpenVinoBackend(content, plugin=True), OrtBackend(content, plugin=True)
    plain = OrtBackend(content, plugin=False)
    for count in (0, 1, 65):
        thetas = (theta + 0.1 * noise(count, *theta.shape)).astype(np.float32)
        feeds = {"input": noise(count, 2, *(5, 6, 7)[:rank]), "theta": thetas}
        found = there.run(feeds)["output"]
        np.testing.assert_array_equal(found, here.run(feeds)["output"])
        off = np.abs(found - plain.run(feeds)["output"]) > 1e-3
        assert not off.any() if mode != "nearest" else off.sum() * 200 <= off.size


def changed(name: str, value: Any) -> bytes:
    """The file with another value of an attribute; None: without it."""
    model, _ = quotient(3)
    (node,) = model.graph.node
    kept = [entry for entry in node.attribute if entry.name != name]
    del node.attribute[:]
    node.attribute.extend(kept if value is None else [*kept, onnx.helper.make_attribute(name, value)])
    return model.SerializeToString()


@pytest.mark.slow
def test_what_does_not_fit_in_version_2_is_one_line(built: Path) -> None:
    core = load_openvino().module.Core()
    core.add_extension(str(built))
    for name, value, words in (  # in the extension itself: the package's own check rejects these files before
        ("w_min", float("nan"), "expected a w_min that is a number, got NaN"),
        ("offset", [0.0, 0.0], "expected an offset of 3 numbers, got 2"),
        ("offset", [0.0, 0.0, float("inf")], "expected an offset of finite numbers"),
        ("grid_shape", [0, 4, -5, 6, 3], "expected sizes in grid_shape that are at least 0, got -5"),
        ("plugin_version", "3", r"has version 3 of this op, .* knows it up to version 2: update stn-infer"),
        ("plugin_version", "1", "w_min and offset are attributes of every node of version 2, and of none of version 1"),
        ("plugin_version", "two", "expected a plugin_version from 1 on, got 'two'"),
        ("w_min", None, "w_min and offset are attributes of every node of version 2"),
        ("offset", None, "w_min and offset are attributes of every node of version 2"),
    ):
        with pytest.raises(RuntimeError, match=words):
            core.read_model(changed(name, value))
    model, _ = quotient(3)
    for dim in model.graph.input[1].type.tensor_type.shape.dim[1:]:
        dim.dim_param = f"any {dim.dim_value}"
    backend = OpenVinoBackend(model.SerializeToString(), plugin=True)
    for shape, words in (
        ((1, 3, 6), "theta is .* not .*3.*6"),
        ((1, 5, 6), "theta is .* not .*5.*6"),
        ((1, 4, 5), "basis is .* with the K of theta, not .*6.*120"),
        ((1, 4, 0), "theta is .* not .*4.*0"),
    ):
        with pytest.raises(ModelError, match=words) as info:
            backend.run({"input": noise(1, 2, 5, 6, 7), "theta": np.zeros(shape, np.float32)})
        assert "\n" not in str(info.value)


@pytest.mark.slow
@pytest.mark.parametrize("types", [(F32, F32), (F16, F32), (F16, F16), (BF16, F32)])
@pytest.mark.parametrize("rank", [2, 3])
def test_its_sampler_computes_what_onnxruntimes_does(built: Path, rank: int, types: tuple[int, int]) -> None:
    size = (9, 8) if rank == 2 else (5, 6, 7)
    content = sampler_model(*types, size=size, spec=SamplerSpec("bilinear", "reflection", True)).SerializeToString()
    there, here = OpenVinoBackend(content, plugin=True), OrtBackend(content, plugin=True)
    for count in (1, 65):
        feeds = {"image": noise(count, 3, *size), "points": noise(count, *(4 for _ in size), rank)}
        found, expected = there.run(feeds)["warped"], here.run(feeds)["warped"]
        # OpenVINO computes half precision in float32
        np.testing.assert_allclose(found, expected, atol=1e-6 if types == (F32, F32) else 1e-1)


@pytest.mark.slow
def test_the_samplers_shapes_that_do_not_fit_are_one_line(built: Path) -> None:
    model = sampler_model()
    model.graph.input[1].type.tensor_type.shape.dim[3].dim_param = "coordinates"
    backend = OpenVinoBackend(model.SerializeToString(), plugin=True)
    with pytest.raises(ModelError, match=r"expected a grid \[N, H, W, 2\].* got") as info:
        backend.run({"image": noise(2, 3, 7, 9), "points": noise(2, 4, 4, 3)})
    assert "\n" not in str(info.value)


@pytest.mark.slow
def test_shapes_that_do_not_fit_are_one_line(built: Path) -> None:
    theta, size, basis = case("basis", 2)
    model = op_file("basis", (1, 9, 8), basis[:, :-1], size, SamplerSpec())
    backend = OpenVinoBackend(model.SerializeToString(), plugin=True)
    with pytest.raises(ModelError, match=r"the P of basis .* does not match grid_shape") as info:
        backend.run({"input": noise(1, 1, 9, 8), "theta": theta[None]})
    assert "\n" not in str(info.value)
    model = op_file("basis", (1, 9, 8), basis, size, SamplerSpec())
    for name, value in (("mode", "cubist"), ("padding_mode", "wrap"), ("kind", "bent")):
        wrong = onnx.ModelProto.FromString(model.SerializeToString())
        (attribute,) = (entry for entry in wrong.graph.node[0].attribute if entry.name == name)
        attribute.s = value.encode()
        with pytest.raises(ModelError, match=rf"^OpenVINO rejects the model: .*expected {name} .*, got {value}"):
            OpenVinoBackend(wrong.SerializeToString(), plugin=True)


@pytest.mark.slow
def test_another_openvino_is_refused_when_it_is_loaded(built: Path, tmp_path: Path) -> None:
    openvino = load_openvino()
    options = {
        "OpenVINO_DIR": openvino.folder / "cmake",
        "STN_LIBRARY": plugin.library_path(),
        "STN_OPENVINO_VERSION": "2025.0.0-1-other",
    }
    plugin.compile_project(plugin.OPENVINO_SOURCES, tmp_path, options, "the OpenVINO extension")
    with pytest.raises(RuntimeError, match=r"was built for OpenVINO 2025\.0\.0-1-other, this is 20"):
        openvino.module.Core().add_extension(str(tmp_path / extension.FILE_NAME))


@pytest.mark.slow
def test_a_file_with_other_functions_keeps_only_its_ops(built: Path) -> None:
    theta, size, basis = case("affine", 2)
    model = op_file("affine", (1, 9, 8), basis, size, SamplerSpec())
    double = onnx.helper.make_function(
        "own",
        "Double",
        ["a"],
        ["b"],
        [onnx.helper.make_node("Add", ["a", "a"], ["b"])],
        [onnx.helper.make_opsetid("", 18)],
    )
    model.functions.append(double)
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    (node,) = model.graph.node
    node.output[0] = "warped"
    model.graph.node.append(onnx.helper.make_node("Double", ["warped"], ["output"], domain="own"))
    feeds = {"input": noise(2, 1, 9, 8), "theta": np.stack([theta, theta])}
    content = model.SerializeToString()
    found = OpenVinoBackend(content, plugin=True).run(feeds)["output"]
    np.testing.assert_array_equal(found, OrtBackend(content, plugin=True).run(feeds)["output"])


@pytest.mark.slow
def test_verify_and_bench_take_it(built: Path, tmp_path: Path) -> None:
    _, size, basis = case("affine", 2)
    path = tmp_path / "model.onnx"
    path.write_bytes(op_file("affine", (1, 9, 8), basis, size, SamplerSpec()).SerializeToString())
    (report,) = verify(path, backends=["openvino-fused"]).backends
    assert report.status == "passed"
    method = Method(rounds=1, seconds=0.01, samples=6, turns=1, warmup_seconds=0.0, warmup_limit=0.1, isolate=False)
    result = bench(str(path), batch_sizes=(2,), variants=("openvino", "openvino-fused"), method=method)
    for name, op in (("openvino", "GridSample"), ("openvino-fused", "stn op")):
        row = result.get(name, 2)
        assert row.status == "timed", row.reason
        (sampler,) = row.samplers
        assert sampler.op == op and row.stages is not None and row.stages["sampling"] > 0
    assert result.get("openvino-fused", 2).runs_on["plugin"] == extension.FILE_NAME


@pytest.mark.slow
@pytest.mark.parametrize(("image", "grid"), [(F32, F32), (F16, F16), (F32, F16)])
def test_any_grid_is_sampled_as_in_onnxruntime(built: Path, image: int, grid: int) -> None:
    model, findings = fuse(flow_model(image=image, grid=grid))
    assert [finding.op for finding in findings] == ["Sampler"]
    there = OpenVinoBackend(model.SerializeToString(), plugin=True)
    here = OrtBackend(model.SerializeToString(), plugin=True)
    for count in (1, 9):
        feeds = {"x": noise(count, 1, 8, 8)}
        found, expected = (backend.run(feeds)["y"].astype(np.float32) for backend in (there, here))
        np.testing.assert_allclose(found, expected, atol=1e-5 if image == F32 else 5e-3)
