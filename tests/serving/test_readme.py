"""The README of a model's folder: its lines are right for the service."""

from __future__ import annotations

import ast
import re
import subprocess
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from stn_infer.activation import Scores
from stn_infer.backends.base import TensorSpec
from stn_infer.serving.readme import readme_text, start_line
from stn_infer.serving.service import REGISTER_FILE, Classes, Service

FOLDER = PurePosixPath("/srv/models/digits")
PIXELS = TensorSpec("pixels", (None, None, 40, 1), np.dtype(np.uint8))
SCORES = TensorSpec("scores|\x1b[2J", (None, 4), np.dtype(np.float32))
SERVICE = Service(
    name="digits",
    inputs=(PIXELS,),
    outputs=(SCORES,),
    classes=Classes.of((SCORES,), Scores(), 2, tuple("abcd")),
    labels=tuple("abcd"),
    library="libstn_plugins.so",
)


def test_the_python_platform() -> None:
    text = readme_text(SERVICE, FOLDER)
    assert "tritonserver --model-repository=/srv/models\n" in text
    assert (
        "| input | pixels | UINT8 | \\[?, ?, 40, 1\\] |" in text and "| output | label | STRING | \\[?, 2\\] |" in text
    )
    assert (
        "`prediction` has the 2 best classes, best first, `label` their names, and `confidence` their confidences, as "
        in text
    )
    assert "perf_analyzer -m digits -u localhost:8001 -i grpc --concurrency-range 1:8 --shape pixels:32,40,1\n" in text
    assert "array = np.zeros((1, 32, 40, 1), np.uint8)" in text and "32 stands for each dynamic size" in text
    assert "pip install numpy onnxruntime`" in text and "The engine" not in text
    assert "\x1b" not in text.replace(repr(SCORES.name), "")
    assert "`threads` in `config.pbtxt` is the number of threads of each instance" in text
    assert "`threads`" not in readme_text(replace(SERVICE, on_gpu=True), FOLDER)
    assert "onnxruntime-gpu" in readme_text(replace(SERVICE, on_gpu=True), FOLDER)


def test_what_a_sigmoid_means() -> None:
    def text(top_k: int) -> str:
        return readme_text(replace(SERVICE, classes=Classes.of((SCORES,), Scores("sigmoid"), top_k, ())), FOLDER)

    right = "Any number of classes can be right: `stn-infer run` lists those of at least 0.5."
    assert f"`prediction` has the 2 best classes, best first, and `confidence` their confidences. {right}" in text(2)
    assert f"`prediction` has all classes, best first, and `confidence` their confidences. {right}" in text(4)


def test_names_are_data_in_commands_and_code() -> None:
    odd = replace(PIXELS, name="x y;$(echo it)`'\n")
    service = replace(SERVICE, inputs=(odd,), outputs=(SCORES, replace(SCORES, name="label")))
    service = replace(service, classes=Classes.of(service.outputs, Scores(), 1, tuple("abcd")))
    text = readme_text(service, FOLDER)
    (line,) = (line for line in text.splitlines() if line.startswith("perf_analyzer"))
    words = subprocess.run(["sh", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True).stdout.splitlines()
    assert words[-2:] == ["--shape", "x y;$(echo it)`'\\n:32,40,1"]
    assert "`label_` its name" in text


def test_the_request_is_a_program() -> None:
    service = replace(SERVICE, inputs=(PIXELS, TensorSpec("flag", (None,), np.dtype(np.bool_))), classes=None)
    code = re.search(r"```python\n(.*?)```", readme_text(service, FOLDER), re.DOTALL)
    assert code is not None
    tree = ast.parse(code[1])
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {"pixels", "flag", "UINT8", "BOOL", "digits", SCORES.name, "localhost:8000"} <= names
    assert "array = np.zeros((1, 1), np.bool_)" in code[1]  # one value per sample has an axis for clients
    assert "| input | flag | BOOL | \\[?, 1\\] |" in readme_text(service, FOLDER)
    assert "class_count=3" in readme_text(service, FOLDER)


def test_the_start_line_loads_the_plugins_of_an_engine() -> None:
    engine = replace(SERVICE, platform="tensorrt", on_gpu=True, classes=None)
    plugins = "--backend-config=tensorrt,plugins=/srv/models/digits/libstn_plugins_register.so"
    assert start_line(engine, FOLDER) == f"tritonserver --model-repository=/srv/models {plugins}"
    spaced = start_line(engine, PurePosixPath("/my models/m"))
    assert "--model-repository='/my models' " in spaced and f"plugins='/my models/m/{REGISTER_FILE}'" in spaced
    assert start_line(replace(engine, library=""), FOLDER) == "tritonserver --model-repository=/srv/models"
    text = readme_text(engine, FOLDER, "needs TensorRT 10.16")
    assert "The engine needs TensorRT 10.16." in text


def test_requests_that_are_not_joined() -> None:
    assert "joined to batches of up to 64" in readme_text(SERVICE, FOLDER)
    assert "A request has up to 64 samples" in readme_text(replace(SERVICE, joins=False), FOLDER)
