"""``stn-infer export`` with wrong arguments: a one-line message, the exit code, and no file written."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from stn_infer.cli.main import main
from stn_infer.sources.load import load_source
from tests.support.helpers import nothing_larger_than
from tests.support.paths import ROOT

FACTORIES = """
import torch
import torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 6)
    def forward(self, x):
        theta = self.head(x.flatten(1)).view(-1, 2, 3)
        return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False)

class NoSampler(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 3)
    def forward(self, x):
        return self.head(x.flatten(1))

def broken():
    net = Net()
    with torch.no_grad():
        net.head.bias[2] = float("nan")
    return net

def make():
    return Net()

def raises():
    raise ValueError("the config names no backbone\\n(second line)")

def number():
    return 3

class Unexportable(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x

class Slow(Net):
    def __init__(self):
        super().__init__()
        print("building", flush=True)
        import time
        time.sleep(60)
"""
SHAPE = ("--input-shape", "1,8,8")
NET = "export_factories:Net"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the factories above and an older ``model.onnx`` in it."""
    (tmp_path / "export_factories.py").write_text(FACTORIES)
    (tmp_path / "model.onnx").write_bytes(b"an older file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("export_factories", None)


def refused(folder: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and the one line of an export that must fail and leave the folder as it was."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "pycache" not in str(path)}
    result = CliRunner().invoke(main, ["export", *arguments])
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "pycache" not in str(path)}
    assert after == before
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert "internal error" not in lines[0]
    return result.exit_code, lines[0].removeprefix("error: ")


def save_truncated(path: Path) -> None:
    torch.save(state(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_truncated_safetensors(path: Path) -> None:
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-9])


def state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"head.weight": torch.zeros(6, 64), "head.bias": torch.zeros(6), **changes}


WEIGHTS: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("w.pt", lambda path: None, "w.pt: expected a checkpoint (.safetensors, .pt or .pth), but the path"),
    "truncated": ("w.pt", save_truncated, "the end of torch.save's archive is missing"),
    "truncated safetensors": ("w.safetensors", save_truncated_safetensors, "it has 1,695 of 1,704 bytes"),
    "zero bytes": ("w.pt", lambda path: path.touch(), "w.pt is empty; the download"),
    "pickle": (
        "w.pt",
        lambda path: path.write_bytes(pickle.dumps(Fraction(1, 2))),
        "found an object of fractions.Fraction",
    ),
    "wrong keys": (
        "w.pt",
        lambda path: torch.save({"fc.weight": torch.zeros(6, 64), "head.bias": torch.zeros(6)}, path),
        "1 missing (head.weight), 1 unexpected (fc.weight)",
    ),
    "wrong shape": (
        "w.pt",
        lambda path: torch.save(state(**{"head.weight": torch.zeros(6, 49)}), path),
        "head.weight is 6x49, expected 6x64",
    ),
    "NaN": (
        "w.pt",
        lambda path: torch.save(state(**{"head.bias": torch.full((6,), float("nan"))}), path),
        "head.bias contains NaN (6 of 6 values)",
    ),
}


