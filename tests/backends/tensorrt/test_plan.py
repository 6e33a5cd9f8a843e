"""The header of engines: real ones of TensorRT-RTX, and damaged ones."""

from __future__ import annotations

import onnx
import pytest

from stn_infer.backends.tensorrt.builder import build_plan
from stn_infer.backends.tensorrt.plan import check_header, read_header
from stn_infer.backends.tensorrt.runtime import TensorRT
from stn_infer.errors import ModelError
from tests.backends.tensorrt.test_builder import model
from tests.support.tensorrt_engines import header, plan_of


def test_the_header_of_a_real_engine(rtx: TensorRT) -> None:
    small: onnx.ModelProto = model()
    for value in (*small.graph.input, *small.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    plan = build_plan(rtx, small, (), target="sm89").engine
    found = read_header(plan, "m")
    assert (found.runtime, found.version, found.size) == ("tensorrt-rtx", rtx.version, len(plan))
    check_header(plan, "m", rtx)
    with pytest.raises(ModelError, match=f"m has {len(plan) - 1} of {len(plan)} bytes: it is truncated"):
        read_header(plan[:-1], "m")
    assert header(b"vtrt", rtx.version, len(plan)) == plan[:28], "the stand-in writes the same"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (b"MZ no engine at all, a program", r"m is not a TensorRT engine: it begins with b'MZ n', expected b'ftrt' or"),
        (b"ft", "m is not a TensorRT engine: it begins with b'ft'"),
        (b"", "m is not a TensorRT engine: it begins with b''"),
        (b"ptrt" + bytes(100), "m is not a TensorRT engine: it begins with b'ptrt'"),
        (b"ftrt", "m has 4 bytes: it is truncated; build it again"),
        (b"vtrt" + bytes(23), "m has 27 bytes: it is truncated"),
        (header(b"ftrt", "11.4.0.106", 29), "m has 28 of 29 bytes: it is truncated; build it again"),
        (header(b"ftrt", "11.4.0.106", (1 << 64) - 1), "m has 28 of 18446744073709551615 bytes: it is truncated"),
    ],
)
def test_what_is_no_engine_or_truncated(plan: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        read_header(plan, "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["11.4.0.106", "11.4.0", "11.4.0.106.post1"])
def test_an_engine_of_this_version(version: str) -> None:
    check_header(plan_of(), "m", TensorRT("tensorrt", None, version))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (
            plan_of(version="10.9.0.34"),
            r"m was built with TensorRT 10\.9\.0\.34, this is 11\.4\.0\.106; build it again",
        ),
        (plan_of(version="11.4.0.107"), r"m was built with TensorRT 11\.4\.0\.107, this is 11\.4\.0\.106"),
        (
            plan_of(b"vtrt", "1.7.1.116"),
            "m is a tensorrt-rtx engine, not a tensorrt engine; use --backend tensorrt-rtx",
        ),
    ],
)
def test_an_engine_of_another_version_or_runtime(plan: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_header(plan, "m", TensorRT("tensorrt", None, "11.4.0.106"))
