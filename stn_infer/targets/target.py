"""The targets of ``lint``: runtimes, and of TensorRT its versions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from stn_infer.errors import UsageError
from stn_infer.extras import versions

Runtime = Literal["tensorrt", "tensorrt-rtx", "onnxruntime", "openvino"]

#: Versions of TensorRT between which what is known of it changes.
TENSORRT_VERSIONS = ("8.6", "10.3", "10.8", "10.16", "11.1", "11.4")
TARGETS = (*(f"tensorrt=={release}" for release in TENSORRT_VERSIONS), "tensorrt-rtx", "onnxruntime", "openvino")
_PACKAGES: dict[Runtime, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "openvino": ("openvino",),
}


@dataclass(frozen=True)
class Target:
    """A runtime to judge a file for.

    Attributes:
        runtime: its name.
        version: the version asked for, as the user wrote it; "" for the one that is installed.
        installed: the version that is installed here and judges; "" if none is, or it is another than asked for.
    """

    runtime: Runtime
    version: str
    installed: str

    def __str__(self) -> str:
        return f"{self.runtime}=={self.version}" if self.version else self.runtime

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor version; (0, 0) for the installed one of a runtime that is not installed."""
        major, minor, *_ = [*(self.version or self.installed or "0.0").split("."), "0"]
        return int(major), int(minor)

    @classmethod
    def parse(cls, text: str) -> Target:
        """The target that a user names, such as ``tensorrt==10.3`` or ``openvino``.

        Raises:
            UsageError: it is not known, or is a version that nothing here can judge.
        """
        name, _, asked = text.strip().partition("==")
        runtime: Runtime | None = next((known for known in get_args(Runtime) if known == name), None)
        if runtime is None or (not asked and "==" in text):
            raise UsageError(f"no such target: {text!r}; the targets are {', '.join(TARGETS)}")
        installed = _installed(runtime)
        if asked and not _is_same(asked, installed):
            if runtime != "tensorrt":
                here = f"{runtime} {installed} is installed" if installed else f"{runtime} is not installed"
                raise UsageError(f"no such target: {text!r}; {here}, so the target is {runtime} without a version")
            if asked not in TENSORRT_VERSIONS:
                known = ", ".join(TENSORRT_VERSIONS)
                raise UsageError(f"no such target: {text!r}; the known versions of TensorRT are {known}")
            installed = ""
        if runtime == "tensorrt" and not asked and not installed:
            known = ", ".join(TENSORRT_VERSIONS)
            raise UsageError(f"TensorRT is not installed here, so the target needs a version: tensorrt=={known}")
        return cls(runtime, asked, installed)


def parse_targets(texts: Iterable[str]) -> tuple[Target, ...]:
    """The targets, each once, in the order given; raises as :meth:`Target.parse`."""
    return tuple(dict.fromkeys(map(Target.parse, texts)))


def _installed(runtime: Runtime) -> str:
    return next(iter(versions(_PACKAGES[runtime]).values()), "")


def _is_same(asked: str, installed: str) -> bool:
    """Whether an installed version is the one asked for, of which the last numbers may be left out."""
    wanted = asked.split(".")
    return bool(installed) and all(part.isdigit() for part in wanted) and installed.split(".")[: len(wanted)] == wanted
