"""onnxruntime on what public optimizers make of the file that ``torch.onnx.export`` writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx

from stn_infer.benchmarking.harness.runner import OpenVariant
from stn_infer.benchmarking.prepare.case import Prepared
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.variants.ort import OrtVariant
from stn_infer.errors import MissingDependencyError, ModelError, one_line


def onnxslim(prepared: Prepared, device: str, threads: int, method: Method) -> OpenVariant:
    """``onnxslim.slim``.

    Raises:
        MissingDependencyError: it is not installed.
        ModelError: there is no plain file, or the tool fails on it.
    """

    def tool(model: onnx.ModelProto) -> onnx.ModelProto:
        import onnxslim as package

        slimmed: onnx.ModelProto = package.slim(model)
        return slimmed

    return _optimized("onnxslim", tool, prepared, device, threads, method)


def onnxsim(prepared: Prepared, device: str, threads: int, method: Method) -> OpenVariant:
    """``onnxsim.simplify``; raises as :func:`onnxslim`."""

    def tool(model: onnx.ModelProto) -> onnx.ModelProto:
        import onnxsim as package

        simplified, checked = package.simplify(model)
        if not checked:
            raise ModelError("onnxsim's own check of its result failed")
        return simplified  # type: ignore[no-any-return]

    return _optimized("onnxsim", tool, prepared, device, threads, method)


def _optimized(
    name: str,
    tool: Callable[[onnx.ModelProto], onnx.ModelProto],
    prepared: Prepared,
    device: str,
    threads: int,
    method: Method,
) -> OpenVariant:
    if prepared.plain is None:
        raise ModelError(prepared.problems.get("plain", "there is no plain file"))
    path = Path(prepared.folder) / f"{name}.onnx"
    if not path.exists():
        try:
            onnx.save(tool(onnx.load(prepared.plain)), path)
        except ImportError:
            raise MissingDependencyError(f"{name} is not installed; pip install 'stn-infer[peers]'") from None
        except Exception as error:  # whatever a tool raises is its answer
            raise ModelError(f"{name} fails on the plain file: {one_line(error)}") from error
    runner = OrtVariant("ort-plain", replace(prepared, plain=str(path)), device, threads, method)
    describe = runner.describe
    runner.describe = lambda: {**describe(), "optimized by": f"{name} {version(name)}"}  # type: ignore[method-assign]
    return runner
