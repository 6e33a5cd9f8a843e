"""``benchmarks/gpu_feed.py`` without a GPU: its cases at few images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu_feed
from benchmarks.gpu_check.records import read


def test_every_case_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "feed.jsonl"
    given = ["--device", "cpu", "--tiny", "-o", str(path), "--run", "monday"]
    assert gpu_feed.main(given) == 0
    records = list(read(path))
    names = [case.name for case in gpu_feed.CASES]
    rows = {
        (record.case, record.values["variant"]): record.values["rows_per_s"]
        for record in records
        if record.kind == "row"
    }
    assert set(rows) == {(name, variant) for name in names for variant in ("bus", "model", "run")}
    figures = {record.case: record.values for record in records if record.kind == "figure"}
    for name in names:
        slower = min(rows[name, "bus"], rows[name, "model"])
        assert figures[name]["value"] == pytest.approx(rows[name, "run"] / slower) and figures[name]["target"] == 0.6
    assert "rows/s" in capsys.readouterr().out
    assert gpu_feed.main(given) == 0 and len(list(read(path))) == len(records)  # the same run has nothing left


def test_a_missing_package_is_noted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(*arguments: object) -> dict[str, float]:
        raise ModuleNotFoundError("No module named 'PIL'")

    monkeypatch.setattr(gpu_feed, "measure", measure)
    path = tmp_path / "feed.jsonl"
    assert gpu_feed.main(["--device", "cpu", "--tiny", "-o", str(path)]) == 0
    notes = [record.values["reason"] for record in read(path) if record.kind == "note"]
    assert notes == ["No module named 'PIL'"] * len(gpu_feed.CASES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_an_error() -> None:
    with pytest.raises(SystemExit, match="finds no usable GPU"):
        gpu_feed.main([])
