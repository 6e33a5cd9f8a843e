"""The plugin library ``libstn_plugins.so``: its location, capabilities, build and C interface.

The library is optional: without it, every model runs on standard ONNX or PyTorch operators.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path

from stn_infer.errors import FallbackWarning, MissingDependencyError, ModelError, UsageError
from stn_infer.extras import checkout
from stn_infer.files import is_own, make_own_folder
from stn_infer.isolation import run_tool
from stn_infer.version import __version__

ENVIRONMENT = "STN_PLUGIN_LIBRARY"
"""The environment variable with the path of a library to use instead of the default ones."""

FILE_NAME = "libstn_plugins.so"

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = checkout()
_SOURCES = (_CHECKOUT or _PACKAGE) / "plugins"  # a wheel has them inside of the package
#: The sources of the OpenVINO extension.
OPENVINO_SOURCES = _SOURCES / "src" / "openvino"
_HINT = "`stn-infer plugin build` builds it"


def _build_folder() -> Path:
    """The folder to build in: the checkout's, or else one in the user's cache for this installation."""
    if _CHECKOUT is not None:
        return _CHECKOUT / "build" / "plugins"
    from platformdirs import user_cache_path

    digest = hashlib.sha256(f"{_PACKAGE}\n".encode()).hexdigest()[:16]
    return user_cache_path("stn-infer", appauthor=False) / "plugins" / f"{__version__}-{digest}"


_BUILD = _build_folder()

# The PyPI packages that together are a CUDA compiler, each with a file that identifies it.
_NVCC_PACKAGES = {
    "nvidia-cuda-nvcc": "bin/nvcc",
    "nvidia-cuda-crt": "include/crt/host_config.h",
    "nvidia-nvvm": "nvvm/bin/cicc",
    "nvidia-cuda-runtime": "lib/libcudart_static.a",
    "nvidia-cuda-cccl": "include/cccl/nv/target",
}

# The enumerations of plugins/include/stn/stn.h, in order; modes and padding modes are in samplers.py.
DTYPES = ("float32", "float16", "bfloat16")
KINDS = ("affine", "basis", "projective", "grid", "tensor_product", "lattice")
LAYOUTS = ("planar", "channels_last")
#: The newest versions of the ops in files, by name.
OP_VERSIONS = {
    "SpatialTransformer": 1,
    "ProjectiveTransformer": 2,
    "TensorProductTransformer": 1,
    "LatticeTransformer": 1,
    "Sampler": 1,
}
# Values of stn_status.
_STRUCT_SIZE = 1  # the library's stn_problem has another size
_CUDA_ERROR = 7


class Problem(ctypes.Structure):
    """``stn_problem`` of stn.h, with ``struct_size`` set."""

    _fields_ = (
        ("struct_size", ctypes.c_uint32),
        ("rank", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("mode", ctypes.c_int32),
        ("padding", ctypes.c_int32),
        ("align_corners", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("grid_dtype", ctypes.c_int32),
        ("input_layout", ctypes.c_int32),
        ("output_layout", ctypes.c_int32),
        ("batch", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("input_size", ctypes.c_int64 * 3),
        ("output_size", ctypes.c_int64 * 3),
        ("basis_rows", ctypes.c_int64),
        ("theta_batch", ctypes.c_int64),
        ("input_batch", ctypes.c_int64),
        ("channel_pitch_in", ctypes.c_int64),
        ("channel_pitch_out", ctypes.c_int64),
        ("points", ctypes.c_int64),
        ("input", ctypes.c_void_p),
        ("theta", ctypes.c_void_p),
        ("basis", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("lattice", ctypes.c_int64 * 3),
        ("taps", ctypes.c_int64),
        ("planes", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("index", ctypes.c_void_p),
        ("clamp_w", ctypes.c_int32),
        ("w_min", ctypes.c_float),
        ("offset", ctypes.c_float * 3),
    )

    def __init__(self, **fields: object) -> None:
        super().__init__(struct_size=ctypes.sizeof(Problem), **fields)


@dataclass(frozen=True)
class PluginInfo:
    """The library and the build tools on this machine.

    Attributes:
        path: the library's file, or None.
        problem: why the library cannot be used, or None.
        version: the library's version, or None.
        cuda: whether it contains the CUDA kernels.
        cpu_isa: ``avx512``, ``avx2`` or ``plain``, or None.
        onnxruntime, tensorrt: whether it contains these adapters.
        cmake, compiler, nvcc: the tools that ``build`` would use, or None.
        nvcc_packages: the PyPI packages to install for a complete nvcc; empty if nothing is missing.
    """

    path: Path | None
    problem: str | None
    version: str | None
    cuda: bool
    cpu_isa: str | None
    onnxruntime: bool
    tensorrt: bool
    cmake: Path | None
    compiler: Path | None
    nvcc: Path | None
    nvcc_packages: tuple[str, ...]


def candidates() -> tuple[Path, ...]:
    """The paths where the library is searched, in order; only ``STN_PLUGIN_LIBRARY`` if it is set.

    The result of ``stn-infer plugin build`` precedes the installed library, unless it is in a cache and belongs to
    another user.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        return (Path(named),)
    installed = (_PACKAGE, Path(sysconfig.get_path("platlib")) / _PACKAGE.name)  # they differ in an editable install
    built = [_BUILD / FILE_NAME] if _CHECKOUT is not None or _is_ours(_BUILD / FILE_NAME) else []
    return (*built, *dict.fromkeys(folder / "lib" / FILE_NAME for folder in installed))


