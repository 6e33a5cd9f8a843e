"""Variants by names that a reader knows: whose file or code it is, and what runs it."""

from __future__ import annotations

from stn_infer.benchmarking.record import Measurement
from stn_infer.benchmarking.result import BenchResult, Model

_OURS, _PLAIN = "stn-infer", "torch.onnx.export"

#: Variant to whose it is (nobody's: the framework's own), what runs it, and how.
_PARTS: dict[str, tuple[str, str, str]] = {
    "eager": ("", "PyTorch", ""),
    "compile": ("", "torch.compile", ""),
    "fused": (_OURS, "PyTorch", ""),
    "compile-fused": (_OURS, "torch.compile", ""),
    "graph": ("", "PyTorch", "CUDA graph"),
    "fused-graph": (_OURS, "PyTorch", "CUDA graph"),
    "ort-plain": (_PLAIN, "onnxruntime", ""),
    "ort": (_OURS, "onnxruntime", "no plugin"),
    "ort-fused": (_OURS, "onnxruntime", ""),
    "ort-binding": (_OURS, "onnxruntime", "IO binding"),
    "ort-graph": (_OURS, "onnxruntime", "no plugin, CUDA graph"),
    "ort-fused-graph": (_OURS, "onnxruntime", "CUDA graph"),
    "openvino-plain": (_PLAIN, "OpenVINO", ""),
    "openvino": (_OURS, "OpenVINO", "no extension"),
    "openvino-fused": (_OURS, "OpenVINO", ""),
    "trt": (_OURS, "TensorRT", "no plugin"),
    "trt-fused": (_OURS, "TensorRT", ""),
    "trt-rtx": (_OURS, "TensorRT-RTX", "no plugin"),
}


def is_ours(row: Measurement) -> bool:
    """Whether a row runs a file or a kernel of stn-infer; a function of the user's own says so by its ``plugin``."""
    if row.variant in _PARTS:
        return _PARTS[row.variant][0] == _OURS
    return row.runs_on.get("plugin", "none") != "none"


def names(result: BenchResult, model: Model) -> dict[str, str]:
    """Each variant of a model to its name, e.g. ``stn-infer, onnxruntime CPU``; no two have the same."""
    rows = {row.variant: row for row in result.rows(model)}
    found = {variant: _name(result, model, row) for variant, row in rows.items()}
    given = list(found.values())
    return {variant: name if given.count(name) == 1 else variant for variant, name in found.items()}


def _name(result: BenchResult, model: Model, row: Measurement) -> str:
    unit = "CPU" if result.request.device == "cpu" else "GPU"
    if row.variant in _PARTS:
        whose, runtime, how = _PARTS[row.variant]
        if whose == _PLAIN and _is_given(model):
            whose = "the given file"
    else:
        runtime, how = row.runs_on.get("runtime", ""), row.variant.rpartition(":")[2]
        whose = _OURS if is_ours(row) else ""
    return ", ".join(part for part in (whose, f"{runtime} {unit}" if runtime else "", how) if part)


def _is_given(model: Model) -> bool:
    """Whether the plain file is one that the user named, not one that was exported here."""
    return "file" in model.sha256 and model.sha256.get("plain", model.sha256["file"]) == model.sha256["file"]
