"""The OpenVINO extension ``libstn_openvino.so``: this package's ops in OpenVINO, run by the plugin library's kernels.

It uses OpenVINO's C++ classes, so it is compiled against the headers of the installed package, and each build of
OpenVINO has its own in the user's cache. Without it, models run with their functions inlined.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from stn_infer import plugin
from stn_infer.backends.openvino.runtime import OpenVino, load_openvino
from stn_infer.errors import MissingDependencyError
from stn_infer.files import is_own, make_own_folder, temporary_folder, write_atomically
from stn_infer.fusion.op import DOMAIN, PROJECTIVE, SAMPLER, SPATIAL

FILE_NAME = "libstn_openvino.so"
#: The ops that the extension has, as (domain, name); the functions of the others are inlined.
OPS = tuple((DOMAIN, name) for name in (SPATIAL, PROJECTIVE, SAMPLER))
_HINT = "`stn-infer plugin build --openvino` builds it"


def find(openvino: OpenVino | None = None) -> Path:
    """The extension for the installed OpenVINO.

    Args:
        openvino: the imported package; None: it is imported.

    Raises:
        MissingDependencyError: OpenVINO or the plugin library is missing, or the extension is not built for both.
    """
    path = _path(openvino or load_openvino())
    if not path.is_file():
        raise MissingDependencyError(f"the OpenVINO extension is not built for this OpenVINO; {_HINT}")
    if not is_own(path.parent) or not is_own(path):
        raise MissingDependencyError(f"{path} belongs to another user; {_HINT} again")
    return path


def build() -> Path:
    """Compile the extension for the installed OpenVINO; returns its path.

    Raises:
        MissingDependencyError: OpenVINO, the plugin library, the sources, cmake or a compiler is missing.
        ModelError: the compiler failed; the message has its first error.
        OutputError: the user's cache cannot be written.
    """
    openvino = load_openvino()
    path = _path(openvino)
    make_own_folder(path.parent)
    options = {
        "OpenVINO_DIR": openvino.folder / "cmake",
        "STN_LIBRARY": plugin.library_path(),
        "STN_OPENVINO_VERSION": openvino.module.get_version(),
    }
    with temporary_folder() as folder:
        plugin.compile_project(plugin.OPENVINO_SOURCES, folder, options, "the OpenVINO extension")
        write_atomically(path, (folder / FILE_NAME).read_bytes())
    return path


def _path(openvino: OpenVino) -> Path:
    """Where the extension for this OpenVINO and this plugin library is, or would be.

    Raises:
        MissingDependencyError: the plugin library is not built or does not load.
    """
    from platformdirs import user_cache_path

    plugin.load()
    digest = hashlib.sha256(f"{openvino.module.get_version()}\n{plugin.library_path()}\n".encode())
    for source in plugin.openvino_sources():
        digest.update(source.read_bytes())
    name = f"{openvino.version}-{digest.hexdigest()[:16]}"
    return user_cache_path("stn-infer", appauthor=False) / "openvino" / name / FILE_NAME
