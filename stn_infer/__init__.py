"""Spatial Transformer Networks: checkpoint in; portable ONNX, batched predictions and an honest latency table out.

    import stn_infer

    stn_infer.export("st-cnn-affine-rts", "model.onnx")
    stn_infer.run("model.onnx", ["digits/"], "predictions")
    stn_infer.verify("model.onnx")
    stn_infer.bench("st-cnn-affine-rts", batch_sizes=(1, 64))

Importing the package imports neither torch nor onnxruntime nor onnx: each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stn_infer.backends import Backend, open_backend
    from stn_infer.benchmarking import BenchResult, bench
    from stn_infer.errors import StnInferError
    from stn_infer.exporter import ExportReport, export
    from stn_infer.layers import SpatialTransformer
    from stn_infer.linting import LintFinding, LintReport, lint
    from stn_infer.metadata import Preprocess
    from stn_infer.optimizer import OptimizeReport, optimize
    from stn_infer.pipeline import RunSummary, run
    from stn_infer.sources import LoadedModel, load_source
    from stn_infer.verification import Verification, verify

__version__ = "0.1.0"

_HOMES = {
    "Backend": "backends",
    "BenchResult": "benchmarking",
    "ExportReport": "exporter",
    "LintFinding": "linting",
    "LintReport": "linting",
    "LoadedModel": "sources",
    "OptimizeReport": "optimizer",
    "Preprocess": "metadata",
    "RunSummary": "pipeline",
    "SpatialTransformer": "layers",
    "StnInferError": "errors",
    "Verification": "verification",
    "bench": "benchmarking",
    "export": "exporter",
    "lint": "linting",
    "load_source": "sources",
    "open_backend": "backends",
    "optimize": "optimizer",
    "run": "pipeline",
    "verify": "verification",
}

__all__ = [
    "Backend",
    "BenchResult",
    "ExportReport",
    "LintFinding",
    "LintReport",
    "LoadedModel",
    "OptimizeReport",
    "Preprocess",
    "RunSummary",
    "SpatialTransformer",
    "StnInferError",
    "Verification",
    "__version__",
    "bench",
    "export",
    "lint",
    "load_source",
    "open_backend",
    "optimize",
    "run",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stn_infer' has no attribute {name!r}")
    value = getattr(import_module(f"stn_infer.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
