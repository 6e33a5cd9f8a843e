"""``inspect_engine`` and ``stn-infer inspect``: engines with and without a sidecar, and files that are not engines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

import stn_infer
from stn_infer.backends.tensorrt import inspection, runtime
from stn_infer.backends.tensorrt.engine_cache import EngineKey, InputProfile, Sidecar, sidecar_path, write_engine
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT
from stn_infer.cli.main import main
from stn_infer.errors import MissingDependencyError
from tests.support.onnx_files import flow_model
from tests.support.tensorrt_engines import CONVOLUTION, SPATIAL, Module, plan_of

GPU = Gpu("a GPU", "sm89")
SHAPES = InputProfile("x", (1, 1, 4, 4), (2, 1, 4, 4), (8, 1, 4, 4))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    """A TensorRT 11.4 on a machine with a GPU."""
    made = Module()
    monkeypatch.setattr(runtime, "load_runtime", lambda name: TensorRT(name, made, made.version))
    monkeypatch.setattr(runtime, "current_gpu", lambda index: GPU)
    monkeypatch.setattr(inspection, "current_device", lambda index: nullcontext())
    return made


def written(path: Path, plan: bytes, **change: Any) -> Path:
    """An engine with its sidecar."""
    key: dict[str, Any] = {
        "graph_sha256": "a", "weights_sha256": "b", "runtime": "tensorrt", "runtime_version": "11.4.0.106",
        "gpu": GPU.name, "sm": GPU.sm, "plugin_sha256": "", "profiles": ((SHAPES,),), "precision": "float32",
        "flags": ("tf32",),
    }  # fmt: skip
    digest = hashlib.sha256(plan).hexdigest()
    write_engine(path, plan, Sidecar(EngineKey(**key | change), digest, len(plan), "m.onnx", "2026-01-01", 1.0, ("a",)))
    return path


def inspected(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def test_an_engine_with_its_sidecar(module: Module, tmp_path: Path) -> None:
    path = written(tmp_path / "m.engine", plan_of(refittable=True, warns=["a\nwarning", "a\nwarning"]))
    report = stn_infer.inspect_engine(path)
    assert report.sidecar is not None and report.content is not None
    assert report.plugins == (
        "SpatialTransformer: SpatialTransformer affine bilinear zeros half_pixel 4x4 runs node_grid_sampler",
    )
    assert report.warnings == ("a warning",)
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80 or len(str(path)) > 60
    size = len(path.read_bytes()) / 1024
    text = str(report)
    assert f"tensorrt 11.4.0.106, {size:.0f} KiB" in " ".join(text.split())
    for wanted in (
        "built from m.onnx at 2026-01-01",
        "for a GPU, sm89, float32, tf32",
        "2 layers, 1.5 MiB of device memory per context, refittable",
        "input x: float ?x1x4x4, Row major linear FP32 format",
        "output y: half ?x3, Row major linear FP16 format",
        "profile 0: x=1x1x4x4:2x1x4x4:8x1x4x4",
        "plugin SpatialTransformer: SpatialTransformer affine bilinear zeros half_pixel",
    ):
        assert wanted in lines, wanted
    assert lines[-3:] == [
        "   #  type             precision    ONNX nodes",
        "   0  PluginV3         fp32         node_grid_sampler",
        "   1  CaskConvolution  int8 > fp16  conv, outer (Block), relu[0]",
    ]


def test_all_profiles_are_shown_with_and_without_a_gpu(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    larger = InputProfile("x", (9, 1, 4, 4), (64, 1, 4, 4), (64, 1, 4, 4))
    plan = plan_of(profiles=[{it.name: [it.min, it.opt, it.max]} for it in (SHAPES, larger)])
    path = written(tmp_path / "m.engine", plan, profiles=((SHAPES,), (larger,)))
    wanted = ["profile 0: x=1x1x4x4:2x1x4x4:8x1x4x4", "profile 1: x=9x1x4x4:64x1x4x4:64x1x4x4"]
    for change in (lambda patch: None, without_gpu):
        change(monkeypatch)
        assert [line for line in inspected(path).stdout.splitlines() if line.startswith("profile")] == wanted
    found = json.loads(inspected(path, "--json").stdout)
    assert [profile[0]["opt"][0] for profile in found["sidecar"]["key"]["profiles"]] == [2, 64]


def test_an_engine_of_another_tool(module: Module, tmp_path: Path) -> None:
    path = tmp_path / "m.plan"
    path.write_bytes(plan_of(layers=['"conv + relu"']))
    text = str(stn_infer.inspect_engine(path, "cuda:1"))
    assert "no sidecar: it was not built by stn-infer, or was copied alone" in text
    assert text.endswith("conv, relu") and "built from" not in text and "\nplugin" not in text


def test_our_plugins_are_registered_for_an_engine_of_another_tool(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, library = tmp_path / "m.engine", tmp_path / "libstn_plugins.so"
    path.write_bytes(plan_of(plugins=["SpatialTransformer"]))
    monkeypatch.setenv("STN_PLUGIN_LIBRARY", str(library))
    result = inspected(path)
    assert result.exit_code == 1
    assert result.stderr.endswith(
        "cannot load the engine: Cannot find plugin: SpatialTransformer, version: 1, namespace: stn\n"
    )
    library.write_bytes(b"a library")
    assert inspected(path).exit_code == 0 and module.registered


def test_a_version_compatible_engine_may_run_host_code_if_the_sidecar_says_so(module: Module, tmp_path: Path) -> None:
    plan = plan_of(version="10.3.0.26", host_code=True)
    path = written(tmp_path / "m.engine", plan, runtime_version="10.3.0.26", flags=("version-compatible",))
    assert stn_infer.inspect_engine(path).content is not None
    sidecar_path(path).unlink()
    result = inspected(path)
    assert result.exit_code == 0 and "was built with TensorRT 10.3.0.26, this is 11.4.0.106" in result.stdout


def test_names_cannot_leave_their_column_or_line(module: Module, tmp_path: Path) -> None:
    name = "\x1b[31m" + "a_very_long_name_" * 12
    layers = [{**CONVOLUTION, "LayerType": "K" * 40, "Metadata": f"[ONNX Layer: {name}]\x1f[ONNX Layer: last]"}]
    path = tmp_path / "m.engine"
    path.write_bytes(plan_of(layers=layers))
    table = str(stn_infer.inspect_engine(path)).split("\n\n")[1].splitlines()
    assert max(map(len, table)) <= 80 and len(table) > 3
    assert "\x1b" not in "".join(table) and table[1].startswith("   0  KKKKKKKKKKKKKKKKKKK…  int8 > fp16  \\x1b[31ma_")
    assert table[-1].endswith(", last")


def test_json(module: Module, tmp_path: Path) -> None:
    path = written(tmp_path / "m.engine", plan_of(warns=["a warning"]))
    result = inspected(path, "--json", "-v")
    assert result.stderr == "tensorrt: a warning\n"
    found = json.loads(result.stdout)
    assert found["header"] == {"runtime": "tensorrt", "version": "11.4.0.106", "size": path.stat().st_size}
    assert found["sidecar"]["key"]["flags"] == ["tf32"] and found["warnings"] == ["a warning"]
    content = found["content"]
    assert content["layers"][1] == {
        "name": "conv + relu", "type": "CaskConvolution", "inputs": ["int8"], "outputs": ["fp16"],
        "nodes": ["conv", "outer (Block)", "relu[0]"], "plugin": "", "tactic": "sm80_xmma_fprop",
        "precision": "int8 > fp16",
    }  # fmt: skip
    assert content["profiles"] == [[{"name": "x", "min": [1, 1, 4, 4], "opt": [2, 1, 4, 4], "max": [8, 1, 4, 4]}]]
    assert found["plugins"] == [f"SpatialTransformer: {SPATIAL['PluginMetadata']} runs node_grid_sampler"]
    assert inspected(path).stderr == ""


def without_gpu(patch: pytest.MonkeyPatch) -> None:
    def missing(index: int) -> Gpu:
        raise MissingDependencyError("a GPU is required (cuda:0)")

    patch.setattr(runtime, "current_gpu", missing)


def without_tensorrt(patch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> TensorRT:
        raise MissingDependencyError("TensorRT cannot be imported")

    patch.setattr(runtime, "load_runtime", missing)


def on_another_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(runtime, "current_gpu", lambda index: Gpu("another", "sm90"))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (without_gpu, "note: layers are not known: a GPU is required (cuda:0)"),
        (without_tensorrt, "note: layers are not known: TensorRT cannot be imported"),
        (on_another_gpu, "m.engine was built for a GPU (sm89), this is another (sm90); build it again"),
    ],
)
def test_without_what_loads_it_the_rest_is_shown(
    module: Module,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
    note: str,
) -> None:
    path = written(tmp_path / "m.engine", plan_of())
    change(monkeypatch)
    result = inspected(path)
    assert result.exit_code == 0, result.output
    assert note in result.stdout.splitlines()[0]
    assert (
        "profile x=1x1x4x4:2x1x4x4:8x1x4x4" in result.stdout
        and "the plugin library runs a" in result.stdout.splitlines()
    )
    assert json.loads(inspected(path, "--json").stdout)["content"] is None
    assert module.loaded == 0


def test_an_engine_of_another_version_is_shown_without_its_layers(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare.engine").write_bytes(plan_of(version="10.9.0.34"))
    written(tmp_path / "m.engine", plan_of(version="11.3.0.99"), runtime_version="11.3.0.99")
    without_gpu(monkeypatch)
    for name, version in (("bare", "10.9.0.34"), ("m", "11.3.0.99")):
        result = inspected(tmp_path / f"{name}.engine")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("note: layers are not known: ")
        assert f"was built with TensorRT {version}, this is 11.4.0.106; build it again\n" in result.stdout
        assert f"tensorrt {version}, " in result.stdout
    assert "built from m.onnx" in result.stdout and module.loaded == 0


def with_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch, plan: bytes) -> Path:
    """An engine that was built with another library than the one that is there."""
    library = folder / "libstn_plugins.so"
    library.write_bytes(b"a library")
    monkeypatch.setenv("STN_PLUGIN_LIBRARY", str(library))
    return written(folder / "m.engine", plan, plugin_sha256="c0ffee" * 11)


def test_an_engine_of_another_plugin_library_is_shown_with_what_differs(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = inspected(with_plugin(tmp_path, monkeypatch, plan_of(plugins=["SpatialTransformer"])))
    assert result.exit_code == 0, result.output
    here = hashlib.sha256(b"a library").hexdigest()[:12]
    note, *rest = result.stdout.splitlines()
    assert note.startswith("note: ") and note.endswith(
        f"was built with another plugin library than {tmp_path}/libstn_plugins.so (SHA-256 c0ffeec0ffee, not {here}); "
        "build it again"
    )
    assert module.registered and module.loaded == 1
    assert any(line.startswith("input x: ") for line in rest) and any("PluginV3" in line for line in rest)


def test_an_engine_that_another_plugin_library_cannot_load_is_shown_by_its_sidecar(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = inspected(with_plugin(tmp_path, monkeypatch, plan_of()[:-1] + b"!"))
    assert result.exit_code == 0, result.output
    first, second, *rest = result.stdout.splitlines()
    assert "was built with another plugin library than" in first
    assert second.startswith("note: layers are not known: ") and "cannot load the engine" in second
    assert "the plugin library runs a" in rest and "profile x=1x1x4x4:2x1x4x4:8x1x4x4" in rest


def cut(path: Path) -> None:
    path.write_bytes(plan_of()[:-5])


def cut_with_sidecar(path: Path) -> None:
    written(path, plan_of())
    path.write_bytes(plan_of()[:-5])


LENGTH = len(plan_of())
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "expected a TensorRT engine, found No such file"),
    "a folder": (Path.mkdir, "is a folder; name the file in it"),
    "empty": (lambda path: path.write_bytes(b""), "is empty; expected a TensorRT engine"),
    "other": (lambda path: path.write_bytes(b"MZ not one"), "is not a TensorRT engine: it begins with b'MZ n'"),
    "ONNX": (
        lambda path: path.write_bytes(flow_model().SerializeToString()),
        "is an ONNX file, not a TensorRT engine; build one: stn-infer build",
    ),
    "an image": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)), "is a PNG image"),
    "arrays": (lambda path: path.write_bytes(b"\x93NUMPY" + bytes(80)), "is a NumPy array file"),
    "truncated": (cut, f"has {LENGTH - 5} of {LENGTH} bytes: it is truncated; build it again"),
    "truncated beside its sidecar": (cut_with_sidecar, f"has {LENGTH - 5} of {LENGTH} bytes: it is truncated"),
    "damaged": (lambda path: path.write_bytes(plan_of()[:-1] + b"!"), "TensorRT 11.4.0.106 cannot load the engine"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_inspected_is_one_line(module: Module, tmp_path: Path, case: str) -> None:
    make, message = FILES[case]
    make(tmp_path / "m.engine")
    for extra in ([], ["--json"]):
        result = inspected(tmp_path / "m.engine", *extra)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
        assert message in result.stderr


def test_the_device_is_a_gpu(tmp_path: Path) -> None:
    result = inspected(tmp_path / "m.engine", "--device", "cpu")
    assert result.exit_code == 2 and "engines run on GPUs: --device must be cuda or cuda:N, not 'cpu'" in result.stderr


def test_a_real_engine_without_a_gpu(rtx: TensorRT, tmp_path: Path) -> None:
    onnx.save(flow_model(), tmp_path / "m.onnx")
    options = stn_infer.BuildOptions.parse("tensorrt-rtx", "sm89", ["1:2:4"])
    stn_infer.build(tmp_path / "m.onnx", tmp_path / "m.engine", options, cache=tmp_path / "cache")
    text = inspected(tmp_path / "m.engine").stdout
    assert f"tensorrt-rtx {rtx.version}, " in " ".join(text.split()) and "for sm89, float32" in text
