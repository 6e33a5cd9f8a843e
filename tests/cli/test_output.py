"""Names from files can do nothing in a terminal, whichever command shows them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from stn_infer.benchmarking.report.tables import Table
from stn_infer.benchmarking.report.terminal import as_rich
from stn_infer.cli.main import main
from stn_infer.cli.output import echo, echo_text, is_colored, table_console
from tests.support.onnx_files import affine_model
from tests.support.paths import ROOT

HOSTILE = {
    "title": "\x1b]0;pwned\x07",
    "one-byte sequence": "\x9b2J",
    "a forged line": "a\nerror: forged",
    "carriage return": "a\rforged",
    "line separator": "a\u2028forged",
    "right to left": "gnp.\u202egpj",
    "markup": "[red]a[/red][link=http://b]",
    "unbalanced markup": "[/]",
    "emoji code": ":skull:",
}
# for the commands, which take a second each
TOGETHER = {
    "what acts": "".join(name for name in HOSTILE.values() if not name.isprintable()),
    "markup": "".join(name for name in HOSTILE.values() if name.isprintable()),
}
BREAKING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e]")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def harmless(result: Result) -> None:
    """Nothing that acts, and no line that a name has forged."""
    text = result.stdout + result.stderr
    assert "internal error" not in text and BREAKING.search(text) is None, text
    assert not [line for line in text.splitlines() if line.startswith(("error: forged", "forged"))], text


@pytest.fixture(params=TOGETHER.values(), ids=TOGETHER)
def hostile(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A name; ``model.onnx`` in the current folder calls all its nodes, inputs, outputs and labels so."""
    name = str(request.param)
    model = affine_model(opset=20, mode="linear")
    graph = model.graph
    for holder in (*graph.input, *graph.output, *graph.initializer, *graph.node):
        holder.name = f"{name}{holder.name}"
    for node in graph.node:
        node.input[:] = [f"{name}{tensor}" for tensor in node.input]
        node.output[:] = [f"{name}{tensor}" for tensor in node.output]
    labels = json.dumps([f"{name}{index}" for index in range(10)])
    model.metadata_props.add(key="stn_infer.labels", value=labels)
    onnx.checker.check_model(model)
    monkeypatch.chdir(tmp_path)
    onnx.save(model, "model.onnx")
    return name


def test_lint_and_optimize(hostile: str) -> None:
    result = call("lint", "model.onnx")
    harmless(result)
    assert result.exit_code == 1 and len(result.stdout.splitlines()) == 6
    listed = call("lint", "model.onnx", "--json")
    harmless(listed)
    assert json.loads(listed.stdout)["findings"][0]["node"].startswith(hostile)
    result = call("optimize", "model.onnx", "-o", "out.onnx")
    harmless(result)
    assert result.exit_code == 0 and len(result.stdout.splitlines()) == 4, result.output


def test_file_names_and_what_is_missing(hostile: str, tmp_path: Path) -> None:
    for command in ("lint", "optimize", "run", "verify", "show", "bench", "export", "build"):
        more = {"run": ["x.npy", "-o", "out"], "show": ["x.npy", "-o", "o.png"], "optimize": ["-o", "o.onnx"]}
        extra = more.get(command, ["-o", "o"] if command in ("export", "build") else [])
        for given in (hostile + ".onnx", hostile):
            result = call(command, given.replace("[/]", "[]"), *extra)
            harmless(result)
            assert result.exit_code in (1, 2) and result.stderr.splitlines()[-1].startswith("error: ")


def test_run_names_its_failures(hostile: str) -> None:
    harmless(call("run", "model.onnx", f"{hostile.replace('/', '')}.npy", "-o", "out"))


def test_verify(hostile: str) -> None:
    result = call("verify", "model.onnx", "--backend", "ort")
    harmless(result)
    assert result.exit_code == 0, result.output
    harmless(call("verify", "model.onnx", "--backend", "ort", "--tolerance", "1e-12"))


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_tables_take_text_and_no_markup(name: str) -> None:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(as_rich(Table(name, ("a", name), ((name, "1"),))))
    text = console.export_text()
    assert BREAKING.search(text) is None and len(text.splitlines()) == 4
    if name.startswith(("[", ":")):
        assert text.count(name) == 3


def test_one_argument_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # the workers of pytest-xdist have it
    echo("a\nb", 1, "\x1b[0m")
    echo_text("a\nb\x1b[0m", err=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("a\\nb\n1\n\\x1b[0m\n", "a\nb\\x1b[0m\n")
    assert table_console(90).width == 90


def test_the_commands_print_through_one_file() -> None:
    found = {
        path.name
        for path in (ROOT / "stn_infer/cli").glob("*.py")
        if re.search(r"click\.s?echo|(?<!\.)\bprint\(|sys\.std(out|err)\.write|print_exception", path.read_text())
    }
    assert found == {"output.py"}


def test_pictures_show_names_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from stn_infer.pictures.drawing import draw
    from stn_infer.pictures.look import Look, WarpView

    image, grid = np.zeros((1, 4, 4), np.float32), np.zeros((2, 2, 2), np.float32)
    look = Look(r"$\bad$.png", r"$\frac$" + "\x1b", (WarpView(image, grid, image[:, :2, :2], True),))
    assert draw((look,), ".svg").startswith(b"<?xml")


@pytest.mark.parametrize(
    ("terminal", "environment", "expected"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": ""}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colors_are_for_terminals(
    terminal: bool, environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdout", stream)
    assert is_colored() is expected
