"""A real tritonserver for a trial on this machine: found, started on free ports, and ended."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import socket
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stn_infer.errors import MissingDependencyError, ModelError, one_line
from stn_infer.files import temporary_folder
from stn_infer.isolation import program_child
from stn_infer.serving.client import Client

ENVIRONMENT = "STN_TRITON"
"""The environment variable with the tritonserver program, or a Python environment that has nvidia-pytriton."""

_USUAL = Path("/opt/tritonserver/bin/tritonserver")  # in NVIDIA's containers
_ATTEMPTS = 3  # another process may take a port before the server does
_TAKEN = "already in use"


@dataclass(frozen=True)
class Program:
    """The server that is installed.

    Attributes:
        path: the program.
        package: the folder of the package pytriton, which has a server without its usual folders; else None.
    """

    path: Path
    package: Path | None = None


@dataclass(frozen=True)
class Running:
    """A server that is ready.

    Attributes:
        http, grpc: ports on 127.0.0.1.
        version: of Triton.
    """

    http: int
    grpc: int
    version: str


def find_server() -> Program:
    """The server of ``STN_TRITON``, on the PATH, in a container's usual place, or of the package nvidia-pytriton.

    Raises:
        MissingDependencyError: there is none.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        path = Path(named)
        if path.is_file() and os.access(path, os.X_OK):
            return Program(path.resolve())
        packages = sorted(path.glob("lib/python3.*/site-packages/pytriton"), reverse=True)
        if packages:
            return _packaged(packages[0].absolute())
        raise MissingDependencyError(
            f"{ENVIRONMENT} is {named}, which is not the tritonserver program or a Python environment with "
            "nvidia-pytriton"
        )
    on_path = shutil.which("tritonserver")
    usual = Path(on_path) if on_path else _USUAL
    if usual.is_file():
        return Program(usual)
    found = importlib.util.find_spec("pytriton")
    if found is not None and found.submodule_search_locations:
        return _packaged(Path(found.submodule_search_locations[0]))
    raise MissingDependencyError(
        "no tritonserver is installed to check the repository with; run this in Triton's container, or: python -m venv "
        f"triton && triton/bin/pip install nvidia-pytriton onnxruntime && export {ENVIRONMENT}=triton"
    )


def _packaged(package: Path) -> Program:
    return Program(package / "tritonserver" / "bin" / "tritonserver", package)


@contextmanager
def serving(repository: Path, models: Sequence[str], seconds: float = 60) -> Iterator[Running]:
    """Run a server for some models of a repository during the block.

    Args:
        repository: the model repository.
        models: the names of the models to load; no other model of the repository is.
        seconds: the time to get ready in.

    Raises:
        MissingDependencyError: there is no server.
        ModelError: a model does not load, or the server is not ready in time; the message has the server's reason.
    """
    program = find_server()
    with temporary_folder() as scratch, _shared_memory() as prefix, ExitStack() as stack:
        backends = _own_backends(program, scratch / "backends")
        for attempt in range(1, _ATTEMPTS + 1):
            log, (http, grpc) = scratch / f"log-{attempt}", _free_ports(2)
            command = [
                *(str(program.path), f"--model-repository={repository.absolute()}", "--model-control-mode=explicit"),
                *(f"--load-model={name}" for name in models),
                *("--http-address=127.0.0.1", f"--http-port={http}"),
                *("--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
                *("--allow-metrics=false", "--exit-timeout-secs=5", *backends),
                f"--backend-config=python,shm-region-prefix-name={prefix}",
            ]
            stream = stack.enter_context(log.open("wb"))
            child = program_child(command, _environment(program), stdout=stream, stderr=stream)
            process = stack.enter_context(child)
            version = _ready(Client(http, min(seconds, 5)), process.poll, seconds)
            if version:
                yield Running(http, grpc, version)
                return
            ended = process.poll() is not None
            stack.close()
            text = log.read_text(encoding="utf-8", errors="replace")
            if not ended:
                raise ModelError(f"tritonserver is not ready after {seconds:g} seconds: {_last(text)}")
            if attempt == _ATTEMPTS or _TAKEN not in text:
                raise ModelError(f"tritonserver does not serve {', '.join(models)}: {reason(text)}")


def _ready(client: Client, exit_code: Callable[[], int | None], seconds: float) -> str:
    """Wait for a server: its version; empty if it has ended or is not ready in time."""
    end = time.monotonic() + seconds
    while exit_code() is None and time.monotonic() < end:
        if client.get("/v2/health/ready") is not None:
            return str((client.get("/v2") or {}).get("version", "of unknown version"))
        time.sleep(0.1)
    return ""


@contextmanager
def _shared_memory() -> Iterator[str]:
    """A prefix for the Python backend's shared memory; what a killed server leaves of it is removed."""
    prefix = f"stn_infer_{secrets.token_hex(6)}_"
    try:
        yield prefix
    finally:
        for left in Path("/dev/shm").glob(f"{prefix}*"):
            with suppress(OSError):
                left.unlink()


def reason(log: str) -> str:
    """Why a server ended: what it says about a model that is unavailable, else its first error, else its last line."""
    for pattern in (r"failed to load '[^']*' version \d+: (.*)", r"^error: (.*)$", r"^E\d+ .*?\] (.*)$"):
        if found := re.search(pattern, log, re.MULTILINE):
            message, _, _ = found[1].strip('"').partition(r"\n\nAt:")  # after which the traceback follows
            return one_line(message)
    return _last(log)


def _last(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "it says nothing"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _own_backends(program: Program, folder: Path) -> list[str]:
    """For nvidia-pytriton: the option that names a folder with its Python backend, which is put together there."""
    if program.package is None:
        return []
    home = program.package / "tritonserver"
    version = _python_of(program.package)
    shutil.copytree(home / "backends", folder, ignore=shutil.ignore_patterns("__pycache__"))
    stub = home / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise MissingDependencyError(
            f"{program.package} has no Python backend for Python {version}; use another Python"
        )
    shutil.copy(stub, folder / "python" / stub.name)
    return [f"--backend-directory={folder}"]


def _python_of(package: Path) -> str:
    """The version of the Python environment that a package is in, such as 3.11."""
    found = re.search(r"python(3\.\d+)", package.parents[1].name)
    return found[1] if found else f"{sys.version_info.major}.{sys.version_info.minor}"


def _environment(program: Program) -> dict[str, str]:
    """The server's variables: its Python backend finds the packages of the Python that it is installed in."""
    found = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    if program.package is None:
        return found
    libraries = [str(program.package.parent / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR") or ""]
    libraries += filter(None, [found.get("LD_LIBRARY_PATH")])
    paths = [str(program.package.parents[3] / "bin"), found.get("PATH", os.defpath)]
    return {**found, "LD_LIBRARY_PATH": ":".join(filter(None, libraries)), "PATH": ":".join(paths)}