def _is_ours(path: Path) -> bool:
    return is_own(path.parent) and is_own(path)


def library_path() -> Path:
    """The library's file.

    Raises:
        MissingDependencyError: the library is not built.
    """
    for path in candidates():
        if path.is_file():
            return path.resolve()
    looked = ", ".join(map(str, candidates()))
    raise MissingDependencyError(f"the plugin library is not built (looked for {looked}); {_HINT}")


def sha256_of(library: Path) -> str:
    """The SHA-256 of a library's file, by which engines and results name it."""
    with library.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def available() -> bool:
    """Whether the library is built and loads."""
    return _load(os.environ.get(ENVIRONMENT))[0] is not None


def load() -> ctypes.CDLL:
    """The library with its C interface declared. The result is cached, including a failure.

    Raises:
        MissingDependencyError: the library is not built or does not load; the message has the reason.
    """
    library, problem = _load(os.environ.get(ENVIRONMENT))
    if library is None:
        raise MissingDependencyError(problem or "the plugin library does not load")
    return library


def run_cpu(problem: Problem, threads: int = 0) -> None:
    """Run a problem whose arrays are in host memory; ``threads`` 0 means all.

    Raises:
        MissingDependencyError: the library is not built or does not load.
        ModelError: the library rejects the problem.
    """
    _check(load().stn_run_cpu(ctypes.byref(problem), threads))


def run_cuda(problem: Problem, stream: int) -> None:
    """Launch a problem whose arrays are in device memory on a CUDA stream.

    Raises:
        MissingDependencyError: the library is not built or does not load.
        ModelError: the library rejects the problem, or the launch failed.
    """
    _check(load().stn_run_cuda(ctypes.byref(problem), ctypes.c_void_p(stream)))


def cuda_problem(device: int = 0) -> str | None:
    """Why the library's CUDA kernels cannot run on a GPU, or None if they can.

    The first call for a GPU loads a kernel there. ``device`` is the GPU's index among the visible ones.
    """
    return _cuda_problem(os.environ.get(ENVIRONMENT), device)


@cache
def _cuda_problem(named: str | None, device: int) -> str | None:
    library, problem = _load(named)
    if library is None:
        return problem
    if not library.stn_has_cuda():
        return (
            f"the plugin library {library_path()} has no CUDA kernels; `stn-infer plugin build` builds them with nvcc"
        )
    if library.stn_cuda_usable(device):
        return None
    reason = library.stn_status_text(_CUDA_ERROR).decode()
    return f"the plugin library's kernels cannot run on cuda:{device}: {reason}"


def require(kind: str, index: int = 0) -> None:
    """Check that the library is there, and that its kernels run on a device, ``cpu`` or ``cuda`` and its index.

    Raises:
        MissingDependencyError: they do not; the message has the reason.
    """
    load()
    problem = cuda_problem(index) if kind == "cuda" else None
    if problem is not None:
        raise MissingDependencyError(problem)


@cache
def warn_of(problem: str, instead: str) -> None:
    """Warn once that the CUDA kernels are not used on a GPU that the library was built to serve."""
    warnings.warn(f"{problem}; {instead} are used instead", FallbackWarning, stacklevel=3)


