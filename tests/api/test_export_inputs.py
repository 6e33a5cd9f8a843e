"""Export with declared types and with example inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from stn_infer.backends.ort import OrtBackend
from stn_infer.cli.main import main

HERE = "tests.api.test_export_inputs"


class Indexed(nn.Module):
    """A picture of bytes, and the number of a row in a table; values from 2 on select other rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)

    def forward(self, picture: Tensor, index: Tensor) -> Tensor:
        return picture.float().mean((1, 2))[:, None] / 255 + self.table(index)


class Camera(nn.Module):
    """Refuses matrices that are not those of a camera: noise is none."""

    def forward(self, camera: Tensor) -> Tensor:
        torch._check(camera.shape[1] == 3)
        return torch.linalg.inv(camera)


@pytest.mark.slow
def test_declared_types(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    given = ["--input", "index:int64", "--input", "picture:uint8:4,5"]
    result = CliRunner().invoke(main, ["export", f"{HERE}:Indexed", *given, "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert "picture [batch, 4, 5]; index [batch]" in result.output
    assert "integer inputs were verified with 0 and 1 only" in result.output
    backend = OrtBackend(path, threads=1)
    assert [spec.dtype for spec in backend.inputs] == [np.uint8, np.int64]


def test_example_inputs(tmp_path: Path) -> None:
    examples, path = tmp_path / "cameras.npz", tmp_path / "m.onnx"
    camera = np.array([[1200, 0, 960], [0, 1200, 540], [0, 0, 1]], np.float64) * np.ones((5, 1, 1))
    np.savez(examples, camera=camera)
    result = CliRunner().invoke(main, ["export", f"{HERE}:Camera", "--inputs", str(examples), "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert "(inputs: 5 given, 1 given)" in result.output
    (found,) = OrtBackend(path, threads=1).run({"camera": camera.astype(np.float32)}).values()
    np.testing.assert_allclose(found, np.linalg.inv(camera), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "x:int64", "--input-shape", "3"], "give only one of them"),
        (["--input", "wrong:int64"], "takes the inputs picture, index; given: wrong"),
        (["--inputs", "missing.npz"], "missing.npz does not exist"),
    ],
)
def test_wrong_options(tmp_path: Path, options: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["export", f"{HERE}:Indexed", *options, "-o", str(tmp_path / "m.onnx")])
    assert result.exit_code in (1, 2) and message in result.output
