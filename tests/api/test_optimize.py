"""`optimize`: its results equal the original's, an unverified result is not written, external data stay external."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from stn_infer.api.optimize import optimize
from stn_infer.errors import ModelError, OutputError, UsageError, VerificationError
from stn_infer.files import open_atomically
from stn_infer.fusion.fuse import Finding, fuse
from stn_infer.fusion.samplers import spatial_nodes
from stn_infer.proto.load import load_model
from stn_infer.proto.traversal import opset_of
from stn_infer.repairs.equivalence import TOLERANCE
from tests.support.onnx_files import (
    F32,
    affine_grid_model,
    affine_model,
    check_only_samplers_changed,
    constant,
    flow_model,
    half_model,
    make,
)

MIB = 1 << 20


def save(model: onnx.ModelProto, folder: Path, **options: Any) -> Path:
    path = folder / "in.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, path, **options)
    return path


def run(path: Path, inputs: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def images(count: int = 5, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(9).standard_normal((count, 1, 8, 8)).astype(dtype)


@pytest.mark.parametrize("opset", [16, 17, 18, 19])
def test_a_linear_grid_is_fused_in_the_files_own_opset(opset: int, tmp_path: Path) -> None:
    path = save(affine_model(opset=opset, padding_mode="border"), tmp_path)
    report = optimize(path, tmp_path / "out.onnx")
    assert report.fused == 1 and report.opset == report.original_opset == opset
    written = onnx.load(tmp_path / "out.onnx")
    assert len(spatial_nodes(written)) == 1 and opset_of(written) == opset
    onnx.checker.check_model(written)
    assert report.size == (tmp_path / "out.onnx").stat().st_size
    x = images()
    np.testing.assert_allclose(run(tmp_path / "out.onnx", {"x": x})[0], run(path, {"x": x})[0], atol=1e-5)


@pytest.mark.parametrize("volume", [False, True])
def test_affine_grid_is_replaced_and_the_opset_20_trap_is_fixed(volume: bool, tmp_path: Path) -> None:
    path = save(affine_grid_model(volume=volume), tmp_path)
    report = optimize(path, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx")
    assert report.fused == 1 and "AffineGrid" not in {node.op_type for node in written.graph.node}
    assert report.opset == (20 if volume else 19)
    generator = np.random.default_rng(2)
    size = (4, 6, 8) if volume else (6, 8)
    feeds = {
        "x": generator.standard_normal((3, 1, *size)).astype(np.float32),
        "theta": generator.uniform(-1, 1, (3, len(size), len(size) + 1)).astype(np.float32),
    }
    np.testing.assert_allclose(run(tmp_path / "out.onnx", feeds)[0], run(path, feeds)[0], atol=2e-5)


def test_without_fix_only_the_grids_change(tmp_path: Path) -> None:
    path = save(affine_model(opset=20, mode="linear"), tmp_path)
    report = optimize(path, tmp_path / "out.onnx", fix=False)
    assert (report.fused, report.opset, report.repairs) == (1, 20, ())


def test_a_flow_field_is_sampled_by_the_libraries_op_and_noted(tmp_path: Path) -> None:
    path = save(flow_model(), tmp_path)
    report = optimize(path, tmp_path / "out.onnx")
    assert (report.fused, report.sampled) == (0, 1) and "'flow' (Conv)" in report.findings[0].message
    check_only_samplers_changed(flow_model(), onnx.load(tmp_path / "out.onnx"))
    text = str(report)
    assert "sample: GridSample became stn::Sampler: grid 'grid' is not provably linear: 'flow' (Conv)" in text
    assert "0 of 1 samplers fused, 1 written as stn::Sampler" in text
    again = optimize(tmp_path / "out.onnx", tmp_path / "again.onnx")
    assert (again.fused, again.sampled) == (0, 0) and "sample: stays stn::Sampler: grid 'grid'" in str(again)


@pytest.mark.parametrize("source", ["plain", "fused", "external"])
def test_inlined_functions_leave_plain_operators(source: str, tmp_path: Path) -> None:
    external = {"save_as_external_data": True, "size_threshold": 512} if source == "external" else {}
    model = fuse(affine_model())[0] if source == "fused" else affine_model(ir_version=8)
    path = save(model, tmp_path, **external)
    report = optimize(path, tmp_path / "out.onnx", functions="inline")
    assert report.fused == (source != "fused") and "written with plain operators" in report.notes[-1]
    written = onnx.load(tmp_path / "out.onnx")
    assert not written.functions and [entry.domain for entry in written.opset_import] == [""]
    assert [node.op_type for node in written.graph.node][-4:] == ["MatMul", "Transpose", "Reshape", "GridSample"]
    assert written.ir_version == model.ir_version
    np.testing.assert_allclose(run(tmp_path / "out.onnx", {"x": images()})[0], run(path, {"x": images()})[0], atol=1e-5)


def test_functions_are_kept_or_inlined(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="functions is one of keep, inline, not 'drop'"):
        optimize(save(affine_model(), tmp_path), tmp_path / "out.onnx", functions="drop")  # type: ignore[arg-type]


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    path = save(affine_model(), tmp_path)
    optimize(path, tmp_path / "once.onnx")
    optimize(tmp_path / "once.onnx", tmp_path / "twice.onnx")
    assert (tmp_path / "twice.onnx").read_bytes() == (tmp_path / "once.onnx").read_bytes()


def test_an_old_file_with_onnxruntimes_own_sampler(tmp_path: Path) -> None:
    path = save(affine_model(opset=11, domain="com.microsoft", ir_version=6), tmp_path)
    report = optimize(path, tmp_path / "out.onnx")
    assert (report.fused, report.original_opset, report.opset) == (1, 11, 16)
    assert report.notes == ()
    x = images()
    np.testing.assert_allclose(run(tmp_path / "out.onnx", {"x": x})[0], run(path, {"x": x})[0], atol=1e-5)


def test_a_file_that_cannot_run_is_compared_after_its_repair(tmp_path: Path) -> None:
    path = save(affine_model(opset=28, mode="linear", ir_version=14), tmp_path)
    report = optimize(path, tmp_path / "out.onnx")
    assert report.fused == 1 and report.opset == 19
    assert "cannot run the original" in report.notes[0]
    np.testing.assert_allclose(
        run(tmp_path / "out.onnx", {"x": images()})[0],
        run(save(affine_model(), tmp_path), {"x": images()})[0],
        atol=1e-5,
    )


def test_dynamic_sizes_are_guessed_or_given(tmp_path: Path) -> None:
    nodes = [helper.make_node("GridSample", ["x", "grid"], ["s"]), helper.make_node("Add", ["s", "bias"], ["y"])]
    model = make(
        nodes,
        {"x": (F32, ["n", 1, "h", "w"]), "grid": (F32, ["n", 4, 4, 2])},
        {"y": (F32, ["n", 1, 4, 4])},
        [constant(0.5, "bias", np.float32)],
    )
    report = optimize(save(model, tmp_path), tmp_path / "out.onnx")
    assert report.comparison.runs == "batch 1 and 3, size 32"
    report = optimize(save(model, tmp_path), tmp_path / "out.onnx", input_shapes={"x": (1, 5, 7)})
    assert report.comparison.runs == "batch 1 and 3"
    with pytest.raises(UsageError, match=r"input 'x' is \[n, 1, h, w\]; --input-shape says \[2, 5, 7\]"):
        optimize(save(model, tmp_path), tmp_path / "out.onnx", input_shapes={"x": (2, 5, 7)})
    with pytest.raises(UsageError, match="no input 'z'; its inputs are x, grid"):
        optimize(save(model, tmp_path), tmp_path / "out.onnx", input_shapes={"z": (2, 5, 7)})


def test_dynamic_sizes_that_cannot_be_guessed(tmp_path: Path) -> None:
    model = make(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        {"x": (F32, ["n", 1, "h", "w"])},
        {"y": (F32, None)},
        [constant([0, 37, 41], "shape")],
    )
    path = save(model, tmp_path)
    with pytest.raises(VerificationError, match=r"cannot be verified and was not written: .*--input-shape NAME="):
        optimize(path, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
    assert optimize(path, tmp_path / "out.onnx", input_shapes={"": (1, 41, 37)}).fused == 0


def test_indices_among_the_inputs(tmp_path: Path) -> None:
    model = affine_model()
    model.graph.node[-1].output[0] = "sampled"
    model.graph.node.append(helper.make_node("Gather", ["sampled", "rows"], ["y"], axis=2))
    model.graph.input.append(helper.make_tensor_value_info("rows", TensorProto.INT64, [3]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", F32, ["n", 1, 3, 8]))
    assert optimize(save(model, tmp_path), tmp_path / "out.onnx").fused == 1


def test_half_precision_is_compared_in_float32(tmp_path: Path) -> None:
    report = optimize(save(half_model(), tmp_path), tmp_path / "out.onnx")
    assert report.comparison.widened and report.comparison.rounding is not None
    assert all(output.scaled <= TOLERANCE for output in report.comparison.outputs)
    assert "half precision: compared in float32" in str(report)


def _nudged(change: Callable[[onnx.ModelProto], None]) -> Callable[..., Any]:
    def wrong(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
        fused, findings = fuse(model)
        change(fused)
        return fused, findings

    return wrong


def _sampler(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type in ("SpatialTransformer", "GridSample"))


def _set(name: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        (attribute,) = (attribute for attribute in _sampler(model).attribute if attribute.name == name)
        attribute.CopyFrom(helper.make_attribute(name, value))

    return change


def _swap_axes(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name.endswith("basis"):
            rows = np.array(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(rows[[1, 0, 2]], tensor.name))


def _half_pixel(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name.endswith("basis"):
            rows = np.array(onnx.numpy_helper.to_array(tensor))
            rows[0] += 0.001
            tensor.CopyFrom(onnx.numpy_helper.from_array(rows, tensor.name))


def _rename_output(model: onnx.ModelProto) -> None:
    _sampler(model).output[0] = model.graph.output[0].name = "z"


WRONG: dict[str, Callable[[onnx.ModelProto], None]] = {
    "nearest for bilinear": _set("mode", "nearest"),
    "corners": _set("align_corners", 1),
    "border": _set("padding_mode", "border"),
    "swapped axes": _swap_axes,
    "a thousandth off": _half_pixel,
    "another name": _rename_output,
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_rewrite_is_not_written(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stn_infer.repairs.passes.fuse", _nudged(WRONG[what]))
    path = save(affine_model(), tmp_path)
    output = tmp_path / "out.onnx"
    output.write_bytes(b"kept")
    with pytest.raises(VerificationError) as caught:
        optimize(path, output)
    assert str(path) in str(caught.value)
    assert output.read_bytes() == b"kept" and sorted(os.listdir(tmp_path)) == ["in.onnx", "out.onnx"]


def test_a_wrong_rewrite_of_a_half_precision_model_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision's rounding would hide an error of 1e-3, which the comparison in float32 finds."""

    def wrong(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        for tensor in copy.graph.initializer:
            if tensor.name == "mesh":
                values = np.array(onnx.numpy_helper.to_array(tensor))
                values[:, 0] += np.float16(0.001)
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, "mesh"))
        return copy, (Finding("sample", "grid", True, "", "SpatialTransformer", written=True),)

    monkeypatch.setattr("stn_infer.repairs.passes.fuse", wrong)
    with pytest.raises(VerificationError):
        optimize(save(half_model(), tmp_path), tmp_path / "out.onnx")


