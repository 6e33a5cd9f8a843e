"""Importing OpenVINO, an optional dependency that is imported only here, and its errors on one line."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stn_infer.errors import MissingDependencyError, one_line
from stn_infer.extras import install

_LONGEST = 300
#: Where in OpenVINO's sources an error was raised, and headings.
_PLACES = re.compile(
    r"(?:Exception from |Check '.*?' failed at )\S+?:\d+:?|FrontEnd API failed with \w+:|^Summary:.*|"
    r"^Model wasn't fully converted\..*|^While validating node '.*|^-- (?:Conversion is failed for: .*)?|^\[.*?\] "
)


@dataclass(frozen=True)
class OpenVino:
    """The imported package.

    Attributes:
        module: the Python module.
        version: the release and build, such as ``2026.4.1-22982-e213a147257``; an extension requires exactly this one.
        folder: the package's folder, with its headers and libraries.
    """

    module: Any
    version: str
    folder: Path

    @property
    def release(self) -> str:
        """The release alone, such as ``2026.4.1``."""
        return self.version.partition("-")[0]


def load_openvino() -> OpenVino:
    """Import OpenVINO, without its telemetry.

    Raises:
        MissingDependencyError: it is not installed, or its libraries do not load.
    """
    try:
        module = _imported()
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"OpenVINO cannot be imported ({one_line(error)}); {install('openvino')}"
        ) from error
    full = str(module.get_version())
    return OpenVino(module, "-".join(full.split("-")[:3]), Path(str(module.__file__)).parent)


def _imported() -> Any:
    """The module. Its import would report itself to a server, unasked (OpenVINO 2026.4, openvino_telemetry).

    It does so from a thread that forks, and where this process reads its standard input meanwhile, the fork waits for
    ever for the lock of that and keeps our pipes open.
    """
    telemetry = "openvino_telemetry"
    if "openvino" in sys.modules or telemetry in sys.modules:  # imported by the user's own code
        return importlib.import_module("openvino")
    sys.modules[telemetry] = None  # type: ignore[assignment] # its import fails, and OpenVINO does without it
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[telemetry]


_cores: dict[tuple[str, Path | None], Any] = {}
_cores_lock = threading.Lock()


def core_with(openvino: OpenVino, extension: Path | None) -> Any:
    """OpenVINO's ``Core``, with an extension or without; one of each, kept until the process ends.

    A core's CPU plugin gives the process a stack for signal handlers, and restores the one before when the core goes.
    If cores go in another order than they came, the process is left with freed memory for a stack, and the next signal
    is a segmentation fault (OpenVINO 2026.4).
    """
    key = (openvino.version, extension)
    with _cores_lock:
        if key not in _cores:
            core = openvino.module.Core()
            if extension is not None:
                core.add_extension(str(extension))
            _cores[key] = core
        return _cores[key]


def reason(error: BaseException) -> str:
    """OpenVINO's error message on one line, without places in its sources."""
    lines = [" ".join(_PLACES.sub("", line.strip()).split()) for line in str(error).splitlines()]
    missing = [line for line in lines if line.startswith("No conversion rule found")]
    told = " ".join(filter(None, missing or lines)) or str(error)
    return one_line(told or type(error).__name__, _LONGEST)
