"""The plugin library in TensorRT's plugin registry, from tensorrt-lean, which needs no GPU."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stn_infer import plugin
from tests.support.tensorrt_parts import library_or_skip, missing, module_or_skip, run_script

ON_HOST = {"STN_TENSORRT_DEVICE": "cpu"}
SAMPLER = {"mode": "CHAR", "padding_mode": "CHAR", "align_corners": "INT32"}
CREATORS = {
    "SpatialTransformer 1": "stn",
    "ProjectiveTransformer 1": "stn",
    "ProjectiveTransformer 2": "stn",
    "TensorProductTransformer 1": "stn",
    "LatticeTransformer 1": "stn",
    "GridSample 1": "",
    "Sampler 1": "stn",
}
INTERFACES = [
    ["PLUGIN", 1, 0],
    ["PLUGIN_V3ONE_CORE", 1, 0],
    ["PLUGIN_V3ONE_BUILD", 1, 0],
    ["PLUGIN_V3ONE_RUNTIME", 1, 0],
]


@pytest.fixture(scope="module")
def library() -> Path:
    module_or_skip("tensorrt_lean", "tensorrt-lean")
    return library_or_skip()


@pytest.fixture(scope="module")
def registry(library: Path) -> tuple[dict[str, Any], str]:
    """(the registry's content, stderr) after load_library."""
    answer, errors, code = run_script("lean_registry.py", "load", str(library), environment=ON_HOST)
    assert code == 0, errors
    return answer, errors


def test_load_library_finds_the_creators_with_their_fields(registry: tuple[dict[str, Any], str]) -> None:
    creators = registry[0]["creators"]
    assert {name: it["namespace"] for name, it in creators.items()} == CREATORS
    theta = {**SAMPLER, "grid_shape": "INT32"}
    assert {name: it["fields"] for name, it in creators.items()} == {
        "SpatialTransformer 1": {"kind": "CHAR", **theta},
        "ProjectiveTransformer 1": theta,
        "ProjectiveTransformer 2": {**theta, "w_min": "FLOAT32", "offset": "FLOAT32"},
        "TensorProductTransformer 1": theta,
        "LatticeTransformer 1": theta,
        "GridSample 1": SAMPLER,
        "Sampler 1": SAMPLER,
    }


def test_plugins_are_created_from_fields(registry: tuple[dict[str, Any], str]) -> None:
    made = registry[0]["made"]
    assert {case: it["metadata"] for case, it in made.items()} == {
        "defaults": "SpatialTransformer affine bilinear zeros half_pixel 28x28",
        "opset 20": "SpatialTransformer basis bicubic border half_pixel 28x28",
        "volume": "SpatialTransformer affine nearest zeros align_corners 4x5x6",
        "projective": "ProjectiveTransformer bilinear reflection half_pixel 28x28",
        "projective 2": "ProjectiveTransformer bilinear zeros half_pixel 4x5x6 w_min 0.100000001 offset 0.25 -0.5 1",
        "projective 2 without a bound": (
            "ProjectiveTransformer bilinear zeros half_pixel 28x28 w_min -3.40282347e+38 offset 0 0"
        ),
        "sampler": "Sampler bicubic border align_corners",
    }
    for case, it in made.items():
        version = "2" if "projective 2" in case else "1"
        assert it["interfaces"] == INTERFACES
        assert (it["namespace"], it["version"], it["outputs"], it["format_limit"]) == ("stn", version, 1, 100)
        assert it["timing_cache_id"] == it["metadata"]
    assert made["projective"]["name"] == "ProjectiveTransformer"


def test_bad_fields_are_rejected_with_a_reason(registry: tuple[dict[str, Any], str]) -> None:
    answer, errors = registry
    assert set(answer["refused"].values()) == {None}
    for reason in (
        "grid_shape is missing",
        "mode is one of bilinear nearest bicubic linear cubic, not 'lanczos'",
        "bicubic is two-dimensional",
        "a projective transformer of version 1 is two-dimensional",
        "offset is one finite number per axis of grid_shape, not 3",
        "offset is one finite number per axis\n",
        "w_min is one number",
        "padding_mode is one of zeros border reflection, not 'wrap'",
    ):
        assert reason in errors


def test_without_stn_log_nothing_is_printed(library: Path) -> None:
    _, errors, code = run_script("lean_registry.py", "load", str(library), environment={**ON_HOST, "STN_LOG": ""})
    assert code == 0
    assert "stn:" not in errors


def test_a_library_without_cuda_reports_it_instead_of_crashing(library: Path) -> None:
    if plugin.load().stn_has_cuda():
        pytest.skip("this library has its CUDA kernels")
    answer, errors, code = run_script("lean_registry.py", "load", str(library), environment={"STN_LOG": ""})
    assert code == 0
    assert set(answer["made"].values()) == {None}
    assert "was built without CUDA" in errors


def test_the_second_library_registers_when_it_is_loaded(library: Path) -> None:
    register = library.with_name("libstn_plugins_register.so")
    assert register.is_file()
    answer, errors, code = run_script("lean_registry.py", "register", str(register), environment=ON_HOST)
    assert code == 0, errors
    assert set(answer["creators"]) == set(CREATORS)
    assert answer["made"]["defaults"]["metadata"] == "SpatialTransformer affine bilinear zeros half_pixel 28x28"
    assert f"SpatialTransformer registered in libnvinfer_lean.so.{answer['version'].split('.')[0]}" in errors


def test_the_second_library_does_nothing_without_tensorrt(library: Path) -> None:
    register = library.with_name("libstn_plugins_register.so")
    done = subprocess.run(
        ["python3", "-c", f"import ctypes; ctypes.CDLL({str(register)!r})"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "STN_LOG": "1"},
        check=False,
    )
    assert done.returncode == 0
    assert "no TensorRT 10 or 11 is loaded in this process" in done.stderr


def test_the_libraries_need_no_symbol_of_tensorrt(library: Path) -> None:
    tool = shutil.which("nm")
    if tool is None:
        missing("nm (binutils) is not installed")
    for path in (library, library.with_name("libstn_plugins_register.so")):
        done = subprocess.run([tool, "-D", "--undefined-only", str(path)], capture_output=True, text=True, check=True)
        assert "nvinfer" not in done.stdout
        assert "PluginRegistry" not in done.stdout
