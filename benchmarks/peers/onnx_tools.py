"""onnxruntime on the file of ``torch.onnx.export`` after other ONNX optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import onnx

from stn_infer.benchmarking.harness.variant import OpenVariant
from stn_infer.benchmarking.prepare.case import Setup
from stn_infer.benchmarking.variants.ort import OrtVariant
from stn_infer.errors import MissingDependencyError, ModelError, one_line
from stn_infer.extras import install


def onnxslim(setup: Setup) -> OpenVariant:
    """The plain file after ``onnxslim.slim``.

    Raises:
        MissingDependencyError: onnxslim is not installed.
        ModelError: there is no plain file, or onnxslim fails on it.
    """

    def tool(model: onnx.ModelProto) -> onnx.ModelProto:
        import onnxslim as package

        slimmed: onnx.ModelProto = package.slim(model)
        return slimmed

    return _optimized("onnxslim", tool, setup)


def onnxsim(setup: Setup) -> OpenVariant:
    """The plain file after ``onnxsim.simplify``; raises as :func:`onnxslim`."""

    def tool(model: onnx.ModelProto) -> onnx.ModelProto:
        import onnxsim as package

        simplified, checked = package.simplify(model)
        if not checked:
            raise ModelError("onnxsim's own check of its result failed")
        return simplified  # type: ignore[no-any-return]

    return _optimized("onnxsim", tool, setup)


def _optimized(
    name: str,
    tool: Callable[[onnx.ModelProto], onnx.ModelProto],
    setup: Setup,
) -> OpenVariant:
    prepared = setup.prepared
    if prepared.plain is None:
        raise ModelError(prepared.problems.get("plain", "there is no plain file"))
    path = Path(prepared.folder) / f"{name}.onnx"
    if not path.exists():
        try:
            onnx.save(tool(onnx.load(prepared.plain)), path)
        except ImportError:
            raise MissingDependencyError(f"{name} is not installed; {install('peers')}") from None
        except Exception as error:  # the tools may raise any exception
            raise ModelError(f"{name} fails on the plain file: {one_line(error)}") from error
    variant = OrtVariant("ort-plain", replace(setup, prepared=replace(prepared, plain=str(path))))
    describe = variant.describe
    variant.describe = lambda: {**describe(), "optimized by": f"{name} {version(name)}"}  # type: ignore[method-assign]
    return variant
