"""What many tests share: parts that are costly to make, made once in each process that runs tests."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stn_infer.backends.tensorrt.runtime import TensorRT, load_runtime
from tests.support import shared
from tests.support.browser import Browser, browser_or_skip
from tests.support.tensorrt_parts import module_or_skip

#: Files whose few tests take minutes: started last, they would leave the other process without work.
LONGEST = ("test_thread_sanitizer.py", "test_sanitizers.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def torchlib_once() -> Iterator[None]:
    """PyTorch's exporter parses its library of 500 ONNX functions for every export; here once for each opset.

    It takes a third of a small model's export. Each export gets lists of its own, so that nothing registered in one
    is seen in the next.
    """
    if "torch" not in sys.modules:
        yield
        return
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # a GPU machine may have only PyTorch
        yield
        return

    make, made = ONNXRegistry.from_torchlib, {}

    def from_torchlib(opset_version: int = 18) -> ONNXRegistry:
        if opset_version not in made:
            made[opset_version] = make(opset_version)
        registry = ONNXRegistry()
        registry._opset_version = opset_version
        registry.functions = {target: list(entries) for target, entries in made[opset_version].functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
        yield


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Ctrl-C interrupts, in the processes that tests start too; a shell makes its background jobs ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; tests that look at pages are skipped where there is none."""
    with browser_or_skip() as found:
        yield found


@pytest.fixture(scope="session", autouse=True)
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where the processes of one run leave what others need too."""
    base = tmp_path_factory.getbasetemp()
    shared.FOLDER = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> None:
    """Whatever collects garbage, as every round of a benchmark does, passes over what was there before a file's tests.

    All that the tests import takes the collector half a second each time.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def rtx() -> TensorRT:
    """TensorRT-RTX, whose parser and builder need no GPU."""
    module_or_skip("tensorrt_rtx", "tensorrt-rtx")
    return load_runtime("tensorrt-rtx")


@pytest.fixture(scope="session", autouse=True)
def trusted() -> None:
    """Files of our own: no trial in a process of its own, which takes a second; here and in processes started here."""
    os.environ["STN_TRIAL_SECONDS"] = "0"


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX files are tried in a separate process, as for users; the user's cache folder is a new one."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("STN_TRIAL_SECONDS", "60")
    monkeypatch.setattr("stn_infer.api.trusted._passed", {})
    return cache / "stn-infer" / "tried"
