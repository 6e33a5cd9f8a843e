"""Files that are named for engines: what is read as one, and what none replaces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from stn_infer.api.engines.paths import check_engine, check_output
from stn_infer.cli.main import main
from stn_infer.errors import ModelError, OutputError
from tests.support.served_models import classifier


@pytest.fixture
def files(tmp_path: Path) -> Path:
    onnx.save(classifier(), tmp_path / "m.onnx")
    (tmp_path / "named.engine").write_bytes((tmp_path / "m.onnx").read_bytes())
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pt")
    (tmp_path / "net.py").write_text("def make(): ...\n")
    (tmp_path / "thesis.tex").write_text("years of work")
    np.save(tmp_path / "x.npy", np.zeros(1))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("m.onnx", "is an ONNX file, and an engine would replace it"),
        ("named.engine", "is an ONNX file, and an engine would replace it"),
        ("w.pt", "is not an engine, and an engine would replace it"),
        ("net.py", "is not an engine, and an engine would replace it"),
        ("thesis.tex", "is not an engine, and an engine would replace it"),
        ("x.npy", "is not an engine, and an engine would replace it"),
    ],
)
def test_no_engine_replaces_a_file_of_another_kind(files: Path, name: str, told: str) -> None:
    path = files / name
    before = path.read_bytes()
    with pytest.raises(OutputError, match=f"{name} {told}; name another file with -o"):
        check_output(path)
    for command in (["build", str(files / "m.onnx")], ["refit", str(files / "no.engine"), str(files / "m.onnx")]):
        result = CliRunner().invoke(main, [*command, "-o", str(path)])
        assert result.exit_code == 1 and told in result.stderr and result.stderr.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"ftrt", b"vtrt and more", b"damaged"])
def test_an_engine_replaces_an_engine_and_what_was_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.engine"
    check_output(path)
    path.write_bytes(content)
    check_output(path)


def test_other_files_are_not_read_as_engines(files: Path) -> None:
    with pytest.raises(ModelError, match=r"m\.onnx is an ONNX file, not a TensorRT engine; build one: stn-infer build"):
        check_engine(files / "m.onnx")
    with pytest.raises(ModelError, match=r"w\.pt is a checkpoint"):
        check_engine(files / "w.pt")
    check_engine(files / "missing.engine")
    result = CliRunner().invoke(main, ["refit", str(files / "m.onnx"), str(files / "m.onnx"), "-o", str(files / "o")])
    assert result.exit_code == 1 and "m.onnx is an ONNX file, not a TensorRT engine" in result.stderr
