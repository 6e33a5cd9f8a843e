"""How an engine is built: the options of ``build`` and what TensorRT's builder can be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, get_args

from stn_infer.backends.device import Device
from stn_infer.backends.tensorrt.profiles import Profile
from stn_infer.backends.tensorrt.runtime import RuntimeName, runtime_name
from stn_infer.errors import UsageError

#: As trtexec's ``--hardwareCompatibilityLevel``: Ampere and newer, or GPUs of the same compute capability.
Hardware = Literal["ampere+", "same-compute-capability"]
HARDWARE: tuple[Hardware, ...] = get_args(Hardware)

#: The flag of an engine that newer versions of TensorRT run.
VERSION_COMPATIBLE = "version-compatible"
#: The flag of an engine that takes new weights.
REFITTABLE = "refittable"

_LEVELS = range(6)


@dataclass(frozen=True, kw_only=True)
class BuilderSettings:
    """Settings of TensorRT's builder.

    Attributes:
        tf32: allow TF32, which shifts samples by 0.1 pixels at a width of 1,000.
        optimization_level: 0 (fastest build) to 5 (most tactics tried); None: TensorRT's default, 3.
        workspace: the most device memory that a layer may use while it runs, in bytes; None: all.
        refittable: keep the weights replaceable, for ``refit``.
        hardware: other GPUs that the engine is to run on: ``ampere+`` or ``same-compute-capability``; None: GPUs like
            the one it is built on.
        version_compatible: let newer versions of TensorRT run the engine, which then contains a runtime.

    Raises:
        UsageError: a value is out of range.
    """

    tf32: bool = False
    optimization_level: int | None = None
    workspace: int | None = None
    refittable: bool = False
    hardware: Hardware | None = None
    version_compatible: bool = False

    def __post_init__(self) -> None:
        if self.optimization_level is not None and self.optimization_level not in _LEVELS:
            raise UsageError(f"the optimization level is 0 to {_LEVELS[-1]}, not {self.optimization_level}")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"the workspace limit is at least one byte, not {self.workspace}")
        if self.hardware not in (None, *HARDWARE):
            raise UsageError(f"hardware compatibility is one of {', '.join(HARDWARE)}, not {self.hardware!r}")
        if self.version_compatible and self.refittable:
            raise UsageError("a version-compatible engine cannot take new weights; choose one of the two")

    @property
    def flags(self) -> tuple[str, ...]:
        """What differs from the defaults, as an engine's key stores and messages show it."""
        level, limit = self.optimization_level, self.workspace
        found = (
            "tf32" if self.tf32 else "",
            "" if level is None else f"optimization level {level}",
            "" if limit is None else f"workspace {limit / 2**30:g} GiB",
            REFITTABLE if self.refittable else "",
            self.hardware or "",
            VERSION_COMPATIBLE if self.version_compatible else "",
        )
        return tuple(filter(None, found))


@dataclass(frozen=True)
class BuildOptions(BuilderSettings):
    """Options of an engine build: :class:`BuilderSettings` and these.

    Attributes:
        runtime: ``tensorrt`` or ``tensorrt-rtx``.
        target: an architecture such as ``sm89`` (TensorRT-RTX only); None: the GPU of this machine.
        profile: shapes of the dynamic inputs, one for all or several with names; a name that is given again begins the
            next optimization profile. None: one, of batches of 1 to 256.
        plugin: what runs the spatial transformers: True: the plugin library, False: TensorRT's own layers, None: the
            plugin library if it is built.
        device: index of the GPU.
        timing_cache: the file with the times of TensorRT's kernels, which is read and extended, as trtexec's
            ``--timingCacheFile``; None: one in the engine cache.
    """

    runtime: RuntimeName = "tensorrt"
    target: str | None = None
    profile: Profile | tuple[Profile, ...] | None = None
    plugin: bool | None = None
    device: int = 0
    timing_cache: Path | None = None

    @classmethod
    def parse(
        cls,
        runtime: str = "tensorrt",
        target: str | None = None,
        profiles: Sequence[str] = (),
        plugin: bool | None = None,
        tf32: bool = False,
        device: str = "cuda",
        *,
        optimization_level: int | None = None,
        workspace: float | None = None,
        refittable: bool = False,
        hardware: str | None = None,
        version_compatible: bool = False,
        timing_cache: Path | None = None,
    ) -> BuildOptions:
        """The options from texts.

        Args:
            runtime, target, plugin, tf32, optimization_level, refittable, version_compatible, timing_cache: the fields.
            profiles: each as :meth:`~stn_infer.backends.tensorrt.profiles.Profile.parse` reads it.
            device: ``cuda`` or ``cuda:N``.
            workspace: in GiB.
            hardware: one of :data:`HARDWARE`.

        Raises:
            UsageError: one of them is malformed or out of range, or the device is not a GPU.
        """
        if workspace is not None and not isfinite(workspace):
            raise UsageError(f"the workspace limit is a number of GiB, not {workspace}")
        gpu = Device.parse(device)
        if gpu.kind != "cuda":
            raise UsageError(f"engines run on GPUs: --device must be cuda or cuda:N, not {device!r}")
        return cls(
            runtime_name(runtime),
            target,
            tuple(map(Profile.parse, profiles)) or None,
            plugin,
            gpu.index,
            timing_cache,
            tf32=tf32,
            optimization_level=optimization_level,
            workspace=None if workspace is None else int(workspace * 2**30),
            refittable=refittable,
            hardware=_hardware(hardware),
            version_compatible=version_compatible,
        )


def _hardware(text: str | None) -> Hardware | None:
    if text is None:
        return None
    for known in HARDWARE:
        if text == known:
            return known
    raise UsageError(f"hardware compatibility is one of {', '.join(HARDWARE)}, not {text!r}")
