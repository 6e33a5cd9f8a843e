"""TensorRT's parser sees a third-party model in a process of its own first."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from stn_infer.backends.tensorrt.runtime import TensorRT
from stn_infer.backends.tensorrt.trial import try_parser
from stn_infer.budget import Budget
from stn_infer.errors import ModelError
from tests.support.onnx_files import F32, affine_model, make


def chain(length: int) -> onnx.ModelProto:
    """Nodes in a row, each of which the parser reads in linear time."""
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(length)]
    return make(nodes, {"t0": (F32, ["n", 4])}, {f"t{length}": (F32, ["n", 4])}, [])


def tried(model: onnx.ModelProto, budget: Budget) -> None:
    try_parser(model, "tensorrt-rtx", None, "model.onnx", None, budget)


@pytest.mark.usefixtures("rtx")
def test_a_sound_model_passes() -> None:
    tried(affine_model(), Budget())


@pytest.mark.usefixtures("rtx")
def test_a_model_that_is_rejected_is_left_to_the_builder() -> None:
    tried(
        make([helper.make_node("Strange", ["x"], ["y"])], {"x": (F32, ["n", 4])}, {"y": (F32, ["n", 4])}, []), Budget()
    )


@pytest.mark.slow
@pytest.mark.usefixtures("rtx")
def test_time_is_limited() -> None:
    with pytest.raises(ModelError, match=r"model\.onnx: its analysis takes more than 1 s of CPU time.*--trial-seconds"):
        tried(chain(300_000), Budget(seconds=1))


def test_a_trusted_model_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stn_infer.backends.tensorrt.trial.run_trial", lambda *rest: pytest.fail("it was tried"))
    tried(affine_model(), Budget(seconds=0))


def test_a_crash_is_one_line(rtx: TensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"model\.onnx: a native library crashed on it \(SIGSEGV\)"):
        tried(affine_model(), Budget())