def info() -> PluginInfo:
    """The state of the library and of the tools that build it."""
    library, problem = _load(os.environ.get(ENVIRONMENT))
    nvcc, nvcc_packages = _find_nvcc()
    return PluginInfo(
        path=None if library is None else library_path(),
        problem=problem,
        version=None if library is None else library.stn_version().decode(),
        cuda=library is not None and bool(library.stn_has_cuda()),
        cpu_isa=None if library is None else library.stn_cpu_isa().decode(),
        onnxruntime=library is not None and hasattr(library, "RegisterCustomOps"),
        tensorrt=library is not None and hasattr(library, "getCreators"),
        cmake=_which("cmake"),
        compiler=_which("c++"),
        nvcc=nvcc,
        nvcc_packages=nvcc_packages,
    )


def build(arch: str = "native", *, cuda: bool | None = None) -> Path:
    """Compile the library, in the checkout's build folder or in the user's cache.

    Args:
        arch: GPU architectures: ``native`` (the GPUs in this machine, or ``all`` if it has none), ``all``, or names
            such as ``sm90,sm120``. Each choice includes PTX, from which a driver compiles code for newer GPUs.
        cuda: whether to compile the CUDA kernels; None: if nvcc is found.

    Raises:
        MissingDependencyError: the sources, cmake, a compiler or nvcc is missing.
        UsageError: ``arch`` is malformed.
        ModelError: the compiler failed; the message has its first error.
        OutputError: the user's cache cannot be written, or its folder belongs to another user.
    """
    architectures = parse_arch(arch)
    cmake = _cmake(_SOURCES)
    nvcc, nvcc_packages = _find_nvcc()
    if cuda and nvcc is None:
        raise MissingDependencyError(f"nvcc is needed for CUDA kernels; pip install {' '.join(nvcc_packages)}")
    if cuda is None:
        cuda = nvcc is not None
    configure = [str(cmake), "-S", str(_SOURCES), "-B", str(_BUILD), "-DCMAKE_BUILD_TYPE=Release"]
    configure.append(f"-DSTN_CUDA={'ON' if cuda else 'OFF'}")
    if cuda:
        configure += [f"-DSTN_CUDA_ARCH={architectures}", f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    # CMake cannot change the CUDA compiler of an existing build folder, nor build in one that was made elsewhere.
    cache = _BUILD / "CMakeCache.txt"
    made = cache.read_text() if cache.is_file() else ""
    compiler = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.*)$", made, re.MULTILINE)
    home = re.search(r"^CMAKE_HOME_DIRECTORY:\w+=(.*)$", made, re.MULTILINE)
    if (cuda and compiler is not None and compiler[1] != str(nvcc)) or (home is not None and home[1] != str(_SOURCES)):
        configure.append("--fresh")
    if ("--fresh" in configure or not cache.is_file()) and _which("ninja"):
        configure += ["-G", "Ninja"]
    if _CHECKOUT is None:
        make_own_folder(_BUILD)
    _configure_and_build(cmake, configure, _BUILD, "the plugin library")
    _load.cache_clear()
    _cuda_problem.cache_clear()
    return _BUILD / FILE_NAME


def compile_project(sources: Path, folder: Path, options: Mapping[str, object], what: str) -> None:
    """Compile another CMake project of the sources.

    Args:
        sources: its folder.
        folder: an empty folder to build it in.
        options: CMake's variables.
        what: its name in messages.

    Raises:
        MissingDependencyError: the sources, cmake or a compiler is missing.
        ModelError: the compiler failed; the message has its first error.
    """
    cmake = _cmake(sources)
    configure = [str(cmake), "-S", str(sources), "-B", str(folder), *(f"-D{key}={it}" for key, it in options.items())]
    if _which("ninja"):
        configure += ["-G", "Ninja"]
    _configure_and_build(cmake, configure, folder, what)


def openvino_sources() -> tuple[Path, ...]:
    """The files that the OpenVINO extension is compiled from.

    Raises:
        MissingDependencyError: they are not there.
    """
    files = (OPENVINO_SOURCES / "CMakeLists.txt", OPENVINO_SOURCES / "extension.cpp", _SOURCES / "include/stn/stn.h")
    if not all(file.is_file() for file in files):
        raise MissingDependencyError(f"no plugin sources in {_SOURCES}; build from a checkout of stn-infer")
    return files


