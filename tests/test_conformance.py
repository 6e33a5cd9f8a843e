"""Tests of others: ONNX's node tests and PyTorch's sample inputs, through ``benchmarks/conformance.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "conformance.py"
OURS = ("reference", "our op, opset 18", "our op, opset 22")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What the script found; in a process of its own, because PyTorch's test code freezes torch's global flags."""
    folder = tmp_path_factory.mktemp("conformance")
    result = subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(folder / "page.md"), "--json", str(folder / "rows.json")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads((folder / "rows.json").read_text())
    found["page"] = [{"text": (folder / "page.md").read_text()}]
    return found


@pytest.mark.parametrize(
    ("collection", "count", "columns"),
    [("nodes", 26, OURS), ("samples", 18, OURS[:2])],
)
def test_the_reference_and_our_op_pass_every_test(
    rows: dict[str, list[dict[str, Any]]], collection: str, count: int, columns: tuple[str, ...]
) -> None:
    assert len(rows[collection]) == count
    assert {
        row["name"]: column for row in rows[collection] for column in columns if not row["cells"][column]["passed"]
    } == {}


def test_the_written_page_is_of_these_tests(rows: dict[str, list[dict[str, Any]]]) -> None:
    """The figures depend on versions and the processor, so only the names and the counts are compared."""

    def skeleton(page: str) -> list[str]:
        lines = [line for line in page.splitlines() if line.startswith("|")]
        return [line if "**passed**" in line else line.split("|")[1] for line in lines]

    written = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    assert skeleton(written) == skeleton(rows["page"][0]["text"])
