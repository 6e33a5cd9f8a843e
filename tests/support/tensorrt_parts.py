"""The real parts of TensorRT that a machine without a GPU can have, for the tests that need them."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from stn_infer import plugin
from stn_infer.backends.tensorrt.runtime import TensorRT, created, make_logger
from stn_infer.errors import MissingDependencyError
from tests.support.paths import ROOT


def missing(what: str) -> NoReturn:
    """Skip; where STN_REQUIRE_PARTS is set, as in CI, fail instead."""
    if os.environ.get("STN_REQUIRE_PARTS"):
        pytest.fail(what)
    pytest.skip(what)


def module_or_skip(name: str, package: str) -> Any:
    """The module ``name``, which ``pip install package`` brings."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing(f"{package} is not installed (pip install {package}): {error}")


def library_or_skip() -> Path:
    """The plugin library, with its TensorRT adapter."""
    try:
        plugin.load()
    except MissingDependencyError as error:
        missing(str(error))
    if not plugin.info().tensorrt:
        missing(f"{plugin.library_path()} has no TensorRT adapter")
    return plugin.library_path()


def compiled_host(folder: Path, name: str, *options: str) -> Path:
    """The C++ program plugins/tests/NAME.cpp, which drives the plugins as a runtime does."""
    compiler = shutil.which("c++")
    if compiler is None:
        missing("no C++ compiler (c++) is installed")
    plugins, binary = ROOT / "plugins", folder / name
    flags = ["-std=c++17", *options, "-Wall", "-Wextra", "-Werror", f"-I{plugins / 'include'}"]
    subprocess.run([compiler, *flags, str(plugins / "tests" / f"{name}.cpp"), "-ldl", "-o", str(binary)], check=True)
    return binary


def parsed(rtx: TensorRT, model: bytes) -> tuple[Any, object]:
    """(the network that the real parser makes of a file, what has to outlive it)."""
    logger = make_logger(rtx.module)
    builder = created(rtx.module.Builder, logger)
    network = builder.create_network(0)
    parser = rtx.module.OnnxParser(network, logger)
    assert parser.parse(model), logger.errors
    return network, (builder, parser, logger)


def run_script(script: str, *arguments: str, environment: dict[str, str] | None = None) -> tuple[Any, str, int]:
    """Run a script of this folder in a process of its own.

    Returns (the JSON it printed or None, its stderr, its exit code).
    """
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "STN_LOG": "1", **(environment or {})},
    )
    return (json.loads(done.stdout) if done.stdout.strip() else None), done.stderr, done.returncode