def _cmake(sources: Path) -> Path:
    if not (sources / "CMakeLists.txt").is_file():
        raise MissingDependencyError(f"no plugin sources in {_SOURCES}; build from a checkout of stn-infer")
    cmake = _which("cmake")
    if cmake is None or _which("c++") is None:
        raise MissingDependencyError("cmake and a C++17 compiler are needed; pip install cmake ninja, and install g++")
    return cmake


def _configure_and_build(cmake: Path, configure: Sequence[str], folder: Path, what: str) -> None:
    for command in (configure, [str(cmake), "--build", str(folder), "--parallel"]):
        done = run_tool(command)
        if done.returncode != 0:
            raise ModelError(f"building {what} failed: {_first_error(done.stderr + done.stdout)}")


def parse_arch(arch: str) -> str:
    """The value of STN_CUDA_ARCH for ``native``, ``all`` or names such as ``sm90,sm120``.

    Raises:
        UsageError: ``arch`` is malformed.
    """
    if arch in ("native", "all"):
        return arch
    numbers = [name.strip().lower().removeprefix("sm").removeprefix("_") for name in arch.split(",")]
    if not all(number.isdigit() and len(number) in (2, 3) for number in numbers):
        raise UsageError(f"expected native, all or GPU architectures such as sm90 or sm80,sm90; got {arch!r}")
    return ";".join(numbers)


@cache
def _load(named: str | None) -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why it is not available; loaded once per value of ``STN_PLUGIN_LIBRARY``."""
    paths = candidates()
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None, f"the plugin library is not built (looked for {', '.join(map(str, paths))}); {_HINT}"
    try:
        library = ctypes.CDLL(str(path.resolve()))
        library.stn_check.argtypes = [ctypes.POINTER(Problem)]
        library.stn_run_cpu.argtypes = [ctypes.POINTER(Problem), ctypes.c_int]
        library.stn_run_cuda.argtypes = [ctypes.POINTER(Problem), ctypes.c_void_p]
        library.stn_status_text.argtypes = [ctypes.c_int]
        for name in ("stn_status_text", "stn_version", "stn_cpu_isa"):
            getattr(library, name).restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return None, f"the plugin library does not load: {error}; {_HINT} again"
    other = library.stn_check(ctypes.byref(Problem())) == _STRUCT_SIZE or not hasattr(library, "stn_cuda_usable")
    if other or _knows_other_ops(library):
        return None, f"the plugin library {path} is from another version of stn-infer; {_HINT} again"
    return library, None


def _knows_other_ops(library: ctypes.CDLL) -> bool:
    """Whether a library knows other versions of the ops than this package."""
    try:
        library.stn_op_version.argtypes = [ctypes.c_char_p]
        known = library.stn_op_version
    except AttributeError:  # older than the function
        return True
    return any(known(op.encode()) != version for op, version in OP_VERSIONS.items())


def _check(status: int) -> None:
    if status != 0:
        raise ModelError(f"the plugin library: {load().stn_status_text(status).decode()}")


def _which(tool: str) -> Path | None:
    # Tools installed by pip are in the interpreter's folder, which may not be on PATH.
    found = shutil.which(tool) or shutil.which(tool, path=str(Path(sys.executable).parent))
    return None if found is None else Path(found)


def _find_nvcc() -> tuple[Path | None, tuple[str, ...]]:
    """nvcc from the system or from the PyPI compiler packages, and the PyPI packages that are missing."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    found = _which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if found is not None:
        return Path(found), ()
    incomplete = tuple(_NVCC_PACKAGES)
    for folder in dict.fromkeys(sys.path):
        # from CUDA 13 on, all packages install into nvidia/cu13
        for nvcc in sorted(Path(folder).glob("nvidia/*/bin/nvcc"), reverse=True):
            root = nvcc.parent.parent
            missing = tuple(name for name, part in _NVCC_PACKAGES.items() if not (root / part).exists())
            if not missing:
                return nvcc, ()
            incomplete = min(incomplete, missing, key=len)
    return None, incomplete


def _first_error(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    at = next((index for index, line in enumerate(lines) if "error" in line.lower()), len(lines) - 1)
    found = lines[at : at + 1]
    if found and found[0].startswith("CMake Error"):  # which has the reason in indented lines
        found += takewhile(lambda line: line.startswith("  "), lines[at + 1 :])
    return " ".join(line.strip() for line in found)[:300] or "no output"
