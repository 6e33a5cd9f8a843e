"""What ``best`` found, kept for ``run --backend auto``: one small JSON file for each model and device.

A choice holds for the file, machine and versions that it was measured with. They are stored with it and compared when
it is read; with another machine or version there is no choice, and the message says what changed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from stn_infer.benchmarking.choice import BACKENDS, Setting
from stn_infer.benchmarking.decode import decode
from stn_infer.benchmarking.machine.monitor import this_machine
from stn_infer.errors import ModelError
from stn_infer.extras import versions
from stn_infer.files import is_own, make_own_folder, write_atomically
from stn_infer.pipeline.environment import cpu_features, plugin_identity
from stn_infer.version import __version__

SCHEMA_VERSION = 1

#: Backend to the packages that may hold its runtime.
_PACKAGES = {
    "ort": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}
_WORDS = {"stn_infer": "stn-infer", "runtime": "the runtime", "plugin": "the plugin library", "cpu": "the CPU"}
_WORDS |= {"features": "the CPU's features", "cores": "the number of cores", "gpus": "the GPU"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a measured choice depends on, beside the file and the device.

    Attributes:
        stn_infer: our version.
        runtime: the backend's packages with their versions; empty if it is not installed.
        plugin: the plugin library's version and hash; empty if there is none.
        cpu, features, cores: the processor's name, those of its features by which kernels are chosen, and how many
            cores this process may use.
        gpus: the names of the GPUs.
    """

    stn_infer: str
    runtime: str
    plugin: str
    cpu: str
    features: str
    cores: int
    gpus: tuple[str, ...]

    @classmethod
    def of(cls, backend: str) -> Place:
        """This machine and what is installed, for a backend of ``run``."""
        machine = this_machine()
        return cls(
            stn_infer=__version__,
            runtime=_runtime(backend),
            plugin=plugin_identity(),
            cpu=machine.cpu,
            features=cpu_features(),
            cores=machine.cores,
            gpus=machine.gpus,
        )

    def difference(self, other: Place) -> str:
        """The first difference from ``other``, an earlier place, in words, or ""."""
        for field in fields(self):
            now, then = getattr(self, field.name), getattr(other, field.name)
            if now != then:
                return f"{_WORDS[field.name]} changed from {_text(then)} to {_text(now)}"
        return ""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A stored choice.

    Attributes:
        schema_version: of the file.
        sha256: the model's fingerprint.
        device: ``cpu`` or ``cuda:N``.
        place: where it was measured.
        setting: how to run the model.
    """

    schema_version: int
    sha256: str
    device: str
    place: Place
    setting: Setting


def folder() -> Path:
    """The user's folder of choices, beside the engine cache: by default ``~/.cache/stn-infer/best``."""
    from platformdirs import user_cache_path

    return user_cache_path("stn-infer") / "best"


def store(sha256: str, device: str, setting: Setting) -> Path:
    """Store the choice for a model on this machine; returns its file.

    Raises:
        OutputError: the folder cannot be written, or belongs to another user.
    """
    place = Place.of(setting.backend)
    choice = Choice(schema_version=SCHEMA_VERSION, sha256=sha256, device=device, place=place, setting=setting)
    path = _path(sha256, device)
    make_own_folder(path.parent)
    write_atomically(path, (json.dumps(asdict(choice), indent=1) + "\n").encode())
    return path


def find(sha256: str, device: str) -> Setting:
    """The setting that was chosen for a model on this machine.

    Raises:
        ModelError: there is none, its file is damaged or another user's, or it was measured on another machine or with
            other versions.
    """
    path = _path(sha256, device)
    again = "run `stn-infer best` again"
    if not (is_own(path.parent) and is_own(path)):
        raise ModelError(f"{path} belongs to another user, or is a link; delete it and {again}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise ModelError(f"{path} was written by another version of stn-infer; {again}")
        choice = decode(Choice, content)
        setting = choice.setting
        fits = setting.backend in BACKENDS.values() and min(setting.batch_size, setting.threads, setting.callers) >= 1
        if not fits or (choice.sha256, choice.device) != (sha256, device):
            raise ValueError("it describes another model or no way to run one")
    except FileNotFoundError:
        raise ModelError(f"`stn-infer best` has not measured this file on {device} here") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error}); {again}") from None
    now = Place.of(setting.backend)
    if not now.runtime:
        raise ModelError(f"{choice.place.runtime}, which was the fastest, is not installed any more; {again}")
    difference = now.difference(choice.place)
    if difference:
        raise ModelError(f"since `stn-infer best` measured this file, {difference}; {again}")
    return setting


def _path(sha256: str, device: str) -> Path:
    return folder() / f"{sha256}-{device.replace(':', '')}.json"


def _runtime(backend: str) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions(_PACKAGES[backend]).items())


def _text(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value) or "missing"
