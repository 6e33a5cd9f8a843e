"""Every command that opens an ONNX file, on damaged and hostile files: one line, exit code 1, nothing written."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper

from stn_infer.budget import Budget
from stn_infer.cli.main import main
from stn_infer.errors import ModelError
from stn_infer.repairs.trial import try_model
from tests.support.hostile_files import HOSTILE
from tests.support.onnx_files import F32, affine_grid_model, affine_model, constant, make

# structurally sound: only onnxruntime sees what is wrong
NATIVE = {"unknown operator"}
COMMANDS = {
    "optimize": ["optimize", "{model}", "-o", "{out}/result.onnx"],
    "lint": ["lint", "{model}"],
    "run": ["run", "{model}", "{inputs}", "-o", "{out}/predictions"],
    "verify": ["verify", "{model}", "--source", "st-cnn-affine-rts"],
    "show": ["show", "{model}", "{inputs}", "-o", "{out}/picture.png"],
    "build": ["build", "{model}", "-o", "{out}/engine", "--runtime", "tensorrt-rtx", "--target", "sm89"],
}

#: Commands that run the file, the exit code of each, and the batch that it runs first.
RUNNING = {
    "run": (COMMANDS["run"], 1, 2),
    "show": (COMMANDS["show"], 1, 2),
    "verify": (["verify", "{model}"], 1, 3),
    "bench": (["bench", "{model}", "--quick", "--batch-sizes", "1"], 1, 1),
    "optimize": (COMMANDS["optimize"], 3, 1),
}

_opened: list[str] | None = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], (str, bytes, os.PathLike)):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_listen)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The files that Python opens meanwhile."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


def call(command: str, model: Path, out: Path, inputs: Path) -> tuple[int, str]:
    arguments = [part.format(model=model, out=out, inputs=inputs) for part in COMMANDS[command]]
    result = CliRunner().invoke(main, arguments)
    return result.exit_code, result.stderr


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.npy"
    np.save(path, np.zeros((2, 1, 8, 8), np.float32))
    return path


@pytest.mark.usefixtures("trial")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_line(name: str, tmp_path: Path, inputs: Path, opened: list[str]) -> None:
    folder, out = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    out.mkdir()
    model = HOSTILE[name][0](folder)
    opened.clear()
    before = sorted(folder.iterdir())
    for command in COMMANDS:
        code, stderr = call(command, model, out, inputs)
        assert code == 1, (command, stderr)
        if name in NATIVE and command == "lint":
            continue  # it says what is wrong in its findings
        assert stderr.startswith("error: ") and stderr.count("\n") == 1, (command, stderr)
        assert "internal error" not in stderr, (command, stderr)
        assert name in NATIVE or str(model) in stderr, (command, stderr)
        assert not list(out.iterdir()), command
    assert sorted(folder.iterdir()) == before
    assert not [path for path in opened if "secret-" in path]


def affine_model_with_a_head_that_fails() -> onnx.ModelProto:
    """It loads, and its last node fails whatever it is given; the inputs are those of ``affine_model``."""
    model = affine_model()
    out = model.graph.output[0]
    model.graph.node.append(helper.make_node("Reshape", [out.name, "bad"], ["reshaped"], name="head"))
    model.graph.initializer.append(constant([7, 5], "bad", np.int64))
    out.CopyFrom(helper.make_tensor_value_info("reshaped", F32, [7, 5]))
    return model


@pytest.mark.parametrize("command", RUNNING)
def test_a_file_that_loads_and_fails_while_running(command: str, tmp_path: Path, inputs: Path) -> None:
    """The same sentence whoever runs it: which node, why, and nothing of onnxruntime's source."""
    out = tmp_path / "out"
    out.mkdir()
    onnx.save(affine_model_with_a_head_that_fails(), tmp_path / "m.onnx")
    arguments, exit_code, batch = RUNNING[command]
    arguments = [part.format(model=tmp_path / "m.onnx", out=out, inputs=inputs) for part in arguments]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == exit_code, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.endswith(
        f" on x [{batch}, 1, 8, 8]: Reshape node 'head': The input tensor cannot be reshaped to the requested shape. "
        f"Input shape:{{{batch},1,8,8}}, requested shape:{{7,5}}"
    )
    assert "onnxruntime fails while running " in line
    assert {path.name for path in out.iterdir()} <= {"predictions"}  # what run would resume


@pytest.mark.usefixtures("trial")
@pytest.mark.parametrize("seed", range(6))
def test_flipped_bits_end_well_or_in_one_line(seed: int, tmp_path: Path, inputs: Path) -> None:
    """Sound or damaged, whatever the flip made of it: no crash, no traceback, and only a verified file is written."""
    content = (affine_model() if seed % 2 else affine_grid_model()).SerializeToString()
    generator = random.Random(seed)
    out = tmp_path / "out"
    out.mkdir()
    structure = len(content) - 400 if seed % 2 else len(content)
    while True:
        damaged = bytearray(content)
        for _ in range(generator.choice([1, 2])):
            damaged[generator.randrange(structure)] ^= 1 << generator.randrange(8)
        model = tmp_path / "model.onnx"
        model.write_bytes(damaged)
        from stn_infer.proto.load import read_graph

        try:
            read_graph(model)
            break
        except ModelError:
            continue
    for command in ("optimize", "lint", "run"):
        code, stderr = call(command, model, out, inputs)
        assert code in (0, 1, 2, 3, 4), stderr
        assert "internal error" not in stderr, (command, stderr)
        assert (out / "result.onnx").exists() == (code == 0) or command != "optimize"
        assert code in (0, 4) or stderr.startswith("error: ") or command == "lint", stderr


@pytest.mark.usefixtures("trial")
def test_a_model_that_asks_for_too_much_memory(tmp_path: Path, inputs: Path) -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["big"], name="big"),
        helper.make_node("ReduceSum", ["big"], ["sum"], name="sum", keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"], name="add"),
    ]
    model = make(nodes, {"x": (F32, ["n", 4])}, {"y": (F32, ["n", 4])}, [constant([2**36], "size")])
    onnx.save(model, tmp_path / "model.onnx")
    code, stderr = call("optimize", tmp_path / "model.onnx", tmp_path, inputs)
    assert code == 1 and "requests more memory than" in stderr
    assert not (tmp_path / "result.onnx").exists()


def test_a_crash_of_a_native_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child that tries a model ends by a signal; the parent says so and goes on."""
    (tmp_path / "sitecustomize.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"m\.onnx: a native library crashed on it \(SIGSEGV\)"):
        try_model(affine_model().SerializeToString(), "m.onnx", Budget())
