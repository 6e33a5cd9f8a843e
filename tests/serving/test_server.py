"""A real tritonserver, where one is installed (make test-triton): it is found, serves, survives, and ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stn_infer.api.export import export
from stn_infer.api.open import open_backend
from stn_infer.api.triton import triton
from stn_infer.arrays import Array
from stn_infer.data.digits import load_digits
from stn_infer.errors import MissingDependencyError, ModelError
from stn_infer.predictions import Classifier
from stn_infer.serving import server as server_module
from stn_infer.serving.client import Client
from stn_infer.serving.server import Program, Running, find_server, reason, serving
from tests.support import triton_client
from tests.support.paths import ROOT

NAMES = ("digits", "alone", "onnxruntime", "tensorrt")


def test_a_named_server_is_the_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tritonserver"
    program.write_text("")
    program.chmod(0o755)
    monkeypatch.setenv("STN_TRITON", str(program))
    assert find_server() == Program(program)
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "pytriton"
    package.mkdir(parents=True)
    monkeypatch.setenv("STN_TRITON", str(tmp_path))
    assert find_server() == Program(package / "tritonserver" / "bin" / "tritonserver", package)
    monkeypatch.setenv("STN_TRITON", str(tmp_path / "lib"))
    with pytest.raises(MissingDependencyError, match="lib, which is not the tritonserver program or a Python"):
        find_server()


def test_without_a_server_the_message_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STN_TRITON", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(server_module, "_USUAL", Path("/nowhere"))
    monkeypatch.setattr(server_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"no tritonserver is installed .* nvidia-pytriton onnxruntime"):
        find_server()


def test_the_reason_in_a_log() -> None:
    log = (
        'I1129 16:00:00.000000 1 server.cc:1] "starting"\n'
        'E1129 16:00:00.000000 1 cuda.cc:1] "no CUDA"\n'
        "E1129 16:00:00.000000 1 model.cc:1] \"failed to load 'm' version 1: Internal: Fail: no file\\n\\nAt:\\n a\"\n"
        "error: creating server: Internal - failed to load all models\n"
    )
    assert reason(log) == "Internal: Fail: no file"
    assert reason("\n".join(log.splitlines()[:2] + log.splitlines()[3:])) == (
        "creating server: Internal - failed to load all models"
    )
    assert reason("\n".join(log.splitlines()[:2])) == "no CUDA"
    assert reason("Killed\n\n") == "Killed" and reason("") == "it says nothing"


def fake(folder: Path, script: str) -> str:
    program = folder / "tritonserver"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("body", "found"),
    [(b"<html>", None), (b"[1]", None), (b"\xff", None), (b"", {}), (b'{"version": "2"}', {"version": "2"})],
)
def test_another_server_may_have_the_port(
    body: bytes, found: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "ask", lambda *arguments: (200, len(body), body))
    assert Client(1, 1).get("/v2") == found


def test_a_server_that_does_not_get_ready_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"echo starting; echo $$ > {tmp_path}/process; exec sleep 1000"
    monkeypatch.setenv("STN_TRITON", fake(tmp_path, script))
    with (
        pytest.raises(ModelError, match=r"tritonserver is not ready after 0.5 seconds: starting"),
        serving(tmp_path, ["m"], 0.5),
    ):
        pytest.fail("it is not ready")
    assert not Path("/proc", (tmp_path / "process").read_text().strip()).exists()


def test_a_server_that_ends_gives_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STN_TRITON", fake(tmp_path, "echo 'error: creating server: no licence'; exit 1"))
    with (
        pytest.raises(ModelError, match="tritonserver does not serve m, n: creating server: no licence"),
        serving(tmp_path, ["m", "n"], 30),
    ):
        pytest.fail("it is not ready")


def test_a_port_that_was_taken_meanwhile_is_another_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = "error: creating server: Socket '127.0.0.1:1' already in use"
    monkeypatch.setenv("STN_TRITON", fake(tmp_path, f'echo "$@" >> {tmp_path}/attempts; echo "{taken}"; exit 1'))
    with pytest.raises(ModelError, match="already in use"), serving(tmp_path, ["m"], 30):
        pytest.fail("it is not ready")
    attempts = (tmp_path / "attempts").read_text().splitlines()
    assert len(attempts) == len(set(attempts)) == 3


# ---- with a real server


@pytest.fixture(scope="module")
def program() -> Program:
    try:
        return find_server()
    except MissingDependencyError as error:
        pytest.skip(f"a real server is needed: {error}")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped model with its preprocessing in the graph."""
    path = tmp_path_factory.mktemp("file") / "digits.onnx"
    export("st-fcn-affine-r", path, embed_preprocess=True)
    return path


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, file: Path) -> Path:
    folder = tmp_path_factory.mktemp("models") / "models"
    triton(file, folder, name="digits", top_k=3)
    triton(file, folder, name="alone", max_batch=4)
    return folder


