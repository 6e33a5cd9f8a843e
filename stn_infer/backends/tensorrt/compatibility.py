"""What an engine needs to run: which versions of TensorRT, which GPUs, and what of it a runtime or GPU has not.

TensorRT requires the version that an engine was built with, and the compute capability of the GPU. It only warns of
another GPU with the same compute capability. Engines can be built for more versions and GPUs.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from stn_infer import plugin
from stn_infer.backends.tensorrt.engine_cache import EngineKey, Sidecar
from stn_infer.backends.tensorrt.options import VERSION_COMPATIBLE, BuilderSettings, Hardware
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT
from stn_infer.errors import DeviceWarning, MissingDependencyError, ModelError, UsageError

_AMPERE: Hardware = "ampere+"
_OLDEST_AMPERE = 80
# The architecture in the key of an engine for all of them.
_AMPERE_SM = f"sm{_OLDEST_AMPERE}+"
# TensorRT's names of the levels.
_MEMBERS: dict[Hardware, str] = {_AMPERE: "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}


def check_settings(settings: BuilderSettings, runtime: TensorRT, gpu: Gpu) -> None:
    """Check that this runtime can build for the GPUs and versions that are asked for.

    Raises:
        UsageError: it never can.
        MissingDependencyError: only newer versions of it can.
    """
    if runtime.name == "tensorrt-rtx":
        if settings.hardware is not None:
            raise UsageError("TensorRT-RTX has no hardware compatibility; build for each architecture with --target")
        if settings.version_compatible:
            raise UsageError("TensorRT-RTX engines run in the version that built them only; build for each version")
        return
    if settings.hardware is not None:
        if hardware_level(runtime, settings.hardware) is None:
            raise MissingDependencyError(
                f"TensorRT {runtime.version} has no hardware compatibility {settings.hardware}; a newer one is required"
            )
        if settings.hardware == _AMPERE and _number(gpu.sm) < _OLDEST_AMPERE:
            raise UsageError(f"{_AMPERE} engines are built on sm{_OLDEST_AMPERE} or newer, not on {gpu}")


def hardware_level(runtime: TensorRT, hardware: Hardware) -> object | None:
    """TensorRT's value for a level; None if this version lacks it."""
    levels = getattr(runtime.module, "HardwareCompatibilityLevel", None)
    return getattr(levels, _MEMBERS[hardware], None)


def key_gpu(gpu: Gpu, hardware: Hardware | None) -> Gpu:
    """The GPU in an engine's key: what it may run on, without a name where any with this architecture will do."""
    if hardware is None:
        return gpu
    return Gpu("", _AMPERE_SM if hardware == _AMPERE else gpu.sm)


def library_of(label: str, key: EngineKey) -> Path:
    """The plugin library that an engine was built with.

    Args:
        label: the engine or the model, as given by the user.
        key: the engine's, with the hash of a plugin library.

    Raises:
        MissingDependencyError: no library is built.
        ModelError: the library is another one.
    """
    problem = why_other_library(label, key)
    if problem is not None:
        raise ModelError(problem)
    return plugin.library_path()


def why_other_library(label: str, key: EngineKey) -> str | None:
    """That an engine was built with another plugin library than the one here; None if it has no plugin, or with this.

    Raises:
        MissingDependencyError: it was built with one, and none is here.
    """
    if not key.plugin_sha256:
        return None
    library = plugin.library_path()
    found = plugin.sha256_of(library)
    if found == key.plugin_sha256:
        return None
    return (
        f"{label} was built with another plugin library than {library} (SHA-256 {key.plugin_sha256[:12]}, not "
        f"{found[:12]}); build it again"
    )


def check_usable(label: str, sidecar: Sidecar, runtime: TensorRT, gpu: Gpu) -> None:
    """Check that this runtime can run an engine on this GPU; warns if the GPU has another name than it was built for.

    Raises:
        ModelError: it cannot; the message says for what the engine was built.
    """
    problem = why_unusable(label, sidecar.key, runtime, gpu)
    if problem is not None:
        raise ModelError(problem)
    key = sidecar.key
    if key.gpu and key.gpu != gpu.name:
        warnings.warn(
            f"{label} was built for {Gpu(key.gpu, key.sm)}, this is {gpu}: TensorRT runs it, but it may be slower or "
            "fail; build it again for this GPU",
            DeviceWarning,
            stacklevel=2,
        )


def why_unusable(label: str, key: EngineKey, runtime: TensorRT, gpu: Gpu | None) -> str | None:
    """Why this runtime cannot run an engine on this GPU; None if it can.

    Args:
        label: the engine's name.
        key: what it was built from.
        runtime: the runtime.
        gpu: the GPU; None: only the version is compared.
    """
    built, here = _numbers(key.runtime_version), _numbers(runtime.version)
    made = f"{label} was built with {runtime.title} {key.runtime_version}"
    if VERSION_COMPATIBLE in key.flags and built > here:
        return f"{made} and runs in newer versions, this is {runtime.version}; build it again"
    if VERSION_COMPATIBLE not in key.flags and built != here:
        return f"{made}, this is {runtime.version}; build it again"
    if gpu is None:
        return None
    fits = _number(gpu.sm) >= _OLDEST_AMPERE if key.sm == _AMPERE_SM else key.sm == gpu.sm
    return None if fits else f"{label} was built for {Gpu(key.gpu, key.sm)}, this is {gpu}; build it again"


def _number(sm: str) -> int:
    return int(re.sub(r"\D", "", sm) or 0)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))
