"""Options of a build: what the builder is told, with a recording stand-in and the real builder of TensorRT-RTX."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from stn_infer.api.engines.build import BuildReport, build
from stn_infer.backends.tensorrt import engine as building
from stn_infer.backends.tensorrt.engine_cache import load_engine
from stn_infer.backends.tensorrt.options import BuilderSettings, BuildOptions
from stn_infer.backends.tensorrt.profiles import Profile
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT
from stn_infer.cli.main import main
from stn_infer.errors import MissingDependencyError, ModelError, UsageError
from tests.backends.tensorrt.test_builder import model
from tests.support.tensorrt_builder import Config, MemoryPoolType, Recorder, TimingCache, on_gpu

GPU = Gpu("a GPU", "sm89")
RTX = BuildOptions(runtime="tensorrt-rtx", target="sm89", profile=Profile((1,), (2,), (4,)))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    """A TensorRT 11.4 with a GPU, and the model m.onnx for its native layers."""
    made = Recorder(layers=["SHUFFLE", "CONVOLUTION"])
    on_gpu(monkeypatch, lambda: TensorRT("tensorrt", made, "11.4.0.106"), lambda: GPU)
    monkeypatch.setenv("STN_TRIAL_SECONDS", "0")
    onnx.save(model(), tmp_path / "m.onnx")
    return made


def built(folder: Path, **options: Any) -> BuildReport:
    chosen = BuildOptions(plugin=False, **options)
    return build(folder / "m.onnx", folder / "m.engine", chosen, cache=folder / "cache")


@pytest.mark.parametrize(
    ("options", "calls", "flags"),
    [
        ({}, [], ()),
        ({"optimization_level": 0}, [("builder_optimization_level", 0)], ("optimization level 0",)),
        ({"optimization_level": 5}, [("builder_optimization_level", 5)], ("optimization level 5",)),
        (
            {"workspace": 3 << 29},
            [("set_memory_pool_limit", "WORKSPACE", 1610612736)],
            ("workspace 1.5 GiB",),
        ),
        ({"refittable": True}, [("set_flag", "REFIT")], ("refittable",)),
        ({"version_compatible": True}, [("set_flag", "VERSION_COMPATIBLE")], ("version-compatible",)),
        ({"hardware": "ampere+"}, [("hardware_compatibility_level", "AMPERE_PLUS")], ("ampere+",)),
        (
            {"hardware": "same-compute-capability"},
            [("hardware_compatibility_level", "SAME_COMPUTE_CAPABILITY")],
            ("same-compute-capability",),
        ),
    ],
)
def test_the_builder_is_told_each_option_and_the_key_has_it(
    module: Recorder, tmp_path: Path, options: dict[str, Any], calls: list[Any], flags: tuple[str, ...]
) -> None:
    built(tmp_path)
    before = list(module.calls)
    module.calls.clear()
    report = built(tmp_path, **options)
    assert report.built is bool(options)
    assert report.sidecar.key.flags == flags
    if options:
        told = [call for call in module.calls if call not in before]
        assert told == calls
        assert ", ".join(flags) in str(report)
        assert f"the flags changed from none to {flags[0]}" in report.reason or options.get("hardware")


def test_engines_for_several_gpus_are_stored_once_for_all(
    module: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {level: built(tmp_path, hardware=level) for level in ("ampere+", "same-compute-capability")}
    assert [(it.sidecar.key.gpu, it.sidecar.key.sm) for it in found.values()] == [("", "sm80+"), ("", "sm89")]
    other = {Gpu("another GPU", "sm89"): [False, False, True], Gpu("a newer GPU", "sm120"): [False, True, True]}
    for gpu, built_again in other.items():
        monkeypatch.setattr(building, "current_gpu", lambda index, gpu=gpu: gpu)
        levels: list[Any] = ["ampere+", "same-compute-capability", None]
        assert [built(tmp_path, hardware=level).built for level in levels] == built_again, gpu


def test_what_this_gpu_or_version_cannot_build_for_is_refused(
    module: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "current_gpu", lambda index: Gpu("a T4", "sm75"))
    with pytest.raises(UsageError, match=r"ampere\+ engines are built on sm80 or newer, not on a T4 \(sm75\)"):
        built(tmp_path, hardware="ampere+")
    assert built(tmp_path, hardware="same-compute-capability").sidecar.key.sm == "sm75"
    old = Recorder(layers=["SHUFFLE"], newest=False)
    monkeypatch.setattr(building, "load_runtime", lambda name: TensorRT("tensorrt", old, "10.1.0.27"))
    with pytest.raises(MissingDependencyError, match=r"TensorRT 10\.1\.0\.27 has no hardware compatibility"):
        built(tmp_path, hardware="same-compute-capability")


def test_a_version_compatible_engine_has_native_layers(module: Recorder, tmp_path: Path) -> None:
    options = BuildOptions(version_compatible=True)
    report = build(tmp_path / "m.onnx", tmp_path / "m.engine", options, cache=tmp_path / "cache")
    assert report.notes == ("native layers, no plugin: the engine is version-compatible",)
    assert report.sidecar.key.plugin_sha256 == "" and not any("load_library" in call for call in module.calls)
    with pytest.raises(UsageError, match="has TensorRT's own layers only; build with --native"):
        build(tmp_path / "m.onnx", tmp_path / "m.engine", replace(options, plugin=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 6}, "the optimization level is 0 to 5, not 6"),
        ({"optimization_level": -1}, "the optimization level is 0 to 5, not -1"),
        ({"workspace": 0}, "the workspace limit is at least one byte, not 0"),
        (
            {"hardware": "turing+"},
            "hardware compatibility is one of ampere\\+, same-compute-capability, not 'turing\\+'",
        ),
        ({"refittable": True, "version_compatible": True}, "a version-compatible engine cannot take new weights"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BuildOptions(**options)
    parsed = {**options, **({"workspace": 2.0**-40} if "workspace" in options else {})}
    with pytest.raises(UsageError, match=message):
        BuildOptions.parse(**parsed)


@pytest.mark.parametrize("limit", [math.inf, math.nan])
def test_a_workspace_is_finite(limit: float) -> None:
    with pytest.raises(UsageError, match=f"the workspace limit is a number of GiB, not {limit}"):
        BuildOptions.parse(workspace=limit)


def test_the_options_of_the_command(module: Recorder, tmp_path: Path) -> None:
    module.warns = ["a kernel\nis slow", "a kernel\nis slow", "another"]
    arguments = ["build", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "m.engine"), "--native"]
    arguments += ["--cache", str(tmp_path / "cache"), "--optimization-level", "2", "--workspace", "0.5"]
    arguments += ["--hardware", "ampere+", "--timing-cache", str(tmp_path / "times")]
    quiet = CliRunner().invoke(main, arguments)
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    assert "optimization level 2, workspace 0.5 GiB, ampere+" in quiet.stdout
    assert (tmp_path / "times").exists()
    told = CliRunner().invoke(main, [*arguments, "-v", "--rebuild"])
    lines = [line.partition(" s  ")[2] for line in told.stderr.splitlines()]  # after the seconds
    assert lines[-2:] == ["tensorrt: a kernel is slow", "tensorrt: another"]
    again = CliRunner().invoke(main, [*arguments, "-v"])
    assert again.stderr == "" and "reused" in again.stdout
    both = CliRunner().invoke(main, [*arguments, "--refittable", "--version-compatible"])
    assert (both.exit_code, both.stderr.count("\n")) == (2, 1)
    assert "a version-compatible engine cannot take new weights" in both.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hardware": "ampere+"}, "TensorRT-RTX has no hardware compatibility; build for each architecture"),
        ({"version_compatible": True}, "TensorRT-RTX engines run in the version that built them only"),
        ({"timing_cache": Path("times")}, "TensorRT-RTX measures no kernels when it builds; leave out --timing-cache"),
    ],
)
def test_what_tensorrt_rtx_lacks_is_refused(
    rtx: TensorRT, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=message):
        build(tmp_path / "m.onnx", tmp_path / "m.engine", replace(RTX, **options), cache=tmp_path / "cache")


def test_the_real_builder_takes_level_and_workspace(rtx: TensorRT, tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")

    def made(**options: Any) -> BuildReport:
        return build(tmp_path / "m.onnx", tmp_path / "m.engine", replace(RTX, **options), cache=tmp_path / "cache")

    report = made(optimization_level=1, workspace=1 << 30)
    assert report.sidecar.key.flags == ("optimization level 1", "workspace 1 GiB")
    assert load_engine(tmp_path / "m.engine")[0] == report.data
    with pytest.raises(ModelError, match=r"TensorRT-RTX .* cannot build the model: .*workspace") as caught:
        made(workspace=16)
    assert "\n" not in str(caught.value)


def test_the_stand_in_has_what_the_real_builder_has(rtx: TensorRT) -> None:
    real = rtx.module
    for stand_in, name in (
        (Config, "IBuilderConfig"),
        (TimingCache, "ITimingCache"),
        (MemoryPoolType, "MemoryPoolType"),
    ):
        own = {it for it in vars(stand_in) if not it.startswith("_") and it not in ("entries", "matches")}
        assert own <= set(dir(getattr(real, name))), name
    for name in ("builder_optimization_level", "profiling_verbosity", "hardware_compatibility_level"):
        assert hasattr(real.IBuilderConfig, name)
    recorder = Recorder(layers=[])
    for name in ("BuilderFlag", "ProfilingVerbosity", "HardwareCompatibilityLevel"):
        members = {it.name for it in getattr(recorder, name)}
        assert members <= set(getattr(real, name).__members__), name


def test_the_flags_of_several_settings() -> None:
    assert BuilderSettings(tf32=True, optimization_level=4).flags == ("tf32", "optimization level 4")
