"""``--input-shape`` with the batch in front: the error of every command names the shape to give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from stn_infer.cli.main import main
from stn_infer.errors import batch_advice
from tests.cli.test_help import ALL
from tests.support.onnx_files import affine_model


class Convolution(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).mean((2, 3))


def volume() -> nn.Module:
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())


def gray() -> nn.Module:
    return Convolution(1)


MORE = {
    "export": ["-o", "out.onnx"],
    "build": ["-o", "out.engine", "--runtime", "tensorrt-rtx", "--target", "sm89"],
    "run": ["inputs.npy", "-o", "out"],
    "eval": ["labels.csv"],
    "verify": ["--backend", "ort"],
    "bench": ["--variant", "eager", "--rounds", "1", "--samples", "1"],
    "show": ["inputs.npy", "-o", "out.png"],
    "triton": ["-o", "repository"],
    "best": ["-o", "out.onnx"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("inputs.npy", np.zeros((1, 3, 16, 16), np.float32))
    Path("labels.csv").write_text("path,label\ninputs.npy,0\n")
    onnx.save(affine_model(), "model.onnx")
    return tmp_path


def call(command: str, source: str, *options: str) -> Result:
    return CliRunner().invoke(main, [command, source, *options, *MORE[command]])


def test_these_are_the_commands_that_take_it() -> None:
    takes = {name for name, command in ALL.items() for each in command.params if each.name == "input_shapes"}
    # refit needs an engine, and optimize takes the shapes of whole inputs too
    assert takes == {*MORE, "refit", "optimize"}


@pytest.mark.parametrize("command", ["export", "run", "verify", "show", "bench", "best"])
def test_a_factory(command: str) -> None:
    done = call(command, f"{__name__}:Convolution", "--input-shape", "1,3,16,16")
    assert done.exit_code in (1, 2) and done.stderr.endswith("; drop the leading batch: --input-shape 3,16,16\n"), (
        done.output
    )
    assert done.stdout == "" or command == "bench"


@pytest.mark.parametrize("command", ["export", "run", "eval", "verify", "bench", "show", "triton", "best"])
def test_a_network(command: str) -> None:
    done = call(command, "cnn", "--input-shape", "1,1,28,28")
    assert done.exit_code in (1, 2) and done.stderr.endswith("; drop the leading batch: --input-shape 1,28,28\n")


@pytest.mark.parametrize("command", ["run", "show", "verify"])
def test_a_file(command: str) -> None:
    done = call(command, "model.onnx", "--input-shape", "1,1,8,8")
    if command == "verify":  # takes the shape of a whole input too
        assert done.exit_code == 0, done.output
    else:
        assert done.exit_code == 2 and done.stderr.endswith("; drop the leading batch: --input-shape 1,8,8\n"), (
            done.output
        )


@pytest.mark.parametrize(
    ("source", "shape"), [(f"{__name__}:gray", "1,28,28"), (f"{__name__}:volume", "1,5,6,7"), ("cnn", "1,28,28")]
)
def test_a_channel_is_not_a_batch(source: str, shape: str) -> None:
    np.save("inputs.npy", np.zeros((2, *map(int, shape.split(","))), np.float32))
    done = call("run", source, "--input-shape", shape, "--backend", "eager")
    assert done.exit_code == 0 and done.stdout.startswith("2 inputs: 2 predicted"), done.output


def test_advice() -> None:
    assert batch_advice([(1, 28, 28)]) == batch_advice([(2, 3, 4, 5)]) == batch_advice([]) == ""
    assert batch_advice([(1, 3, 64, 64), (20,)]) == ("; drop the leading batch: --input-shape 3,64,64 --input-shape 20")