@pytest.fixture(scope="module")
def running(program: Program, repository: Path) -> Iterator[Running]:
    with serving(repository, ["digits", "alone"]) as found:
        yield found


@pytest.fixture(scope="module")
def pixels() -> Array:
    """Shipped digits, uint8 [64, 28, 28, 1]."""
    return np.ascontiguousarray(load_digits().images[:64, :, :, None])


def client_python(program: Program) -> str:
    """A Python that has tritonclient: of the server's environment, or this one."""
    if program.package is not None:
        return str(program.package.parents[3] / "bin" / "python")
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[grpc,http] is needed: pip install it")
    return sys.executable


def asked(program: Program, *arguments: object) -> str:
    command = [client_python(program), str(Path(triton_client.__file__)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_answers_equal_run(
    program: Program, running: Running, file: Path, pixels: Array, tmp_path: Path, protocol: str
) -> None:
    backend = open_backend(file)
    (name,) = (spec.name for spec in backend.inputs)
    np.savez(tmp_path / "given.npz", **{name: pixels})
    port = running.http if protocol == "http" else running.grpc
    asked(program, protocol, port, "digits", tmp_path / "given.npz", tmp_path / "answer.npz")
    answer = dict(np.load(tmp_path / "answer.npz"))
    wanted = backend.run({name: pixels})
    scores = backend.outputs[0].name
    ranked = Classifier(backend.metadata.scores or Classifier().scores, backend.metadata.labels, 3).rank(wanted[scores])
    labels = np.array(backend.metadata.labels).astype("S")
    wanted |= {"prediction": ranked.order, "confidence": ranked.values, "label": labels[ranked.order]}
    assert answer.keys() == wanted.keys()
    for output, values in wanted.items():
        np.testing.assert_array_equal(answer[output], values, err_msg=output)


@pytest.mark.slow
def test_the_request_of_the_readme_runs(program: Program, running: Running, repository: Path, tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (repository / "digits" / "README.md").read_text(), re.DOTALL)
    assert code is not None and "localhost:8000" in code[1]
    (tmp_path / "request.py").write_text(code[1].replace("localhost:8000", f"127.0.0.1:{running.http}"))
    done = subprocess.run(
        [client_python(program), tmp_path / "request.py"], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\[\[\d \d \d\]\]\n\[\[b'\d' b'\d' b'\d'\]\]\n\[\[[\de. -]+\]\]\n", done.stdout)


@pytest.mark.slow
def test_eight_clients_at_once_get_the_same_answers(
    program: Program, running: Running, file: Path, pixels: Array, tmp_path: Path
) -> None:
    (name,) = (spec.name for spec in open_backend(file).inputs)
    np.savez(tmp_path / "given.npz", **{name: pixels})
    found = json.loads(asked(program, "load", running.grpc, "digits", tmp_path / "given.npz", 8, 2))
    assert found["requests"] > 100 and found["wrong"] == 0


@pytest.mark.slow
def test_bad_requests_get_clear_errors_and_the_server_survives(running: Running, file: Path, pixels: Array) -> None:
    (name,) = (spec.name for spec in open_backend(file).inputs)
    client = Client(running.http, 30)
    good = client.infer("digits", {name: pixels[:2]})
    for wrong, message in (
        ({name: pixels[:, :20]}, r"unexpected shape for input"),
        ({name: pixels[:2].astype(np.float32)}, "data-type"),
        ({"other": pixels[:2]}, "unexpected inference input 'other'"),
        ({name: np.repeat(pixels, 2, 0)}, "batch"),
    ):
        with pytest.raises(ModelError, match=f"the server answers 400: .*{message}"):
            client.infer("digits", wrong)
    with pytest.raises(ModelError, match="unknown model"):
        client.infer("other", {name: pixels[:2]})
    again = client.infer("digits", {name: pixels[:2]})
    assert good.keys() == again.keys() and all(np.array_equal(good[key], again[key]) for key in good)


@pytest.mark.slow
def test_a_broken_version_leaves_the_server_and_the_old_version(
    program: Program, repository: Path, tmp_path: Path, file: Path, pixels: Array
) -> None:
    (name,) = (spec.name for spec in open_backend(file).inputs)
    copy = tmp_path / "models"
    shutil.copytree(repository, copy)
    with serving(copy, ["digits"]) as found:
        client = Client(found.http, 30)
        before = client.infer("digits", {name: pixels})
        shutil.copytree(copy / "digits" / "1", copy / "digits" / "2")
        (copy / "digits" / "2" / "model.onnx").write_bytes(file.read_bytes()[:999])
        status, _, body = client.ask("POST", "/v2/repository/models/digits/load", b"{}")
        assert status == 400 and b"Protobuf parsing failed" in body
        after = client.infer("digits", {name: pixels})
        assert all(np.array_equal(before[key], after[key]) for key in before)
    with (
        pytest.raises(ModelError, match=r"tritonserver does not serve digits: .*Protobuf parsing failed"),
        serving(copy, ["digits"]),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["onnxruntime", "tensorrt"])
def test_the_server_takes_the_configuration_of_the_other_platforms(
    program: Program, file: Path, tmp_path: Path, platform: str
) -> None:
    """It parses config.pbtxt and then looks for a backend, which nvidia-pytriton does not have."""
    if program.package is None:
        pytest.skip("this server may have these backends; --check is what tries them")
    engine = None
    if platform == "tensorrt":
        engine = tmp_path / "model.engine"
        engine.write_bytes(b"not an engine")
    triton(file, tmp_path / "models", name="m", platform=platform, engine=engine)  # type: ignore[arg-type]
    with (
        pytest.raises(ModelError, match=f"unable to find backend library for backend '{platform}'"),
        serving(tmp_path / "models", ["m"]),
    ):
        pass
    config = (tmp_path / "models/m/config.pbtxt").read_text()
    (tmp_path / "models/m/config.pbtxt").write_text(config.replace("dims:", "sizes:"))
    with (
        pytest.raises(ModelError, match=r"tritonserver does not serve m: (?!.*backend library)"),
        serving(tmp_path / "models", ["m"]),
    ):
        pass


@pytest.mark.slow
def test_the_server_ends_with_its_block_and_with_a_killed_process(
    program: Program, repository: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom stn_infer.serving.server import serving\n"
        "with serving(Path(sys.argv[1]), ['digits']) as found:\n    print(found.http, flush=True)\n"
        "    time.sleep(600)\n"
    )
    command, environment = [sys.executable, "-c", code, str(repository)], {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert Client(port, 5).get("/v2/health/ready") is not None
        os.kill(process.pid, signal.SIGKILL)
    end = time.monotonic() + 10
    while Client(port, 1).get("/v2/health/live") is not None and time.monotonic() < end:
        time.sleep(0.1)
    assert Client(port, 1).get("/v2/health/live") is None
    with serving(repository, ["alone"]) as found:
        port = found.http
    assert Client(port, 1).get("/v2/health/live") is None
