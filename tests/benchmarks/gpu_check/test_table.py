"""Measured times beside the predictions of NOTES.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu_check import table
from benchmarks.gpu_check.records import Record, Records
from benchmarks.gpu_warps import WARPS

_NOTES = """
| case | | predicted | other |
|---|---|---|---|
| 256x3x224x224 fp32 | before | **152.0** | 1 |
| | now | **102.8** | 2 |
| 8x3x224x224 fp16, channels-last | now | 36 to 40 | |
| 1x1x1x1 fp32 | now | unknown | |
| 2x2x2x2 fp32 | now | 5 | |

| change | predicted |
|---|---|
| 256x3x224x224 fp32 | 7 |
"""


def row(case: str, variant: str, device_ms: float) -> Record:
    return Record("monday", "headline", "row", case, {"variant": variant, "device_ms": device_ms})


def test_predictions_are_those_of_the_newest_kernel() -> None:
    found = {one.case: one.microseconds for one in table.predictions(_NOTES).values()}
    assert found == {"256x3x224x224 fp32": 102.8, "8x3x224x224 fp16, channels-last": 36.0, "2x2x2x2 fp32": 5.0}


def test_the_notes_predict_cases_that_are_measured() -> None:
    found = table.predictions(table.NOTES.read_text(encoding="utf-8"))
    assert len(found) >= 7
    measured = {table.key_of(case.name) for case in WARPS}
    assert [one.case for key, one in found.items() if key not in measured] == []


def test_times_beside_predictions() -> None:
    photos, features = "256x3x224x224 float32", "8x3x224x224 float16, channels last"
    before = [row(photos, "fused", 0.2), row(photos, "copy", 0.1), row("network", "graph, fused", 1.0)]
    after = [row(photos, "fused", 9.0), row(photos, "fused", 0.125), row(photos, "copy", 0.1)]
    after += [row(photos, "eager", 0.5), row(photos, "compile", 0.25), row(features, "fused", 0.04)]
    assert table.table({"old": before, "new": after}, _NOTES).splitlines() == [
        "| case | predicted us, H100 | old: us | of the copy | over eager | over compile "
        "| new: us | of the copy | over eager | over compile |",
        "|---|---|---|---|---|---|---|---|---|---|",
        f"| {photos} | 102.8 | 200.0 | 0.50 |  |  | 125.0 | 0.80 | 4.00 | 2.00 |",
        f"| {features} | 36 |  |  |  |  | 40.0 |  |  |  |",
        "2x2x2x2 fp32: predicted, not measured",
    ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu-h200.jsonl"
    values = {"variant": "fused", "device_ms": 0.09}
    Records(path, "monday", "headline").append("row", "256x3x224x224 float32", **values)
    table.main([str(path)])
    assert "| 256x3x224x224 float32 | 102.8 | 90.0 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"none\.jsonl: there is no such file"):
        table.main([str(tmp_path / "none.jsonl")])
