"""The C++ host that runs the plugins through TensorRT's whole lifecycle, in host memory or on a GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from stn_infer import plugin
from tests.support.tensorrt_parts import compiled_host, library_or_skip


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled_host(tmp_path_factory.mktemp("host"), "tensorrt_host", "-O1")


def test_the_plugin_lifecycle_in_host_memory(host: Path) -> None:
    library = library_or_skip()
    done = subprocess.run([str(host), str(library)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    checks, failed = done.stdout.split(" checks, ")
    assert int(checks) > 20_000
    assert failed.startswith("0 failed")


@pytest.mark.gpu
def test_the_plugin_lifecycle_on_a_gpu(host: Path) -> None:
    library = library_or_skip()
    if not plugin.load().stn_has_cuda():
        pytest.skip("the plugin library was built without CUDA")
    done = subprocess.run([str(host), str(library), "--cuda"], capture_output=True, text=True, check=False)
    if done.returncode == 2:
        pytest.skip(f"no usable GPU: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_that_is_not_a_library_is_an_error(host: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"nothing")
    done = subprocess.run([str(host), str(wrong)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(wrong) in done.stderr
