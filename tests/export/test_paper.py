"""The table of the paper's experiments: blank where nothing was trained, and as the results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export import paper
from stn_infer.errors import InputError

FIGURES = {"error": 0.834, "images": 10000, "seconds": 2162, "epochs": 12, "settings": ""}


def result(folder: Path, cell: str, **figures: object) -> Path:
    path = folder / f"{cell}-model-0.json"
    path.write_text(json.dumps({**FIGURES, **figures}))
    return path


def rows(page: str) -> dict[str, list[str]]:
    """By first cell, the others of its rows, one row after the other."""
    found: dict[str, list[str]] = {}
    for line in page.splitlines():
        name, *cells = line.strip("|").split("|")
        found.setdefault(name.strip(), []).extend(cell.strip() for cell in cells)
    return found


def test_the_committed_table_is_that_of_the_committed_results() -> None:
    assert paper.table(paper.read(paper.RESULTS)) == paper.TABLE.read_text()


def test_a_cell_stands_beside_the_papers_and_others_stay_blank(tmp_path: Path) -> None:
    result(tmp_path, "st-cnn-affine-rts")
    found = rows(paper.table(paper.read(tmp_path)))
    assert found["st-cnn-affine"] == ["(0.7)", "**0.83** (0.5)", "(0.8)", "(1.2)", "(1.7)"]
    assert found["cnn"] == ["(1.2)", "(0.8)", "(1.5)", "(1.4)", "(3.5)"]
    assert found["st-cnn-tps"][-1] == "", "the paper has no such experiment"
    assert found["st-cnn-affine-rts"] == ["12", "128", "0.002", "fp32", "2,162", "10,000"]
    assert "cnn-rts" not in found


def test_other_experiments_tell_their_scores(tmp_path: Path) -> None:
    result(tmp_path, "colocalization", error=0.0, iou=92.5, device="NVIDIA H200")
    result(tmp_path, "house-numbers-cnn", error=20.0, digit_error=5.25)
    found = rows(paper.table(paper.read(tmp_path)))
    assert found["colocalization"][:2] == ["**0.00** (0.0)", "mean IoU 0.925"]
    assert found["house-numbers-cnn"][:2] == ["**20.00**", "error of a digit 5.25 %"]
    assert "2,162 (NVIDIA H200)" in found["colocalization"]
    result(tmp_path, "cnn-tc", precision="bf16")
    assert "bf16" in rows(paper.table(paper.read(tmp_path)))["cnn-tc"]


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"error": "none", "epochs": 1, "images": 1, "seconds": 1}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "cnn-r-model-0.json").write_text(content)
    with pytest.raises(InputError, match=r"cnn-r-model-0\.json is not the result of a training run"):
        paper.read(tmp_path)
