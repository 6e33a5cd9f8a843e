"""Spatial Transformer Networks: from a checkpoint to portable ONNX, batched predictions and a latency table.

    import stn_infer

    stn_infer.export(module, "model.onnx", example_inputs=images, preprocess="0..1", labels=names)
    with stn_infer.Predictor("model.onnx") as predictor:
        for prediction in predictor("photos/"):
            print(prediction.input, prediction.label, prediction.confidence)
    stn_infer.run("model.onnx", ["photos/"], "predictions")
    stn_infer.verify("model.onnx")
    stn_infer.bench("st-cnn-affine-rts", batch_sizes=(1, 64))

Importing the package imports neither torch nor onnxruntime nor onnx: each public name is loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stn_infer.version import __version__

if TYPE_CHECKING:
    from stn_infer.api.bench import bench
    from stn_infer.api.best import BestReport, best
    from stn_infer.api.cluster.batches import BatchPredictor
    from stn_infer.api.doctor import Diagnosis, doctor
    from stn_infer.api.engines.build import BuildReport, build
    from stn_infer.api.engines.inspect import EngineReport, inspect_engine
    from stn_infer.api.engines.refit import RefitReport, refit
    from stn_infer.api.evaluate import Comparison, Evaluation, compare, evaluate
    from stn_infer.api.export import ExportReport, export
    from stn_infer.api.lint import LintFinding, LintReport, lint
    from stn_infer.api.metadata import read_metadata, write_metadata
    from stn_infer.api.open import open_backend
    from stn_infer.api.optimize import OptimizeReport, optimize
    from stn_infer.api.predictor import Predictor
    from stn_infer.api.run import run
    from stn_infer.api.show import ShowReport, show
    from stn_infer.api.triton import TritonReport, triton
    from stn_infer.api.verify import verify
    from stn_infer.backends.base import Backend
    from stn_infer.backends.tensorrt.options import BuildOptions
    from stn_infer.benchmarking.result import BenchResult
    from stn_infer.budget import Budget
    from stn_infer.errors import StnInferError
    from stn_infer.layers import SpatialTransformer
    from stn_infer.metadata import ModelMetadata
    from stn_infer.pipeline.inference import RunSummary
    from stn_infer.pipeline.prediction import Prediction
    from stn_infer.pipeline.stream import Predictions
    from stn_infer.preprocess.rule import Preprocess
    from stn_infer.sources.load import LoadedModel, load_source
    from stn_infer.verification.report import Verification


_HOMES = {
    "Backend": "backends.base",
    "BatchPredictor": "api.cluster.batches",
    "BenchResult": "benchmarking.result",
    "BestReport": "api.best",
    "Budget": "budget",
    "BuildOptions": "backends.tensorrt.options",
    "BuildReport": "api.engines.build",
    "Comparison": "api.evaluate",
    "Diagnosis": "api.doctor",
    "EngineReport": "api.engines.inspect",
    "Evaluation": "api.evaluate",
    "ExportReport": "api.export",
    "LintFinding": "api.lint",
    "LintReport": "api.lint",
    "LoadedModel": "sources.load",
    "ModelMetadata": "metadata",
    "OptimizeReport": "api.optimize",
    "Prediction": "pipeline.prediction",
    "Predictions": "pipeline.stream",
    "Predictor": "api.predictor",
    "Preprocess": "preprocess.rule",
    "RefitReport": "api.engines.refit",
    "RunSummary": "pipeline.inference",
    "ShowReport": "api.show",
    "SpatialTransformer": "layers",
    "StnInferError": "errors",
    "TritonReport": "api.triton",
    "Verification": "verification.report",
    "bench": "api.bench",
    "best": "api.best",
    "build": "api.engines.build",
    "compare": "api.evaluate",
    "doctor": "api.doctor",
    "evaluate": "api.evaluate",
    "export": "api.export",
    "inspect_engine": "api.engines.inspect",
    "lint": "api.lint",
    "load_source": "sources.load",
    "open_backend": "api.open",
    "optimize": "api.optimize",
    "read_metadata": "api.metadata",
    "refit": "api.engines.refit",
    "run": "api.run",
    "show": "api.show",
    "triton": "api.triton",
    "verify": "api.verify",
    "write_metadata": "api.metadata",
}

__all__ = [
    "Backend",
    "BatchPredictor",
    "BenchResult",
    "BestReport",
    "Budget",
    "BuildOptions",
    "BuildReport",
    "Comparison",
    "Diagnosis",
    "EngineReport",
    "Evaluation",
    "ExportReport",
    "LintFinding",
    "LintReport",
    "LoadedModel",
    "ModelMetadata",
    "OptimizeReport",
    "Prediction",
    "Predictions",
    "Predictor",
    "Preprocess",
    "RefitReport",
    "RunSummary",
    "ShowReport",
    "SpatialTransformer",
    "StnInferError",
    "TritonReport",
    "Verification",
    "__version__",
    "bench",
    "best",
    "build",
    "compare",
    "doctor",
    "evaluate",
    "export",
    "inspect_engine",
    "lint",
    "load_source",
    "open_backend",
    "optimize",
    "read_metadata",
    "refit",
    "run",
    "show",
    "triton",
    "verify",
    "write_metadata",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stn_infer' has no attribute {name!r}")
    try:
        module = import_module(f"stn_infer.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        from stn_infer.extras import of_import

        raise of_import(error) or error from None
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
