from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from stn_infer.cli import options
from stn_infer.errors import UsageError


@click.command()
@options.model_argument
@options.device_option
@options.backend_option("ort", "eager")
@options.batch_size_option(64)
@options.output_option("Where.", required=False)
@options.labels_option
@options.threads_option
@options.input_shape_option
def command(**values: object) -> None:
    click.echo(repr(values))


def values_of(*arguments: str) -> dict[str, object]:
    seen: dict[str, object] = {}
    copy = click.Command("c", params=command.params, callback=lambda **values: seen.update(values))
    copy.main(["model.onnx", *arguments], standalone_mode=False)
    return seen


def test_defaults() -> None:
    assert values_of() == {
        "model": "model.onnx",
        "device": "cpu",
        "backend": "ort",
        "batch_size": 64,
        "output": None,
        "labels": None,
        "threads": None,
        "input_shapes": None,
    }


@pytest.mark.parametrize(("given", "device"), [("cuda", "cuda:0"), ("cuda:3", "cuda:3"), ("cpu", "cpu")])
def test_device(given: str, device: str) -> None:
    assert values_of("--device", given)["device"] == device


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_wrong_device(device: str) -> None:
    with pytest.raises(UsageError, match="cpu, cuda or cuda:N"):
        values_of("--device", device)


@pytest.mark.parametrize("arguments", [("--batch-size", "0"), ("--threads", "0"), ("--backend", "tvm")])
def test_values_out_of_range(arguments: tuple[str, str]) -> None:
    assert CliRunner().invoke(command, ["m", *arguments]).exit_code == 2


def test_labels(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("nought\n\none, or so\n\n", encoding="utf-8")
    assert values_of("--labels", str(path))["labels"] == ("nought", "", "one, or so")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"])
def test_wrong_labels(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="one name per line"):
        options.load_labels(path)
    with pytest.raises(UsageError, match=r"cannot read .*none\.txt: No such file or directory$"):
        options.load_labels(tmp_path / "none.txt")
