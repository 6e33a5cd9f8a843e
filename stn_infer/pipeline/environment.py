"""What else determines outputs, beside the model and its inputs: versions, the plugin library, the CPU's features."""

from __future__ import annotations

import platform
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

import numpy as np

from stn_infer import plugin
from stn_infer.backends.base import Backend
from stn_infer.data.loader import Loader
from stn_infer.version import __version__

# Features by which runtimes and our library choose kernels, whose sums differ in the last bits.
_FEATURES = frozenset(
    (
        *("avx", "avx2", "fma", "f16c", "avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
        *("avx512_fp16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8"),  # x86-64
        *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),  # Arm
    )
)


@dataclass(frozen=True)
class Environment:
    """As stored in ``run.json``.

    Attributes:
        stn_infer: our version.
        runtime: the backend's library and its version.
        libraries: the versions of the libraries that read inputs.
        plugin: the plugin library's version and the first digits of its SHA-256; empty if there is none.
        cpu: the architecture, and those of the CPU's features by which kernels are chosen.
    """

    stn_infer: str
    runtime: str
    libraries: str
    plugin: str
    cpu: str

    @classmethod
    def of(cls, backend: Backend) -> Environment:
        """The environment of this process, which runs ``backend``."""
        return cls(__version__, _runtime(backend), _libraries(), plugin_identity(), cpu_features())

    def reading(self, loader: Loader, device: str) -> Environment:
        """This environment with the libraries by which ``loader`` reads inputs for a model on ``device``."""
        if not loader.decodes_jpeg:
            return self
        from stn_infer.data.codecs.nvimgcodec import identity

        return replace(self, libraries=f"{self.libraries}, {identity(device)}")

    def difference(self, other: Environment, here: str, there: str) -> str:
        """The first difference, in words, or "".

        Args:
            other: the environment there.
            here, there: the names of the two places.
        """
        for field in fields(self):
            mine, its = getattr(self, field.name), getattr(other, field.name)
            if mine != its:
                name = _NAMES.get(field.name, field.name)
                return f"{name} is {its or 'missing'} on {there}, and {mine or 'missing'} on {here}"
        return ""


_NAMES = {"stn_infer": "stn-infer", "runtime": "the runtime", "plugin": "the plugin library", "cpu": "the CPU"}


def _runtime(backend: Backend) -> str:
    about = backend.describe()
    return " ".join(about[name] for name in ("runtime", "version") if name in about)


def _libraries() -> str:
    import PIL

    return f"NumPy {np.__version__}, Pillow {PIL.__version__}"


def plugin_identity() -> str:
    """The plugin library's version and the first digits of its SHA-256; empty if there is none."""
    if not plugin.available():
        return ""
    version = plugin.load().stn_version().decode()
    return f"{version} {plugin.sha256_of(plugin.library_path())[:16]}"


@cache
def cpu_features() -> str:
    """The machine's architecture and features, such as ``x86_64 avx avx2 fma``."""
    found: frozenset[str] = frozenset()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("flags", "features"):
                found = _FEATURES & set(value.split())
                break
    except OSError:
        pass
    return " ".join((platform.machine(), *sorted(found)))
