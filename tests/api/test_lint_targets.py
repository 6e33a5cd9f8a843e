"""What `lint --target` promises of `optimize` is what the file has that `optimize` writes; real parsers judge both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stn_infer.api.lint import lint
from stn_infer.api.optimize import optimize
from stn_infer.metadata import Functions
from tests.support.onnx_files import F16, affine_grid_model, affine_model, flow_model
from tests.support.tensorrt_parts import module_or_skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "make_model", "command"),
    [
        ("tensorrt-rtx", affine_grid_model, "optimize"),
        ("tensorrt-rtx", lambda: flow_model(grid=F16), "optimize"),
        ("onnxruntime", lambda: affine_model(opset=28, ir_version=10), "optimize"),
        ("openvino", lambda: affine_model(opset=28, ir_version=10), "optimize --functions inline"),
        ("tensorrt==10.16", affine_grid_model, "optimize"),
    ],
)
def test_promises_are_kept(target: str, make_model: Any, command: str, tmp_path: Path) -> None:
    if target in ("openvino", "tensorrt-rtx"):
        module_or_skip(target.replace("-", "_"), target)
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    path.write_bytes(make_model().SerializeToString())
    (promise,) = lint(path, targets=[target]).targets
    assert (promise.outcome, promise.improved_by) == ("refused", command)
    functions: Functions = "inline" if "inline" in command else "keep"
    optimize(path, out, functions=functions)
    (kept,) = lint(out, targets=[target]).targets
    assert kept.outcome == promise.outcome_after
