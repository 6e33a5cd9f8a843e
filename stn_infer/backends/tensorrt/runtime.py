"""TensorRT and TensorRT-RTX as modules: which is installed, what it logs, and which GPU it would use.

Their Python APIs are the same, so everything else takes the module from here and does not care. Neither is a base
dependency; both are imported here alone.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, get_args

from stn_infer.errors import MissingDependencyError, UsageError, one_line

RuntimeName = Literal["tensorrt", "tensorrt-rtx"]
RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class TensorRT:
    """An imported runtime.

    Attributes:
        name: ``tensorrt`` or ``tensorrt-rtx``.
        module: the Python module.
        version: the full version, such as ``10.16.1.11``; engines need exactly this one.
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
    """What an engine is built for: ``name`` as the driver has it (empty for a mere target) and ``sm``, e.g. sm89."""

    name: str
    sm: str

    def __str__(self) -> str:
        return f"{self.name} ({self.sm})" if self.name else self.sm


def load_runtime(name: str) -> TensorRT:
    """Import a runtime.

    Raises:
        UsageError: ``name`` is no runtime.
        MissingDependencyError: it is not installed, or its libraries don't load.
    """
    for known in RUNTIMES:
        if name == known:
            try:
                module = importlib.import_module(known.replace("-", "_"))
            except (ImportError, OSError) as error:
                raise MissingDependencyError(
                    f"{_TITLES[known]} cannot be imported ({one_line(error)}); pip install 'stn-infer[{known}]'"
                ) from error
            return TensorRT(known, module, version_of(module))
    raise UsageError(f"a runtime is one of {', '.join(RUNTIMES)}, not {name!r}")


def version_of(module: ModuleType | Any) -> str:
    """The module's full version."""
    return str(module.__version__)


def make_logger(module: Any) -> Any:
    """An ``ILogger`` that prints nothing and keeps errors, in ``errors``, for the one line that an exception gets."""

    class Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Logger()


def created(factory: Callable[[Any], Any], logger: Any) -> Any:
    """What ``factory``, the module's ``Builder`` or ``Runtime``, makes with ``logger``.

    TensorRT logs while it holds a lock that freeing a builder takes too. Were garbage collected in that call, as may
    happen in every call into Python, an older builder in it would wait for ever.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return factory(logger)
    finally:
        if collects:
            gc.enable()


def last_error(logger: Any) -> str:
    """The first error that was logged, in one line: the later ones are mostly its consequences."""
    return one_line(logger.errors[0]) if logger.errors else "it does not say why"


def current_gpu(index: int = 0) -> Gpu:
    """The GPU with that index.

    Raises:
        MissingDependencyError: PyTorch finds no such GPU.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= count:
        raise MissingDependencyError(
            f"a GPU is needed (cuda:{index}), PyTorch {torch.__version__} finds {count or 'none'}; "
            "check the driver, and that PyTorch is a CUDA build"
        )
    major, minor = torch.cuda.get_device_capability(index)
    return Gpu(torch.cuda.get_device_name(index), f"sm{major}{minor}")
