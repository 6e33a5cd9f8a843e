"""Importing TensorRT or TensorRT-RTX, their error logs, and the GPU in use.

Their Python APIs are the same, so the other modules work with either module. Both are optional dependencies and are
imported only here.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, get_args

from stn_infer.errors import MissingDependencyError, ModelError, UsageError, one_line
from stn_infer.extras import install, require

RuntimeName = Literal["tensorrt", "tensorrt-rtx"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class TensorRT:
    """An imported runtime.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        module: the Python module.
        version: the full version, such as ``10.16.1.11``; engines require exactly this version.
    """

    name: RuntimeName
    module: Any
    version: str

    @property
    def title(self) -> str:
        """The product's name, for messages."""
        return _TITLES[self.name]

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor = self.version.split(".")[:2]
        return int(major), int(minor)


@dataclass(frozen=True)
class Gpu:
    """The GPU an engine is built for: the driver's ``name`` (empty for a named target) and ``sm``, e.g. sm89."""

    name: str
    sm: str

    def __str__(self) -> str:
        return f"{self.name} ({self.sm})" if self.name else self.sm


def load_runtime(name: str) -> TensorRT:
    """Import a runtime.

    Raises:
        UsageError: ``name`` is not a runtime.
        MissingDependencyError: the runtime is not installed, or its libraries do not load.
    """
    known = runtime_name(name)
    try:
        module = importlib.import_module(known.replace("-", "_"))
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"{_TITLES[known]} cannot be imported ({one_line(error)}); {install(known)}"
        ) from error
    return TensorRT(known, module, version_of(module))


def runtime_name(name: str) -> RuntimeName:
    """``name``, if it is a runtime's.

    Raises:
        UsageError: it is not.
    """
    for known in RUNTIMES:
        if name == known:
            return known
    raise UsageError(f"a runtime is one of {', '.join(RUNTIMES)}, not {name!r}")


def version_of(module: ModuleType | Any) -> str:
    """The module's full version."""
    return str(module.__version__)


def make_logger(module: Any) -> Any:
    """An ``ILogger`` that prints nothing and collects messages in ``errors`` and ``warnings``."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)
            elif severity == module.ILogger.Severity.WARNING:
                self.warnings.append(message)

    return Logger()


def created(factory: Callable[[Any], Any], logger: Any) -> Any:
    """Returns ``factory(logger)`` for the module's ``Builder`` or ``Runtime``, with garbage collection disabled.

    TensorRT calls the logger while holding a lock that freeing a builder also takes. Garbage collection during such a
    call into Python could free an older builder, which would deadlock.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return factory(logger)
    finally:
        if collects:
            gc.enable()


def load_plan(runtime: TensorRT, plan: bytes, logger: Any, *, host_code: bool = False) -> tuple[Any, Any]:
    """A serialized engine, loaded on the current GPU: (TensorRT's runtime, which must outlive it, the engine).

    Args:
        runtime: the runtime and version that built it.
        plan: the serialized engine.
        logger: from :func:`make_logger`.
        host_code: let the engine run code for the CPU: a version-compatible engine contains a runtime.

    Raises:
        ModelError: TensorRT cannot load it.
    """
    loader = created(runtime.module.Runtime, logger)
    if host_code:
        loader.engine_host_code_allowed = True
    engine = loader.deserialize_cuda_engine(plan)
    if engine is None:
        raise ModelError(f"{runtime.title} {runtime.version} cannot load the engine: {last_error(logger)}")
    return loader, engine


def last_error(logger: Any) -> str:
    """The first logged error, on one line; later errors are mostly its consequences."""
    return one_line(logger.errors[0]) if logger.errors else "it gives no reason"


def current_gpu(index: int = 0) -> Gpu:
    """The GPU with the given index.

    Raises:
        MissingDependencyError: PyTorch finds no such GPU.
    """
    require("torch", "TensorRT needs")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise MissingDependencyError(
            f"a GPU is required (cuda:{index}), but PyTorch {torch.__version__} finds {count or 'none'}; "
            "check the driver, and that PyTorch is a CUDA build"
        )
    major, minor = torch.cuda.get_device_capability(index)
    return Gpu(torch.cuda.get_device_name(index), f"sm{major}{minor}")


def current_device(index: int | None) -> AbstractContextManager[Any]:
    """A context in which a GPU is the current one, for which TensorRT builds and loads engines; None: no change."""
    if index is None:
        return nullcontext()
    import torch

    return torch.cuda.device(index)
