"""What Tab completes in bash, zsh and fish."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from stn_infer.cli.main import COMMANDS, main
from stn_infer.models import NETWORKS, SHIPPED

SHELLS: dict[str, type[ShellComplete]] = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        "cnn.onnx",
        "net.safetensors",
        "notes.txt",
        "result.json",
        "suite.toml",
        ".hidden.onnx",
        "a\x1bb.onnx",
    ):
        Path(name).touch()
    Path("models").mkdir()
    Path("models/deep.ONNX").touch()
    return tmp_path


def completed(line: str, shell: type[ShellComplete] = ZshComplete) -> dict[str, str]:
    """The values by type that a shell gets for the last word of ``line``."""
    *words, incomplete = line.split(" ")
    found = shell(main, {}, "stn-infer", "_STN_INFER_COMPLETE").get_completions(words, incomplete)
    return {item.value: item.type for item in found}


def test_commands_and_options() -> None:
    assert set(completed("")) == set(COMMANDS)
    assert set(completed("pl")) == {"plugin"}
    assert set(completed("export --em")) == {"--embed-preprocess"}
    assert set(completed("export cnn --precision fp")) == {"fp32", "fp16"}
    assert {"info", "path", "build"} <= set(completed("plugin "))


@pytest.mark.parametrize("command", ["export", "run", "eval", "verify", "bench", "show", "build"])
def test_sources(command: str) -> None:
    found = completed(f"{command} ")
    assert {*SHIPPED, *NETWORKS, "cnn.onnx", "suite.toml"} <= set(found)
    assert not {"net.safetensors", ".hidden.onnx", "a\x1bb.onnx"} & set(found)
    assert next(iter(found.items())) == ("", "dir")  # first of all
    assert set(completed(f"{command} st-cnn-affine-r")) == {
        name for name in SHIPPED if name.startswith("st-cnn-affine-r")
    }
    assert set(completed(f"{command} models/d")) == {"models/deep.ONNX"}
    assert completed(f"{command} no/such/folder/") == {}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lint ", {"cnn.onnx": "plain", "": "dir"}),
        ("lint .", {".hidden.onnx": "plain"}),
        ("optimize c", {"cnn.onnx": "plain"}),
        ("metadata mod", {"mod": "dir"}),
        ("export fac:make --weights n", {"net.safetensors": "plain"}),
        ("run cnn x --labels n", {"notes.txt": "plain"}),
        ("run cnn ima", {"ima": "file"}),
        ("bench compare r", {"result.json": "plain"}),
        ("bench compare result.json r", {"result.json": "plain"}),
        ("bench comp", {"compare": "plain"}),
        ("bench --suite s", {"suite.toml": "plain"}),
        ("bench cnn --variant compile", {"compile": "plain", "compile-fused": "plain"}),
        ("lint --explain e00", {f"E{number:03}": "plain" for number in range(1, 10)}),
        ("verify m.onnx --against c", {"cnn.onnx": "plain"}),
        ("eval cnn.onnx photos --against cnn.", {"cnn.onnx": "plain"}),
    ],
)
def test_files_and_names(line: str, expected: dict[str, str]) -> None:
    assert completed(line) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell(shell: str) -> None:
    assert "cnn.onnx" in completed("export cnn", SHELLS[shell])
    script = SHELLS[shell](main, {}, "stn-infer", "_STN_INFER_COMPLETE")
    assert f"_STN_INFER_COMPLETE={shell}_complete" in (
        script.source() if shell != "bash" else script.source_template % script.source_vars()
    )


def test_nothing_is_downloaded_or_run_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("the network is used")

    monkeypatch.setattr("stn_infer.sources.hub.local", refuse)
    assert "--device" in completed("run hf://org/repo/model.onnx --dev")
    assert "--device" in completed("verify hf://org/repo/model.onnx --weights hf://org/repo/w.pt --dev")


def test_the_process_that_a_shell_starts_loads_no_runtime(tmp_path: Path) -> None:
    code = (
        "import sys, atexit\n"
        "from stn_infer.cli.main import main\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'PIL', 'rich'}\n"
        "atexit.register(lambda: print('loaded', heavy & set(sys.modules), file=sys.stderr))\n"
        "sys.argv = ['stn-infer']\n"
        "main()\n"
    )
    asked = {"_STN_INFER_COMPLETE": "bash_complete", "COMP_WORDS": "stn-infer export st-fcn", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stderr == "loaded set()\n", done.stderr
    assert "plain,st-fcn-affine" in done.stdout