def test_a_file_that_cannot_run_is_an_error(tmp_path: Path) -> None:
    model = affine_model()
    model.graph.node[-1].op_type = "Unheard"
    model.graph.node[-1].domain = "somewhere"
    model.opset_import.append(helper.make_opsetid("somewhere", 1))
    with pytest.raises(ModelError, match="onnxruntime"):
        optimize(save(model, tmp_path), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such folder"):
        optimize(save(affine_model(), tmp_path), tmp_path / "nowhere" / "out.onnx")


# External data and large models.

EXTERNAL: dict[str, Any] = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 200}


def test_external_data_stay_external(tmp_path: Path) -> None:
    path = save(affine_model(), tmp_path, **EXTERNAL)
    report = optimize(path, tmp_path / "out.onnx")
    assert report.fused == 1
    written = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    places = {entry.value for t in written.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert places == set() or places == {"out.onnx.data"}
    assert report.size == sum((tmp_path / name).stat().st_size for name in ("out.onnx", "out.onnx.data"))
    x = images()
    np.testing.assert_allclose(run(tmp_path / "out.onnx", {"x": x})[0], run(path, {"x": x})[0], atol=1e-5)


def test_the_sources_data_are_not_replaced(tmp_path: Path) -> None:
    path = save(affine_model(), tmp_path, **{**EXTERNAL, "location": "out.onnx.data"})
    with pytest.raises(UsageError, match="would replace"):
        optimize(path, tmp_path / "out.onnx")
    with pytest.raises(UsageError, match="would replace"):
        optimize(path, path)


def large_model(folder: Path, size: int, *, external: bool) -> Path:
    """x [n, 1, 8, 8] through a spatial transformer and ``size`` bytes of weights; sparse on disk."""
    model = affine_model()
    model.graph.node[-1].output[0] = "warped"
    width = 1 << 12
    count = size // (4 * 64 * width)
    model.graph.node.append(helper.make_node("Flatten", ["warped"], ["h"], name="flat"))
    for index in range(count):
        model.graph.node.append(helper.make_node("MatMul", ["h", f"big{index}"], [f"m{index}"], name=f"big_{index}"))
    sums = [f"m{index}" for index in range(count)]
    model.graph.node.append(helper.make_node("Sum", sums, ["y"], name="sum"))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", F32, ["n", width]))
    with (folder / "big.data").open("wb") as file:
        file.truncate(count * 4 * 64 * width)
        for index in range(count):
            file.seek(index * 4 * 64 * width + 40)
            file.write(np.float32(index + 1).tobytes())
    for index in range(count):
        tensor = TensorProto(name=f"big{index}", data_type=F32, dims=[64, width])
        tensor.data_location = TensorProto.EXTERNAL
        length = 4 * 64 * width
        for key, value in (("location", "big.data"), ("offset", str(index * length)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        model.graph.initializer.append(tensor)
    path = folder / "in.onnx"
    path.write_bytes(model.SerializeToString())
    if not external:
        path.write_bytes(load_model(path).SerializeToString())
        (folder / "big.data").unlink()
    return path


def peak_memory(arguments: list[str], folder: Path) -> tuple[int, str]:
    """(the largest resident set of a run of the command line, children included; its output)."""
    program = (
        "import resource, subprocess, sys\n"
        "code = subprocess.run([sys.executable, '-m', 'stn_infer.cli.main', *sys.argv[1:]]).returncode\n"
        "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024, code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, cwd=folder
    )
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "PEAK" and last[2] == "0", done.stdout + done.stderr
    return int(last[1]), done.stdout


@pytest.mark.parametrize("external", [True, False])
def test_a_large_model_needs_little_memory(external: bool, tmp_path: Path) -> None:
    path = large_model(tmp_path, 128 * MIB, external=external)
    peak, text = peak_memory(["optimize", str(path), "-o", str(tmp_path / "out.onnx")], tmp_path)
    assert "1 of 1 samplers fused" in text
    assert peak < 2 * 128 * MIB + 200 * MIB
    assert (tmp_path / "out.onnx.data").exists() == external
    x = images()
    np.testing.assert_allclose(run(tmp_path / "out.onnx", {"x": x})[0], run(path, {"x": x})[0], atol=1e-4)


@pytest.mark.slow
def test_a_model_over_two_gigabytes(tmp_path: Path) -> None:
    """2.25 GB of weights, sparse on disk, a few of them not zero."""
    size = 2304 * MIB
    path = large_model(tmp_path, size, external=True)
    peak, text = peak_memory(["optimize", str(path), "-o", str(tmp_path / "out.onnx")], tmp_path)
    assert "1 of 1 samplers fused" in text
    assert peak < 2 * size + 200 * MIB
    assert (tmp_path / "out.onnx.data").stat().st_size >= size
    assert (tmp_path / "out.onnx.data").stat().st_blocks * 512 < 200 * MIB, "holes stay holes"
    x = images(2)
    np.testing.assert_allclose(run(tmp_path / "out.onnx", {"x": x})[0], run(path, {"x": x})[0], atol=1e-4)
    peak, text = peak_memory(["lint", str(tmp_path / "out.onnx")], tmp_path)
    assert peak < size and "fused" in text


def test_no_temporary_file_is_left(tmp_path: Path) -> None:
    optimize(save(affine_model(), tmp_path), tmp_path / "out.onnx")
    assert sorted(os.listdir(tmp_path)) == ["in.onnx", "out.onnx"]


def test_an_older_pair_is_kept_where_the_graph_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, output = save(affine_model(), tmp_path, **EXTERNAL), tmp_path / "out.onnx"
    older = {output: b"graph", tmp_path / "out.onnx.data": b"data"}
    for file, content in older.items():
        file.write_bytes(content)

    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(28, "No space left on device")

    @contextlib.contextmanager
    def opened(target: Path) -> Iterator[Any]:
        with open_atomically(target) as file:
            yield Full() if target == output else file

    monkeypatch.setattr("stn_infer.api.optimize.open_atomically", opened)
    with pytest.raises(OutputError, match="No space left"):
        optimize(path, output)
    assert {file: file.read_bytes() for file in older} == older
    assert sorted(os.listdir(tmp_path)) == ["in.onnx", "out.onnx", "out.onnx.data", "weights.bin"]


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_tolerance_is_a_positive_number(tolerance: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="positive number"):
        optimize(save(affine_model(), tmp_path), tmp_path / "out.onnx", tolerance=tolerance)
