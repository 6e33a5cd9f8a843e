"""The optional packages: which extra has each, and the command that installs it, from where stn-infer was installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from pathlib import Path

from stn_infer.errors import MissingDependencyError

#: Modules that only some commands import: the extra that installs each, and its name in messages.
MODULES = {
    "gcsfs": ("gs", "gcsfs"),
    "huggingface_hub": ("hub", "huggingface_hub"),
    "matplotlib": ("report", "matplotlib"),
    "mlxtend": ("train", "mlxtend"),
    "nvidia.nvimgcodec": ("decode", "nvImageCodec"),
    "onnxruntime": ("cpu", "onnxruntime"),
    "onnxscript": ("export", "onnxscript"),
    "openvino": ("openvino", "OpenVINO"),
    "pyarrow": ("parquet", "pyarrow"),
    "pynvml": ("gpu-log", "nvidia-ml-py"),
    "ray": ("ray", "Ray"),
    "s3fs": ("s3", "s3fs"),
    "safetensors": ("export", "safetensors"),
    "tensorrt": ("tensorrt", "TensorRT"),
    "tensorrt_rtx": ("tensorrt-rtx", "TensorRT-RTX"),
    "torch": ("export", "PyTorch"),
}

#: The packages that contain onnxruntime, each of which writes the same folder ``onnxruntime``.
ONNXRUNTIMES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-qnn",
    "onnxruntime-training",
)

_DISTRIBUTION = "stn-infer"
#: The folder of this package: a checkout, or where packages are installed.
_ROOT = Path(__file__).resolve().parents[1]
#: Files of a checkout. Some packages install a pyproject.toml beside them.
_MARKS = ("pyproject.toml", "plugins/CMakeLists.txt")
_REQUIREMENT = re.compile(r"(?P<named>[^;]+?)\s*;\s*extra\s*==\s*[\"'](?P<extra>[^\"']+)[\"']\s*")
_OURS = re.compile(re.escape(_DISTRIBUTION) + r"\[(?P<extras>[^\]]+)\]")


def checkout() -> Path | None:
    """The folder of the checkout that this package is part of; None if it was installed from a wheel."""
    return _ROOT if all((_ROOT / mark).is_file() for mark in _MARKS) else None


def install(extra: str) -> str:
    """The command that installs an extra: of the checkout, or else the extra's packages by name and version.

    No index is assumed to have stn-infer itself.
    """
    root = checkout()
    if root is not None:
        with suppress(OSError):  # the current folder may be gone
            root = Path() if root == Path.cwd() else root
        return f"pip install -e {shlex.quote(f'{root}[{extra}]')}"
    packages = _packages(extra)
    if not packages:
        return f"install stn-infer again, with its extra {extra!r}"
    return f"pip install {' '.join(map(shlex.quote, packages))}"


def _packages(extra: str) -> list[str]:
    """What the installed package's metadata lists for an extra, those of other extras that it names included."""
    try:
        listed = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found: list[str] = []
    for entry in filter(None, map(_REQUIREMENT.fullmatch, listed)):
        if entry["extra"] == extra:
            others = _OURS.fullmatch(entry["named"])
            found += [entry["named"]] if others is None else chain(*map(_packages, others["extras"].split(",")))
    return list(dict.fromkeys(found))


def onnxruntimes() -> dict[str, str]:
    """The installed packages of :data:`ONNXRUNTIMES`, name to version. More than one overwrite each other's files."""
    return versions(ONNXRUNTIMES)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Those of the packages that are installed, name to version."""
    found = {}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    if module in sys.modules:
        return sys.modules[module] is not None
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that it is in
        return False


def require(module: str, purpose: str) -> None:
    """Check for a module of :data:`MODULES` before work that needs it.

    Args:
        module: its name.
        purpose: what needs it, the subject of the message: ``pictures need``.

    Raises:
        MissingDependencyError: it is not installed; the message has the command that installs it.
    """
    if not is_installed(module):
        extra, title = MODULES[module]
        raise MissingDependencyError(f"{purpose} {title}, which is not installed; {install(extra)}")


def of_import(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """What to raise for a failed import of a module of :data:`MODULES`; None if the module is another one."""
    name = (error.name or "").partition(".")[0]
    if name not in MODULES:
        return None
    extra, title = MODULES[name]
    return MissingDependencyError(f"this needs {title}, which is not installed; {install(extra)}")
