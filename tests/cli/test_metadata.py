"""The command line of metadata, and the warning about an assumption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stn_infer.cli.main import main
from tests.api.test_metadata import save, write_pool


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_print_store_and_json(tmp_path: Path) -> None:
    path = str(write_pool(tmp_path / "pool.onnx"))
    assert (
        invoke("metadata", path).stdout
        == "preprocess: unknown\nlabels: unknown\nactivation: unknown\nprecision: fp32\n"
    )
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    given = ("--preprocess", "imagenet,size=6x8", "--labels", str(tmp_path / "classes.txt"), "--activation", "sigmoid")
    stored = invoke("metadata", path, *given)
    assert stored.stdout.splitlines() == [
        "preprocess: rgb,size=6x8,mean=0.485:0.456:0.406,std=0.229:0.224:0.225",
        "labels: cat, dog",
        "activation: sigmoid",
        "precision: fp32",
        f"wrote {path}",
    ]
    printed = json.loads(invoke("metadata", path, "--json").stdout)
    assert printed["labels"] == ["cat", "dog"] and printed["preprocess"]["crop"] is None
    assert printed["scores"] == {"activation": "sigmoid", "applied": False}
    assert printed["text"] == "rgb,size=6x8,mean=0.485:0.456:0.406,std=0.229:0.224:0.225"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.onnx"], "say what to store"),
        (["--preprocess", "gray"], "takes 3 channels"),
        (["--preprocess", "none.json"], "cannot read the preprocessing in none.json: No such file or directory\n"),
        (["--labels", "none.txt"], "cannot read none.txt: No such file or directory\n"),
    ],
)
def test_wrong_arguments_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    path = write_pool(tmp_path / "pool.onnx")
    content = path.read_bytes()
    result = invoke("metadata", str(path), *arguments)
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert path.read_bytes() == content


def test_the_warning_is_one_line_and_strict_is_an_error(tmp_path: Path) -> None:
    path, image = str(write_pool(tmp_path / "pool.onnx")), str(save(tmp_path / "a.png", 200))
    told = invoke("run", path, image, "-o", str(tmp_path / "out"))
    assert told.exit_code == 0
    assert told.stderr.startswith("warning: nothing says what the model takes; assumed rgb with values 0..1.")
    about_scores = "note: confidences assume a softmax, because nothing says what the scores are"
    assert told.stderr.splitlines()[1].startswith(about_scores) and told.stderr.count("\n") == 2
    assert about_scores not in invoke("run", path, image, "-o", str(tmp_path / "said"), "--activation", "none").stderr
    refused = invoke("run", path, image, "-o", str(tmp_path / "strict"), "--strict")
    assert refused.exit_code == 2 and refused.stderr.startswith("error: nothing says what the model takes")
    assert not (tmp_path / "strict").exists()
