"""``benchmarks/gpu_decode.py`` without a GPU: nvImageCodec's decoder for CPUs on few small files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu_decode
from benchmarks.gpu_check.records import read
from stn_infer.errors import MissingDependencyError
from tests.support.tensorrt_parts import module_or_skip


def test_every_case_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module_or_skip("nvidia.nvimgcodec", "nvidia-nvimgcodec-cu13")
    monkeypatch.setattr(gpu_decode, "_COMPARED", (60, 90))
    path = tmp_path / "decode.jsonl"
    given = ["--device", "cpu", "--tiny", "-o", str(path), "--run", "monday"]
    assert gpu_decode.main(given) == 0
    records = list(read(path))
    rows = {(record.case, record.values["variant"]) for record in records if record.kind == "row"}
    timed = {(case.name, variant) for case in gpu_decode.CASES for variant in ("pillow", "nvimgcodec")}
    assert rows == {*timed, ("pixels", "compared")}
    figures = {record.values["name"]: record.values for record in records if record.kind == "figure"}
    pixels = [values for name, values in figures.items() if name.startswith("pixels")]
    assert len(pixels) == 14 and all(values["value"] == 0 and values["reached"] for values in pixels)
    assert len(figures) == 14 + len(gpu_decode.CASES)
    assert gpu_decode.main(given) == 0 and len(list(read(path))) == len(records)  # the same run has nothing left


def test_a_file_that_is_decoded_otherwise_ends_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stn_infer.data.codecs.nvimgcodec.JpegDecoder.__init__", lambda self, device: None)
    monkeypatch.setattr(
        "stn_infer.data.codecs.nvimgcodec.JpegDecoder.decode", lambda self, files, rule, size: [None] * len(files)
    )
    with pytest.raises(SystemExit, match="4:4:4: nvImageCodec did not decode the file"):
        gpu_decode.compare("cpu", (20, 30))


def test_a_missing_library_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*arguments: object) -> None:
        raise MissingDependencyError("nvImageCodec is not installed")

    monkeypatch.setattr(gpu_decode, "compare", missing)
    monkeypatch.setattr(gpu_decode, "measure", missing)
    path = tmp_path / "decode.jsonl"
    assert gpu_decode.main(["--device", "cpu", "--tiny", "-o", str(path)]) == 0
    notes = [record.values["reason"] for record in read(path) if record.kind == "note"]
    assert notes == ["nvImageCodec is not installed"] * (1 + len(gpu_decode.CASES))
