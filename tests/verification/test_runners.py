"""The runners of verify on devices that cannot run the plugin library's kernels."""

from __future__ import annotations

import pytest

from stn_infer import plugin
from stn_infer.backends.device import Device
from stn_infer.errors import MissingDependencyError
from stn_infer.layers import SpatialTransformer
from stn_infer.transforms import Affine
from stn_infer.verification.runners import _set_fused


def test_a_fused_layer_needs_kernels_that_run_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "load", lambda: None)
    monkeypatch.setattr(plugin, "cuda_problem", lambda index: f"no code for cuda:{index}" if index else None)
    layer = SpatialTransformer(None, Affine(), (4, 4))
    with pytest.raises(MissingDependencyError, match=r"^no code for cuda:1$"):
        _set_fused(layer, True, Device("cuda", 1))
    assert not layer.fused
    for device in (Device("cuda", 0), Device("cpu")):
        _set_fused(layer, True, device)
        assert layer.fused
        _set_fused(layer, False, device)
        assert not layer.fused
