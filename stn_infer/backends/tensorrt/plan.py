"""What the first bytes of an engine say: which runtime built it, in which version, and how long it is.

A serialized engine begins with ``ftrt`` (TensorRT) or ``vtrt`` (TensorRT-RTX). Its size is the 64-bit number at byte
16; major and minor version, patch and build are bytes 24 to 27 (NVIDIA/TensorRT, issue 3073). The runtimes refuse an
engine whose size is another.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from stn_infer.backends.tensorrt.runtime import RuntimeName, TensorRT
from stn_infer.errors import ModelError

_SIZE = struct.Struct("<Q")
_SIZE_AT, _VERSION_AT, _HEADER = 16, 24, 28
_RUNTIMES: dict[bytes, RuntimeName] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}


@dataclass(frozen=True)
class PlanHeader:
    """The header of a serialized engine.

    Attributes:
        runtime, version: what built it, such as ``11.4.0.106``.
        size: of the whole engine, in bytes.
    """

    runtime: RuntimeName
    version: str
    size: int


def runtime_of(plan: bytes) -> RuntimeName | None:
    """Which runtime built an engine; None: the bytes are not an engine."""
    return _RUNTIMES.get(plan[:4])


def read_header(plan: bytes, label: str) -> PlanHeader:
    """The header of an engine.

    Args:
        plan: the whole engine.
        label: its name in messages.

    Raises:
        ModelError: the bytes are not an engine, or end too early.
    """
    runtime = runtime_of(plan)
    if runtime is None:
        raise ModelError(f"{label} is not a TensorRT engine: it begins with {plan[:4]!r}, expected b'ftrt' or b'vtrt'")
    if len(plan) < _HEADER:
        raise ModelError(f"{label} has {len(plan)} bytes: it is truncated; build it again")
    size = int(_SIZE.unpack_from(plan, _SIZE_AT)[0])
    if len(plan) < size:
        raise ModelError(f"{label} has {len(plan)} of {size} bytes: it is truncated; build it again")
    return PlanHeader(runtime, ".".join(map(str, plan[_VERSION_AT:_HEADER])), size)


def check_header(plan: bytes, label: str, runtime: TensorRT) -> None:
    """Check that an engine without a sidecar is one of this runtime and version.

    Raises:
        ModelError: it is not, or it is not an engine or truncated.
    """
    header = read_header(plan, label)
    if header.runtime != runtime.name:
        raise ModelError(
            f"{label} is a {header.runtime} engine, not a {runtime.name} engine; use --backend {header.runtime}"
        )
    problem = why_other_version(header, label, runtime)
    if problem is not None:
        raise ModelError(problem)


def why_other_version(header: PlanHeader, label: str, runtime: TensorRT) -> str | None:
    """That an engine, named ``label``, was built with another version than this; None if it was built with this."""
    numbers = runtime.version.split(".")
    if header.version.split(".")[: len(numbers)] == numbers[:4]:
        return None
    return f"{label} was built with {runtime.title} {header.version}, this is {runtime.version}; build it again"
