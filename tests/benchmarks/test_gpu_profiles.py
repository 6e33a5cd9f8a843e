"""``benchmarks/gpu_profiles.py`` without a GPU: TensorRT-RTX builds the engine, and onnxruntime runs the batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_profiles
from benchmarks.gpu_check.records import read
from stn_infer.backends.ort import OrtBackend
from stn_infer.backends.tensorrt.runtime import TensorRT


def test_both_profiles_and_a_batch_between_them(
    rtx: TensorRT, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "profiles.jsonl"
    given = ["--device", "cpu", "--tiny", "-o", str(path), "--run", "monday"]
    assert gpu_profiles.main(given) == 0
    rows = [record.values for record in read(path) if record.kind == "row"]
    assert [row["variant"] for row in rows] == ["batch 1, profile 0", "batch 64, profile 1", "batch 3, profile 1"]
    assert all(row["device_ms"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "profile 0: input=1x3x16x16:1x3x16x16:1x3x16x16" in printed and "profile 1: theta=8x2x3:64x2x3" in printed
    assert gpu_profiles.main(given) == 0 and len(list(read(path))) == 4  # the same run has nothing left

    class Wrong(OrtBackend):
        def run(self, inputs: object) -> dict[str, np.ndarray]:  # type: ignore[type-arg,override]
            found = super().run(inputs)  # type: ignore[arg-type]
            return {name: values + len(values) * next(self.added) for name, values in found.items()}

        added = iter([0, 0, 0, 0, 0, 0.1])  # the reference, then the backend, in turn

    monkeypatch.setattr("stn_infer.backends.ort.OrtBackend", Wrong)
    with pytest.raises(SystemExit, match="a batch of 3 is wrong by 0\\.3 in turn 0"):
        gpu_profiles.main(given[:3])


def test_a_missing_package_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(*arguments: object) -> None:
        raise ModuleNotFoundError("No module named 'onnx'")

    monkeypatch.setattr(gpu_profiles, "measure", measure)
    path = tmp_path / "profiles.jsonl"
    assert gpu_profiles.main(["--device", "cpu", "-o", str(path)]) == 0
    assert [record.values["reason"] for record in read(path) if record.kind == "note"] == ["No module named 'onnx'"]
