"""The names of the ways to run a model that a benchmark compares."""

from __future__ import annotations

#: Name to what it is.
VARIANTS = {
    "eager": "eager PyTorch",
    "compile": "torch.compile, compiled for each batch size",
    "fused": "eager PyTorch, its SpatialTransformer layers run by the plugin library's kernel",
    "compile-fused": "torch.compile of fused",
    "graph": "eager PyTorch in a CUDA graph",
    "fused-graph": "fused in a CUDA graph",
    "ort-plain": "onnxruntime on the file that torch.onnx.export writes",
    "ort": "onnxruntime on the file that stn-infer writes, its spatial transformers inlined as standard ONNX operators",
    "ort-fused": "onnxruntime on the same file, its spatial transformers run by the plugin library's op",
    "ort-binding": "onnxruntime as in ort-fused (ort where there is no library), with IO binding",
    "ort-graph": "onnxruntime as in ort, in a CUDA graph",
    "ort-fused-graph": "onnxruntime as in ort-fused, in a CUDA graph",
    "openvino-plain": "OpenVINO on the file that torch.onnx.export writes",
    "openvino": "OpenVINO on the file that stn-infer writes, its functions inlined",
    "openvino-fused": "OpenVINO on the same file, its spatial transformers run by the extension",
    "trt": "TensorRT with its own layers",
    "trt-fused": "TensorRT with the plugin",
    "trt-rtx": "TensorRT-RTX with its own layers",
}
#: Variants that need a GPU, and the beginning of the sentence that says so.
GPU_ONLY = {
    "graph": "CUDA graphs need",
    "fused-graph": "CUDA graphs need",
    "ort-graph": "CUDA graphs need",
    "ort-fused-graph": "CUDA graphs need",
    "trt": "TensorRT needs",
    "trt-fused": "TensorRT needs",
    "trt-rtx": "TensorRT-RTX needs",
}
#: Variants that `run` has a backend for.
END_TO_END = (
    *("eager", "compile", "ort", "ort-fused", "ort-plain"),
    *("openvino-plain", "openvino", "openvino-fused", "trt", "trt-fused", "trt-rtx"),
)


def possible(variants: tuple[str, ...], device: str) -> tuple[str, ...]:
    """Those that the kind of device does not rule out."""
    return tuple(name for name in variants if device != "cpu" or name not in GPU_ONLY)


def quick_variants(device: str) -> tuple[str, ...]:
    """What ``--quick`` measures: nothing that compiles or builds for longer than the rest takes together."""
    names = ("eager", "ort-plain", "ort", "ort-fused")
    return names if device == "cpu" else ("eager", "fused-graph", *names[1:], "ort-fused-graph")
