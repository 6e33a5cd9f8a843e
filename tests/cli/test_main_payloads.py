"""No file runs its payload, whatever it is, in whatever command: a sample of ``tests/support/payloads.py``.

``STN_FAULTS=97 pytest -m slow tests/cli/test_main_payloads.py`` takes all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

EVERY = max(1, 97 // int(os.environ.get("STN_FAULTS", "1")))


@pytest.mark.slow
def test_no_payload_runs() -> None:
    command = [sys.executable, "-m", "tests.support.payloads", "--every", str(EVERY)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    counts = json.loads(ended.stdout)
    assert counts["pairs"] * EVERY >= counts["files"] * counts["commands"] and counts["ran"] == []


@pytest.mark.slow
def test_the_payloads_run_where_nobody_prevents_it() -> None:
    """What is unpickled runs them: the files are not harmless."""
    code = """
import pickle, sys, tempfile
from pathlib import Path
import numpy as np, torch
from tests.support.payload_files import write
with tempfile.TemporaryDirectory() as folder:
    files, mark = Path(folder) / "files", Path(folder) / "ran"
    files.mkdir()
    write(files, mark)
    for name, load in {
        "zip.pt": lambda path: torch.load(path, weights_only=False),
        "legacy.pth": lambda path: torch.load(path, weights_only=False),
        "objects.npy": lambda path: np.load(path, allow_pickle=True),
        "renamed.onnx": lambda path: pickle.loads(path.read_bytes()),
        "sample-inputs.pt2": torch.export.load,
    }.items():
        load(files / name)
        assert mark.exists(), name
        mark.unlink()
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=600)