@pytest.mark.parametrize(("name", "save", "message"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights(folder: Path, name: str, save: Callable[[Path], object], message: str) -> None:
    save(folder / name)
    code, line = refused(folder, NET, *SHAPE, "--weights", name, "-o", "model.onnx")
    assert code == 1
    assert message in line


def test_a_class_without_weights_is_a_warning(folder: Path) -> None:
    assert load_source("export_factories:make", input_shapes=[(1, 8, 8)]).warning == ""
    done = CliRunner().invoke(main, ["export", NET, *SHAPE, "-o", "model.onnx"], catch_exceptions=False)
    first = f"warning: {NET} is a class and --weights is not given: its weights are random (seed 0)"
    assert done.stdout.splitlines()[0] == first
    assert "weights: random" in CliRunner().invoke(main, ["metadata", "model.onnx"]).stdout.splitlines()


def test_the_part_that_was_taken_is_told_and_stored(folder: Path) -> None:
    averaged = state(**{"head.bias": torch.arange(6.0), "aux.weight": torch.ones(2)})
    torch.save({"model": state(), "ema": averaged}, folder / "w.pt")
    done = CliRunner().invoke(
        main, ["export", NET, *SHAPE, "--weights", "w.pt", "--ignore-extra", "-o", "model.onnx"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    note = "note: w.pt: took averaged weights (EMA) from 'ema'; it also has 'model', which --weights FILE#KEY takes"
    assert note in done.stdout.splitlines()
    model = onnx.load(folder / "model.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props}["stn_infer.weights"] == "ema (averaged)"
    assert "weights: ema (averaged)" in CliRunner().invoke(main, ["metadata", "model.onnx"]).stdout.splitlines()
    code, line = refused(folder, NET, *SHAPE, "--weights", "w.pt#emma", "-o", "model.onnx")
    assert (code, line) == (1, "w.pt: it has no part 'emma'; the parts with tensors are 'ema', 'model'")
    assert refused(folder, NET, *SHAPE, "--ignore-extra", "-o", "model.onnx")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["st-cnn-afine"], 1, "did you mean st-cnn-affine"),
        (["missing.toml"], 1, "missing.toml"),
        (["missing.pt2"], 1, "missing.pt2: expected a program saved by torch.export.save"),
        (["export_factories.py"], 1, "name a factory in it as export_factories:FACTORY"),
        (["nowhere:make", *SHAPE], 1, "No module named 'nowhere'"),
        (["export_factories:Nett", *SHAPE], 1, "did you mean Net?"),
        (["export_factories:raises", *SHAPE], 1, "raised ValueError: the config names no backbone (second line)"),
        (["export_factories:number", *SHAPE], 1, "expected a torch.nn.Module or a callable that returns one, got int"),
        (["export_factories:broken", *SHAPE], 1, "head.bias contains NaN (1 of 6 values)"),
        pytest.param(
            ["export_factories:Unexportable", *SHAPE],
            1,
            "Unexportable: torch.onnx.export cannot export it",
        ),
        ([NET], 2, "add --input-shape C,H,W"),
        ([NET, "--input-shape", "1x8x8"], 2, "--input-shape takes integers of at least 1"),
        ([NET, "--input-shape", "1,9,9"], 2, "cannot be run on an input of shape 1,9,9"),
        ([NET, "--input-shape", "1,8,8;1,8,8"], 2, "--input-shape"),
        ([NET, *SHAPE, "--preprocess", "color=blue"], 2, "preprocess color"),
        ([NET, *SHAPE, "--labels", "missing.txt"], 2, "missing.txt"),
        (["export_factories:NoSampler", *SHAPE, "--with-theta"], 1, "no theta to add"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_source_and_options(folder: Path, arguments: list[str], code: int, message: str) -> None:
    found, line = refused(folder, *arguments, "-o", "model.onnx")
    assert found == code
    assert message in line


@pytest.mark.parametrize(("output", "code"), [("no/such/folder/model.onnx", 1), (".", 2), ("/dev/null", 1)])
def test_an_output_that_cannot_be_written(folder: Path, output: str, code: int) -> None:
    found, line = refused(folder, NET, *SHAPE, "-o", output)
    assert found == code
    assert output in line


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission(folder: Path) -> None:
    (folder / "locked").mkdir(mode=0o500)
    code, line = refused(folder, NET, *SHAPE, "-o", "locked/model.onnx")
    assert code == 1 and "locked is not writable" in line


def test_a_model_without_grid_sample_is_exported_with_a_note(folder: Path) -> None:
    result = CliRunner().invoke(main, ["export", "export_factories:NoSampler", *SHAPE, "-o", "model.onnx"])
    assert result.exit_code == 0, result.stderr
    assert "no GridSample" in result.stdout
    assert not onnx.load("model.onnx").functions


def test_a_full_disk_leaves_the_older_file(folder: Path) -> None:
    with nothing_larger_than(1000):
        result = CliRunner().invoke(main, ["export", NET, *SHAPE, "-o", "model.onnx"])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == ["error: cannot write model.onnx: File too large"]
    assert (folder / "model.onnx").read_bytes() == b"an older file"
    assert [path.name for path in folder.glob("*.part")] + [path.name for path in folder.glob(".*")] == []


# ---- in a separate process ---------------------------------------------------------------------------------------

COMMAND = "from stn_infer.cli.main import main; main()"


def spawn(folder: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, "export", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=environment,
    )


def test_an_interrupted_export_is_code_130(folder: Path) -> None:
    process = spawn(folder, COMMAND, "export_factories:Slow", *SHAPE, "-o", "model.onnx")
    assert process.stderr is not None
    assert process.stderr.readline() == "building\n"  # what a model prints goes there
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.split() == ["error:", "interrupted"]  # on a separate line, after the terminal's ^C
    assert (folder / "model.onnx").read_bytes() == b"an older file"
