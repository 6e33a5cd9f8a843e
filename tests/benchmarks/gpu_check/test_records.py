"""Lines of results that survive however their writer ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu_check.records import Record, Records, read, words_of


def test_lines_are_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "gpu.jsonl"
    assert list(read(path)) == []
    Records(path, "monday").append("head", gpu="H200")
    Records(path, "monday", "warps").append("row", "digits", device_ms=0.5)
    assert list(read(path)) == [
        Record("monday", "", "head", "", {"gpu": "H200"}),
        Record("monday", "warps", "row", "digits", {"device_ms": 0.5}),
    ]


@pytest.mark.parametrize("torn", ['{"run": "monday", "st', "[1, 2]\n", '{"kind": "row"}\n', "\xff\n", "null\n"])
def test_a_torn_line_costs_no_other(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    Records(path, "monday").append("head")
    with path.open("a", encoding="latin-1") as file:
        file.write(torn.removesuffix("\n") + "\n")
    Records(path, "monday").append("end")
    assert [record.kind for record in read(path)] == ["head", "end"]


def test_cases_of_a_step(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    step = Records(path, "monday", "warps")
    for case in ("a", "b", "c", "d"):
        step.append("begin", case)
    step.append("row", "a")
    step.append("failure", "b", reason="")
    step.append("note", "c", reason="")
    Records(path, "monday", "compile").append("row", "d")
    Records(path, "sunday", "warps").append("begin", "e")
    assert step.begun() == {"a", "b", "c", "d"} and step.unfinished() == ["d"]


def test_names_of_files() -> None:
    assert words_of("NVIDIA H200", "torch", "2.11.0+cu130") == "h200-torch-2.11.0-cu130"
    assert words_of("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3" and words_of("/../x") == "..-x"
