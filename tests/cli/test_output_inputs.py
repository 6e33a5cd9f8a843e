"""A command does not write its result over what it reads."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from stn_infer.cli.main import main
from tests.support.onnx_files import affine_model

MODEL, IMAGE, WEIGHTS = "m.onnx", "a.png", "w.pt"


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["show", MODEL, IMAGE], IMAGE),
        (["show", MODEL, "other.png", IMAGE], "link.png"),
        (["show", MODEL, IMAGE], MODEL),
        (["show", MODEL, "."], IMAGE),
        (["show", MODEL, "other.png", "*.png"], IMAGE),
        (["show", "fcn", IMAGE, "--weights", f"{WEIGHTS}#model"], WEIGHTS),
        (["show", "fcn", IMAGE, "--snapshots", "a.gif"], "a.gif"),
        (["export", "fcn", "--weights", WEIGHTS], WEIGHTS),
        (["export", "config.toml"], "config.toml"),
        (["export", "fcn", "--inputs", "a.npz"], "a.npz"),
        (["export", "fcn", "--precision", "int8", "--calibrate", IMAGE], IMAGE),
        (["best", MODEL, "--inputs", IMAGE], IMAGE),
        (["best", MODEL], MODEL),
        (["best", "fcn", "--weights", WEIGHTS], WEIGHTS),
        (["bench", MODEL], MODEL),
        (["bench", "fcn", "--weights", WEIGHTS], WEIGHTS),
        (["bench", MODEL, "--inputs", IMAGE], IMAGE),
        (["bench", "--suite", "config.toml"], "config.toml"),
        (["metadata", MODEL, "--labels", "names.txt"], "names.txt"),
        (["optimize", MODEL, "--preprocess", "how.json"], "how.json"),
        (["lint", MODEL], MODEL),
    ],
)
def test_nothing_that_is_read_is_replaced(
    command: list[str], output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(affine_model(), MODEL)
    for name in (IMAGE, WEIGHTS, "config.toml", "a.gif", "a.npz", "other.png", "names.txt", "how.json"):
        Path(name).write_bytes(b"content")
    Path("link.png").symlink_to(IMAGE)
    before = Path(output).read_bytes()
    result = CliRunner().invoke(main, [*command, "-o", output])
    assert result.exit_code == 1, result.output
    last = result.stderr.splitlines()[-1]
    assert last == f"error: cannot write {output}: it is what this command reads; name another file"
    assert Path(output).read_bytes() == before
