"""Which engines run in which versions of TensorRT and on which GPUs."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest

from stn_infer.backends.tensorrt.compatibility import check_usable, key_gpu
from stn_infer.backends.tensorrt.engine_cache import EngineKey, Sidecar
from stn_infer.backends.tensorrt.options import Hardware
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT
from stn_infer.errors import DeviceWarning, ModelError

GPU = Gpu("a GPU", "sm89")
KEY = EngineKey("a", "b", "tensorrt", "11.4.0", GPU.name, GPU.sm, "", (), "float32", ())


def usable(change: dict[str, Any], version: str = "11.4.0", gpu: Gpu = GPU) -> list[str]:
    """The warnings."""
    sidecar = Sidecar(replace(KEY, **change), "0", 6, "m.onnx", "2026", 1.0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_usable("m", sidecar, TensorRT("tensorrt", None, version), gpu)
    assert {it.category for it in found} <= {DeviceWarning}
    return [str(it.message) for it in found]


def of(hardware: Hardware) -> dict[str, Any]:
    key = key_gpu(GPU, hardware)
    return {"gpu": key.name, "sm": key.sm, "flags": (hardware,)}


NEWER = {"flags": ("version-compatible",)}


@pytest.mark.parametrize(
    ("change", "version", "gpu"),
    [
        ({}, "11.4.0", GPU),
        ({"gpu": ""}, "11.4.0", GPU),
        (of("ampere+"), "11.4.0", GPU),
        (of("ampere+"), "11.4.0", Gpu("an A100", "sm80")),
        (of("ampere+"), "11.4.0", Gpu("a B200", "sm100")),
        (of("ampere+"), "11.4.0", Gpu("an RTX 5090", "sm120")),
        (of("same-compute-capability"), "11.4.0", Gpu("another", "sm89")),
        (NEWER, "11.4.0", GPU),
        (NEWER, "11.4.0.106", GPU),
        (NEWER, "11.10.0", GPU),
        (NEWER, "12.0.1", GPU),
    ],
)
def test_an_engine_runs_where_tensorrt_runs_it(change: dict[str, Any], version: str, gpu: Gpu) -> None:
    assert usable(change, version, gpu) == []


@pytest.mark.parametrize(
    ("change", "version", "gpu", "message"),
    [
        ({}, "11.3.0", GPU, "m was built with TensorRT 11.4.0, this is 11.3.0; build it again"),
        ({}, "11.4.1", GPU, "m was built with TensorRT 11.4.0, this is 11.4.1; build it again"),
        ({}, "11.4.0", Gpu("a GPU", "sm90"), r"m was built for a GPU \(sm89\), this is a GPU \(sm90\); build it again"),
        ({"gpu": "", "sm": "sm75"}, "11.4.0", GPU, r"m was built for sm75, this is a GPU \(sm89\)"),
        (of("ampere+"), "11.4.0", Gpu("a T4", "sm75"), r"m was built for sm80\+, this is a T4 \(sm75\)"),
        (of("same-compute-capability"), "11.4.0", Gpu("an A100", "sm80"), r"m was built for sm89, this is an A100"),
        (of("ampere+"), "11.5.0", GPU, "m was built with TensorRT 11.4.0, this is 11.5.0"),
        (NEWER, "11.3.9", GPU, "m was built with TensorRT 11.4.0 and runs in newer versions, this is 11.3.9; build it"),
        (NEWER, "10.16.1", GPU, "and runs in newer versions, this is 10.16.1"),
        (NEWER, "12.0.0", Gpu("a GPU", "sm90"), r"m was built for a GPU \(sm89\), this is a GPU \(sm90\)"),
    ],
)
def test_an_engine_that_tensorrt_rejects_is_an_error(
    change: dict[str, Any], version: str, gpu: Gpu, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        usable(change, version, gpu)
    assert "\n" not in str(caught.value)


def test_another_name_with_the_same_compute_capability_is_a_warning() -> None:
    (warning,) = usable({}, gpu=Gpu("another", "sm89"))
    assert warning.startswith("m was built for a GPU (sm89), this is another (sm89): TensorRT runs it, but")
    assert warning.endswith("build it again for this GPU")
