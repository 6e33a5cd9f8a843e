"""The ways of running a model that a benchmark compares, and why one cannot be had."""

from __future__ import annotations

from collections.abc import Callable

from stn_infer.benchmarking.method import Method
from stn_infer.benchmarking.prepare import Prepared
from stn_infer.benchmarking.runner import Runner
from stn_infer.errors import MissingDependencyError, ModelError, one_line

#: Name to what it is.
VARIANTS = {
    "eager": "PyTorch as it is",
    "compile": "torch.compile, compiled for each batch size",
    "fused": "PyTorch, its SpatialTransformer layers by the plugin library's kernel",
    "compile-fused": "torch.compile of that",
    "graph": "PyTorch as it is, in a CUDA graph",
    "fused-graph": "PyTorch with the plugin library's kernel, in a CUDA graph",
    "ort-plain": "onnxruntime on the file that torch.onnx.export writes",
    "ort": "onnxruntime on the file that stn-infer writes, its spatial transformers as plain ONNX",
    "ort-fused": "onnxruntime on the same file, its spatial transformers by the plugin library's op",
    "ort-binding": "onnxruntime as in ort-fused (ort where there is no library), inputs and outputs bound beforehand",
    "ort-graph": "onnxruntime as in ort, in a CUDA graph",
    "ort-fused-graph": "onnxruntime as in ort-fused, in a CUDA graph",
    "trt": "TensorRT with its own layers",
    "trt-fused": "TensorRT with the plugin",
    "trt-rtx": "TensorRT-RTX with its own layers",
}

_GPU_ONLY = {
    "graph": "CUDA graphs need",
    "fused-graph": "CUDA graphs need",
    "ort-graph": "CUDA graphs need",
    "ort-fused-graph": "CUDA graphs need",
    "trt": "TensorRT needs",
    "trt-fused": "TensorRT needs",
    "trt-rtx": "TensorRT-RTX needs",
}
_END_TO_END = ("eager", "compile", "ort", "ort-fused", "ort-plain", "trt", "trt-fused", "trt-rtx")


def open_variant(name: str, prepared: Prepared, device: str, threads: int, method: Method) -> Runner:
    """Open one.

    Args:
        name: a key of :data:`VARIANTS`, or ``package.module:function`` of a function that takes the other four
            arguments and opens a runner of one's own.
        prepared: the model on disk.
        device: ``cpu`` or ``cuda:N``.
        threads: threads inside one operator.
        method: boundary and cache.

    Raises:
        StnInferError: it cannot be had here; the message says why.
    """
    if ":" in name:
        return _brought(name)(prepared, device, threads, method)
    if device == "cpu" and name in _GPU_ONLY:
        raise MissingDependencyError(f"{_GPU_ONLY[name]} a GPU, the device is cpu")
    if method.boundary == "end-to-end":
        if name not in _END_TO_END:
            raise ModelError(f"`run` has no such backend; end to end there are {', '.join(_END_TO_END)}")
        from stn_infer.benchmarking.end_to_end import EndToEnd

        return EndToEnd(name, prepared, device, threads)
    if name.startswith("ort"):
        from stn_infer.benchmarking.ort_variants import open_ort

        return open_ort(name, prepared, device, threads, method)
    if name.startswith("trt"):
        from stn_infer.benchmarking.trt_variants import TrtRunner

        return TrtRunner(name, prepared, device, method)
    from stn_infer.benchmarking.torch_variants import TorchRunner

    return TorchRunner(name, prepared, device, threads, method)


def _brought(name: str) -> Callable[[Prepared, str, int, Method], Runner]:
    """What a name with a colon names."""
    import importlib

    module, _, function = name.partition(":")
    try:
        opener: Callable[[Prepared, str, int, Method], Runner] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"the variant {name} cannot be imported: {one_line(error)}") from None
    return opener


def possible(variants: tuple[str, ...], device: str) -> tuple[str, ...]:
    """Those that the kind of device does not rule out."""
    return tuple(name for name in variants if device != "cpu" or name not in _GPU_ONLY)


def quick_variants(device: str) -> tuple[str, ...]:
    """What a quick look measures: nothing that compiles or builds for longer than the rest takes together."""
    names = ("eager", "ort-plain", "ort", "ort-fused")
    return names if device == "cpu" else ("eager", "fused-graph", *names[1:], "ort-fused-graph")


def files_of(name: str) -> tuple[str, ...]:
    """Which ONNX files a variant may need, of ``plain`` and ``portable``."""
    if ":" in name:
        return ("plain", "portable")
    if not name.startswith(("ort", "trt")):
        return ()
    return ("plain",) if name == "ort-plain" else ("portable",)


def onnx_file(name: str, prepared: Prepared) -> str:
    """The file that an onnxruntime or TensorRT variant runs.

    Raises:
        ModelError: there is none.
    """
    (which,) = files_of(name)
    file = prepared.plain if which == "plain" else prepared.portable
    if file is None:
        raise ModelError(prepared.problems.get(which, f"there is no {which} file"))
    return file
