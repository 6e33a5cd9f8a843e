"""The zoo's hand-built models through optimize: what is written keeps every output, and TensorRT-RTX builds it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from stn_infer.api.lint import lint
from stn_infer.api.optimize import optimize
from stn_infer.backends.tensorrt.runtime import load_runtime
from tests.api.test_optimize_tensorrt import build
from tests.support.tensorrt_parts import module_or_skip
from tests.support.zoo import ANIMALS, Animal, Fused, load

# exported models take seconds to export, and test_zoo.py compares their outputs
BUILT = [animal for animal in ANIMALS if not animal.name.startswith(("dynamo", "script"))]
# TensorRT-RTX has no Scan over samples, with or without the pass.
NO_LAYER = {"sampler in a scan over samples"}


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """These files are our own: no trial in a process of its own, which takes half a second."""
    monkeypatch.setattr("stn_infer.repairs.trial.try_model", lambda *arguments: None)


@pytest.mark.parametrize("animal", BUILT, ids=lambda animal: animal.name)
def test_it_keeps_its_outputs_and_builds(animal: Animal, tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(load(animal).SerializeToString())
    report = optimize(path, tmp_path / "out.onnx")
    assert [finding.fused for finding in report.findings] == [isinstance(entry, Fused) for entry in animal.expected]
    assert all(output.error <= output.bound for output in report.comparison.outputs)
    assert all(output.bound < 1e-3 for output in report.comparison.outputs), "rounding alone must not hide an error"
    errors = {finding.code for finding in lint(tmp_path / "out.onnx").findings if finding.fixable}
    assert not errors
    if animal.name not in NO_LAYER and report.fused:
        module_or_skip("tensorrt_rtx", "tensorrt-rtx")
        assert build(load_runtime("tensorrt-rtx"), onnx.load(tmp_path / "out.onnx"))
