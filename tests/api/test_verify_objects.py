"""``verify`` of modules that the program holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import stn_infer
from stn_infer.errors import UsageError
from tests.support.stn_styles import SHAPE, AffineGrid


def test_a_module_stays_as_it_was() -> None:
    torch.manual_seed(3)
    module = AffineGrid().double().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr,index]
    found = stn_infer.verify(module, input_shapes=[SHAPE], backends=["eager", "ort"])
    assert found.passed and [report.backend for report in found.backends] == ["eager", "ort"]
    assert found.title == "float64 eager PyTorch" and found.grids
    assert module.training and all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(states[0], torch.random.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]
    loaded = stn_infer.load_source(module, input_shapes=[SHAPE])
    assert stn_infer.verify(loaded, backends=["ort"]).passed


def test_what_a_module_needs_and_excludes() -> None:
    with pytest.raises(UsageError, match="give input_shapes"):
        stn_infer.verify(AffineGrid(), backends=["ort"])
    with pytest.raises(UsageError, match="--source is for ONNX files"):
        stn_infer.verify(AffineGrid(), input_shapes=[SHAPE], source="cnn")
