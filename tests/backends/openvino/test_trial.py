"""OpenVINO sees a third-party model in a process of its own first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from stn_infer.api.open import open_backend
from stn_infer.backends.openvino.trial import try_openvino
from stn_infer.budget import Budget
from stn_infer.errors import ModelError
from stn_infer.fusion.fuse import fuse
from tests.support.onnx_files import F32, affine_model, make
from tests.support.tensorrt_parts import module_or_skip

STRANGE = make([helper.make_node("Strange", ["x"], ["y"])], {"x": (F32, ["n", 4])}, {"y": (F32, ["n", 4])}, [])


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    module_or_skip("openvino", "openvino")


@pytest.mark.parametrize("stored", ["bytes", pytest.param("external", marks=pytest.mark.slow)])
def test_a_sound_model_passes(stored: str, tmp_path: Path) -> None:
    model = fuse(affine_model())[0]
    content: Any = model.SerializeToString()
    if stored == "external":
        content = tmp_path / "model.onnx"
        onnx.save(model, content, save_as_external_data=True, size_threshold=512)
    try_openvino(content, "model.onnx", Budget())


@pytest.mark.slow
def test_a_model_that_is_rejected_is_left_to_the_backend() -> None:
    try_openvino(STRANGE.SerializeToString(), "model.onnx", Budget())


def test_a_trusted_model_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stn_infer.backends.openvino.trial.run_trial", lambda *rest: pytest.fail("it was tried"))
    try_openvino(affine_model().SerializeToString(), "model.onnx", Budget(seconds=0))


def test_a_crash_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(affine_model().SerializeToString())
    monkeypatch.setattr("stn_infer.api.source.try_once", lambda *rest, **more: "")
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"model\.onnx: a native library crashed on it \(SIGSEGV\)"):
        open_backend(path, "openvino", budget=Budget())
