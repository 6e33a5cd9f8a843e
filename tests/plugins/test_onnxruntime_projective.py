"""Version 2 of stn::ProjectiveTransformer as an onnxruntime custom op: any basis, volumes and a bounded denominator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from stn_infer import plugin
from tests.support import reference
from tests.support.paths import ROOT

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(
    not plugin.available(), reason="the plugin library is not built: stn-infer plugin build"
)

OFFSET = (-0.3, 0.2, 0.45)
NO_BOUND = -float(np.finfo(np.float32).max)


def session(size: tuple[int, ...], w_min: float | None, offset: tuple[float, ...] = ()) -> ort.InferenceSession:
    """One node whose inputs are those of the graph; without w_min it is of version 1."""
    moves = list(offset or OFFSET[: len(size)])
    return opened(size, **({} if w_min is None else {"plugin_version": "2", "w_min": w_min, "offset": moves}))


def opened(
    size: tuple[int, ...], library: Path | None = None, grid_shape: list[int] | None = None, **attributes: Any
) -> ort.InferenceSession:
    """One node with the attributes of version 1 and others, in onnxruntime with a plugin library."""
    rank = len(size)
    node = helper.make_node(
        "ProjectiveTransformer", ["input", "theta", "basis"], ["output"], domain="stn",
        grid_shape=grid_shape or [0, *size, rank], mode="linear", padding_mode="border", align_corners=1, **attributes,
    )  # fmt: skip
    axes = {"input": ["n", "c", *map(str, range(rank))], "theta": ["n", "r", "k"], "basis": ["k", "p"]}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in axes.items()],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
    )
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("stn", 1)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library or plugin.library_path()))
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(size: tuple[int, ...], columns: int) -> dict[str, Array]:
    """w lies in 0.4 .. 1.6."""
    rng = np.random.default_rng(columns)
    rank = len(size)
    theta = rng.uniform(-0.8, 0.8, (2, rank + 1, columns))
    theta[:, rank] *= 0.6 / 0.8 / columns
    theta[:, rank, -1] = 1
    basis = rng.uniform(-1, 1, (columns, int(np.prod(size))))
    basis[-1] = 1
    arrays = {"input": rng.standard_normal((2, 3, *(6, 5, 7)[:rank])), "theta": theta, "basis": basis}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


@pytest.mark.parametrize("w_min", [None, NO_BOUND, 1.1])
@pytest.mark.parametrize(("size", "columns"), [((4, 9), 3), ((4, 9), 5), ((3, 4, 5), 4), ((3, 4, 5), 6)])
def test_any_basis(size: tuple[int, ...], columns: int, w_min: float | None) -> None:
    inputs = feeds(size, columns)
    answer = session(size, w_min).run(None, inputs)[0]
    offset = () if w_min is None else OFFSET[: len(size)]
    grid = reference.spatial_grid(inputs["theta"], inputs["basis"], size, projective=True, w_min=w_min, offset=offset)
    expected = reference.grid_sample(inputs["input"], grid, "bilinear", "border", True)
    np.testing.assert_allclose(answer, expected, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("theta", (2, 3, 6), r"expected theta \[2, 4, K\], got \[2, 3, 6\]"),
        ("theta", (2, 5, 6), r"expected theta \[2, 4, K\], got \[2, 5, 6\]"),
        ("theta", (3, 4, 6), r"expected theta \[2, 4, K\], got \[3, 4, 6\]"),
        ("theta", (2, 4, 5), r"expected basis \[5, 60\] for theta \[2, 4, 5\]"),
        ("basis", (5, 60), r"expected basis \[6, 60\].*got \[5, 60\]"),
        ("basis", (7, 60), r"expected basis \[6, 60\].*got \[7, 60\]"),
        ("basis", (6, 59), r"expected basis \[6, 60\].*got \[6, 59\]"),
        ("basis", (6, 4096), r"expected basis \[6, 60\].*got \[6, 4096\]"),
        ("basis", (6, 0), r"expected basis \[6, 60\].*got \[6, 0\]"),
        ("input", (2, 3, 0, 5, 7), "two sizes are inconsistent"),
    ],
)
def test_shapes_that_do_not_fit_are_one_line(name: str, shape: tuple[int, ...], words: str) -> None:
    inputs = feeds((3, 4, 5), 6) | {name: np.zeros(shape, np.float32)}
    with pytest.raises(Exception, match=words) as info:
        session((3, 4, 5), 0.5).run(None, inputs)
    assert "\n" not in str(info.value)


def test_theta_without_columns_is_one_line() -> None:
    inputs = feeds((3, 4, 5), 6) | {"theta": np.zeros((2, 4, 0), np.float32), "basis": np.zeros((0, 60), np.float32)}
    with pytest.raises(Exception, match=r"expected theta with at least one column, got \[2, 4, 0\]"):
        session((3, 4, 5), 0.5).run(None, inputs)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"plugin_version": "2", "offset": [0.0] * 3}, "expected a w_min, which every node of version 2 has"),
        ({"plugin_version": "2", "w_min": 0.5}, "expected an offset of 3 numbers, got 0"),
        ({"plugin_version": "2", "w_min": float("nan"), "offset": [0.0] * 3}, "expected a w_min that is a number"),
        ({"plugin_version": "2", "w_min": 0.5, "offset": [0.0] * 2}, "expected an offset of 3 numbers, got 2"),
        ({"plugin_version": "2", "w_min": 0.5, "offset": [0.0, 0.0, np.inf]}, "expected an offset of finite numbers"),
        ({"w_min": 0.5}, "w_min and offset need plugin_version 2, got 1"),
        ({"plugin_version": "1", "offset": [0.0] * 3}, "w_min and offset need plugin_version 2, got 1"),
        ({"plugin_version": "two"}, "expected a plugin_version from 1 on, got 'two'"),
        ({"plugin_version": "0"}, "expected a plugin_version from 1 on, got '0'"),
        ({"plugin_version": "-1"}, "expected a plugin_version from 1 on, got '-1'"),
        ({"plugin_version": "1234567890123"}, "expected a plugin_version from 1 on, got '1234567890123'"),
        ({"plugin_version": "3"}, "the file has version 3 of this op, .* knows it up to version 2: update stn-infer"),
        ({"grid_shape": [0, 3, -4, 5, 3]}, "expected sizes in grid_shape that are at least 0"),
        ({"grid_shape": [0, 2**40, 2**40, 5, 3]}, "whose product fits in 64 bits"),
        ({"grid_shape": [0, 3, 4, 5, 4]}, "the last entry of grid_shape must be the rank"),
    ],
)
def test_nodes_are_rejected_when_the_file_is_loaded(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(Exception, match=words) as info:
        opened((3, 4, 5), **attributes)
    assert "\n" not in str(info.value)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_library_that_knows_version_1_only_rejects_version_2_when_it_loads_the_file(tmp_path: Path) -> None:
    """The same sources without version 2, the plain kernels and onnxruntime's adapter."""
    sources, library = ROOT / "plugins" / "src", tmp_path / "libolder.so"
    names = ["api", *(f"kernels/{name}" for name in ("cpu", "cpu_plain", "processors", "thread_pool", "warp"))]
    names += ["kernels/cuda_missing", "adapters/onnxruntime", "adapters/onnxruntime_kernel"]
    flags = ["-std=c++17", "-O0", "-shared", "-fPIC", "-DSTN_PROJECTIVE_VERSION=1", "-DSTN_HD=inline", "-pthread"]
    flags += [f"-I{ROOT / 'plugins'}", f"-I{ROOT / 'plugins/include'}", f"-I{sources}"]
    subprocess.run(["c++", *flags, *(f"{sources / name}.cpp" for name in names), "-o", str(library)], check=True)
    opened((4, 9), library)
    with pytest.raises(Exception, match=r"the file has version 2 of this op, .* knows it up to version 1") as info:
        opened((4, 9), library, plugin_version="2", w_min=0.5, offset=[0.0, 0.0])
    assert "\n" not in str(info.value)
