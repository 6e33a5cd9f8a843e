"""The notebooks in examples/ run from the first cell to the last and get what they promise."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
#: Per notebook: bounds (lowest, highest) of variables after the last cell, and the files that it writes.
PROMISES: dict[str, tuple[dict[str, tuple[float, float]], set[str]]] = {
    "birds_eye_view": (
        {"fused": (1, 1), "map_error": (0, 0.04), "unmoved_error": (0.06, 1), "difference": (0, 1e-4)},
        {"birds_eye.onnx", "road.npz", "birds_eye.png"},
    ),
    "license_plates": (
        {
            "fused": (1, 1),
            "corners_before": (6, 20),
            "corners_after": (0, 2),
            "plates_after": (0, 0.27),
            "difference": (0, 1e-4),
        },
        {"plates.onnx", "scenes.npy", "plates.png"},
    ),
    "spatial_transformer_tutorial": (
        {"fused": (1, 1), "accuracy": (0.9, 1), "exported_accuracy": (0.9, 1), "difference": (0, 1e-3)},
        {"tutorial.pt2", "tutorial.onnx", "tutorial.png"},
    ),
    "text_rectification": (
        {"fused": (1, 1), "distance_before": (4, 20), "distance_after": (0, 0.5), "difference": (0, 1e-4)},
        {"rectifier.pt2", "rectifier.onnx", "rectification.png"},
    ),
    "volume_registration": (
        {"fused": (1, 1), "theta_error": (0, 2e-3), "residual": (0, 5e-3), "difference": (0, 1e-4)},
        {"registration.pt2", "registration.onnx", "registration.png"},
    ),
}

#: Runs the code cells of argv[1] in one namespace; writes the variables named in argv[3:] to argv[2].
_RUNNER = """
import json, sys
import matplotlib
matplotlib.use("Agg")
path, result, *names = sys.argv[1:]
title = path.replace("\\\\", "/").rpartition("/")[2]
book = json.load(open(path, encoding="utf-8"))
scope = {"__name__": "__main__"}
for number, cell in enumerate(book["cells"]):
    if cell["cell_type"] == "code":
        try:
            exec(compile("".join(cell["source"]), f"{title}, cell {number}", "exec"), scope)
        except BaseException as error:
            sys.exit(f"{title}, cell {number}: {type(error).__name__}: {error}")
json.dump({name: float(scope[name]) for name in names}, open(result, "w"))
"""


def executed(notebook: Path, folder: Path, names: list[str]) -> tuple[dict[str, float], str]:
    """The values of the variables ``names`` after a run of ``notebook`` in the empty ``folder``, and its stderr."""
    work, result = folder / "work", folder / "values.json"
    work.mkdir()
    command = [sys.executable, "-c", _RUNNER, str(notebook), str(result), *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=1200)
    values: dict[str, float] = json.loads(result.read_text()) if done.returncode == 0 else {}
    return values, done.stderr


def cells(notebook: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return found


def test_every_notebook_promises_something() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(PROMISES)
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in NOTEBOOKS if path.name not in text] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped_and_cells_are_plain_python(notebook: Path) -> None:
    for number, cell in enumerate(cells(notebook)):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, f"cell {number} has outputs"
            text = "".join(cell["source"])
            assert not re.search(r"^\s*[%!]|^\s*\?|\?\s*$", text, re.MULTILINE), f"cell {number} has a magic"
            compile(text, f"{notebook.name}, cell {number}", "exec")


def test_an_error_names_notebook_and_cell(tmp_path: Path) -> None:
    broken = tmp_path / "broken.ipynb"
    sources = [("markdown", "# A title"), ("code", "one = 1"), ("code", "one / 0")]
    broken.write_text(json.dumps({"cells": [{"cell_type": kind, "source": [text]} for kind, text in sources]}))
    values, errors = executed(broken, tmp_path, ["one"])
    assert values == {}
    assert errors.strip().splitlines()[-1] == "broken.ipynb, cell 2: ZeroDivisionError: division by zero"


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    bounds, files = PROMISES[notebook.stem]
    values, errors = executed(notebook, tmp_path, list(bounds))
    assert values, errors
    outside = {name: values[name] for name, (low, high) in bounds.items() if not low <= values[name] <= high}
    assert outside == {}
    assert {path.name for path in (tmp_path / "work").iterdir()} == files
    assert all((tmp_path / "work" / name).stat().st_size > 1000 for name in files)
