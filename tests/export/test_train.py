"""The training script, end to end on a recipe of one epoch."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from export import train, trainer
from stn_infer.models import create
from stn_infer.sources.load import load_source
from tests.support.paths import ROOT

SCRIPT = ROOT / "export" / "train.py"
RECIPE = """
[model]
network = "st-fcn-attention"
input_shape = [1, 28, 28]
options = { hidden = 32 }
[data]
distortion = "E"
canvas = [28, 28]
[training]
epochs = 1
batch_size = 100
learning_rate = 3e-3
seeds = [5]
[twin]
network = "fcn"
options = { hidden = 32 }
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def run_here(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> str:
    """Run the script in this process, without child processes; returns its error line, empty on success."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        assert isinstance(end.code, str), "a line, with exit code 1"
        return end.code
    return ""


@pytest.mark.slow
def test_a_recipe_is_trained_and_completed_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.toml").write_text(RECIPE)
    first = run(tmp_path, "small.toml", "-o", "out", "--work", "work", "--jobs", "2")
    assert first.returncode == 0, first.stderr
    figures = json.loads((tmp_path / "out" / "small.json").read_text())
    assert figures["seeds"] == [5]
    assert figures["shipped_seed"] == 5
    assert figures["twin"] == "fcn"
    assert figures["images"] == 10_000
    assert all(error < 60 for error in figures["errors"] + figures["twin_errors"]), "worse than learning nothing: 90"
    network = create("st-fcn-attention", hidden=32)
    network.load_state_dict(load_file(tmp_path / "out" / "small.safetensors"))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()}
    assert len(kept) == 4
    assert run_here(monkeypatch, tmp_path, "small.toml", "-o", "out", "--work", "work", "--jobs", "1") == ""
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").iterdir()} == kept


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs network"),
        ('[model]\nnetwork = "fcn"\ninput_shape = [1, 28, 28]\n', "cannot be trained: it needs [data] and [training]"),
    ],
)
def test_a_recipe_that_cannot_be_trained_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "small.toml").write_text(text)
    line = run_here(monkeypatch, tmp_path, "small.toml")
    assert line.startswith("error: ") and message in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cell", "svhn-64-cnn"], "svhn-64-cnn is trained on your own data set; give its folder with --data"),
        (["--cell", "svhn-64-cnn", "--cell", "cub-224-cnn", "--data", "x"], "read different data sets"),
        (["--cell", "addition-cnn", "--data", "x"], "--data is the folder of cells svhn-* or cub-*"),
        (["--data", "x"], "--data is the folder of cells svhn-* or cub-*"),
    ],
)
def test_data_of_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    line = run_here(monkeypatch, tmp_path, *arguments)
    assert line.startswith("error: ") and message in line


def test_snapshots_of_what_is_complete_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = run_here(monkeypatch, tmp_path, "--cell", "st-cnn-affine-r", "--snapshots", "5")
    assert line.startswith("error: st-cnn-affine-r-model-0 is complete in ") and "--work and -o" in line
    line = run_here(monkeypatch, tmp_path, "--cell", "st-cnn-affine-r", "--snapshots", "-1")
    assert line == "error: --snapshots is a number of at least 0, not -1"


def test_a_trained_cell_has_its_recipe_beside_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def perform_all(runs: list[trainer.Run], arguments: argparse.Namespace) -> None:
        (trained,) = runs
        figures = {"error": 12.5, "settings": trained.settings}
        arguments.work.mkdir()
        (arguments.work / f"{trained.name}.json").write_text(json.dumps(figures))
        network = trained.network()
        save_file(network.state_dict(), arguments.work / f"{trained.name}.safetensors")

    monkeypatch.setattr(train, "_perform_all", perform_all)
    name = "st-fcn-attention-r"
    monkeypatch.setattr(sys, "argv", ["train.py", "--cell", name, "--work", str(tmp_path / "w"), "-o", str(tmp_path)])
    train.main()
    loaded = load_source(tmp_path / "w" / f"{name}-model-0.toml")
    assert loaded.input_shapes == ((1, 28, 28),) and not loaded.note, "with the weights beside it"
    assert loaded.metadata.labels == tuple("0123456789")
    assert (tmp_path / f"{name}-model-0.json").is_file()
