"""The C++ host that drives the onnxruntime ops as a session does: in host memory, or on a GPU with its stream."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stn_infer import plugin
from tests.support.tensorrt_parts import compiled_host, library_or_skip


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled_host(tmp_path_factory.mktemp("host"), "onnxruntime_host", "-O0")


def run(host: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(host), *arguments], capture_output=True, text=True, check=False)


def test_every_op_of_the_cpu_provider(host: Path) -> None:
    done = run(host, str(library_or_skip()))
    assert done.returncode == 0, done.stdout + done.stderr
    checks, failed = done.stdout.split(" checks, ")
    assert int(checks) > 8000
    assert failed.startswith("0 failed")


@pytest.mark.gpu
def test_every_op_of_the_cuda_provider(host: Path) -> None:
    library = library_or_skip()
    if not plugin.load().stn_has_cuda():
        pytest.skip("the plugin library was built without CUDA")
    done = run(host, str(library), "--cuda")
    if done.returncode == 2:
        pytest.skip(f"no usable GPU: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_cannot_run_is_an_error(host: Path, tmp_path: Path) -> None:
    assert run(host).stderr.startswith("usage")
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"nothing")
    done = run(host, str(wrong))
    assert done.returncode == 2 and str(wrong) in done.stderr
    library = library_or_skip()
    if not plugin.load().stn_has_cuda():
        done = run(host, str(library), "--cuda")
        assert done.returncode == 2 and "was built without CUDA" in done.stderr
