"""What ``bench`` says where files are read and nothing says how they become inputs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from stn_infer.api.metadata import write_metadata
from stn_infer.benchmarking.harness import session
from stn_infer.cli.main import main
from tests.support.onnx_files import affine_model


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


class Reached(Exception):
    """The cases are loaded; what follows is measurement."""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that does not say what it takes; ``bench`` ends once it has loaded its cases."""

    def loads(request: Any, resolve: Any, **more: Any) -> None:
        for case in request.cases:
            resolve(case)
        raise Reached

    monkeypatch.setattr(session, "run_request", loads)
    onnx.save(affine_model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def said(*arguments: object) -> tuple[str, int]:
    with warnings.catch_warnings():
        done = CliRunner().invoke(main, ["bench", *map(str, arguments), "--variant", "ort"])
    return "".join(f"{line}\n" for line in done.stderr.splitlines() if "rows in" not in line), done.exit_code


ASSUMED = "nothing says what the model takes; assumed gray with values 0..1. Store the preprocessing of its training"


@pytest.mark.parametrize("source", ["file", "factory"])
def test_one_warning_end_to_end_and_an_error_with_strict(model: Path, source: str) -> None:
    of = [model] if source == "file" else [f"{__name__}:Mean", "--input-shape", "1,8,8"]
    text, _ = said(*of, "--boundary", "end-to-end")
    assert text.count(f"warning: {ASSUMED}") == text.count("assumed") == 1 and "Reached" in text
    text, code = said(*of, "--boundary", "end-to-end", "--strict")
    assert (code, text.count("\n")) == (2, 1) and text.startswith(f"error: {ASSUMED}")


def test_nothing_is_said_where_nothing_is_assumed(model: Path) -> None:
    assert "assumed" not in said(model)[0]  # arrays are inputs as they are
    assert "assumed" not in said("st-cnn-affine-rts", "--boundary", "end-to-end", "--strict")[0]
    write_metadata(model, preprocess="gray")
    assert "assumed" not in said(model, "--boundary", "end-to-end", "--strict")[0]


def test_a_model_that_takes_no_image(model: Path) -> None:
    assert "assumed" not in said(f"{__name__}:Mean", "--input-shape", "5,8,8", "--boundary", "end-to-end")[0]
