"""Rules about the file as a whole: versions, inputs, weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from stn_infer.lint_rules.context import LintContext, LintFinding, LintRule
from stn_infer.proto.load import External, external_tensors
from stn_infer.proto.traversal import tensors_of
from stn_infer.repairs.versions import NEWEST_IR, NEWEST_OPSET

_BLOCK = 4 << 20
_NUMPY: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.FLOAT16: np.dtype("<f2"),
}
_OLDEST_OPSET = 11


def versions(context: LintContext) -> Iterator[LintFinding]:
    """Opset and IR version against what onnxruntime reads."""
    if context.opset > NEWEST_OPSET:
        yield LintFinding(
            "opset-too-new",
            "error",
            "",
            "",
            f"opset {context.opset}: onnxruntime 1.31 reads up to {NEWEST_OPSET}; export at opset 18"
            + context.unfixable("opset-too-new"),
            context.fixable("opset-too-new"),
        )
    if context.model.ir_version > NEWEST_IR:
        yield LintFinding(
            "ir-too-new",
            "error",
            "",
            "",
            f"IR version {context.model.ir_version}: onnxruntime 1.31 reads up to {NEWEST_IR}; save with an older one"
            + context.unfixable("ir-too-new"),
            context.fixable("ir-too-new"),
        )
    if context.opset < _OLDEST_OPSET:
        yield LintFinding(
            "opset-too-old",
            "warning",
            "",
            "",
            f"opset {context.opset} is older than {_OLDEST_OPSET}, the oldest that optimize knows; export it again",
        )


def inputs(context: LintContext) -> Iterator[LintFinding]:
    """Sizes that the exporter froze, and weights that are inputs too."""
    weights = {tensor.name for tensor in context.model.graph.initializer}
    listed = [value.name for value in context.model.graph.input if value.name in weights]
    if listed:
        yield LintFinding(
            "weights-as-inputs",
            "warning",
            "",
            listed[0],
            f"{len(listed)} weights are inputs too, so that no runtime may treat them as constants and no grid can be "
            "proven; export with keep_initializers_as_inputs=False",
            context.fixable("weights-as-inputs"),
        )
    for value in context.model.graph.input:
        dims = context.fact(value.name).dims
        if value.name in weights or dims is None or len(dims) < 2:
            continue
        if dims[0] is not None:
            yield LintFinding(
                "static-batch",
                "warning",
                "",
                value.name,
                f"input {value.name!r} is fixed to batch size {dims[0]}: batches are run in pieces of that size; "
                "export with a dynamic batch axis",
            )
        if len(dims) in (4, 5) and all(size is not None for size in dims[2:]) and context.samplers:
            size = "x".join(map(str, dims[2:]))
            yield LintFinding(
                "static-size",
                "info",
                "",
                value.name,
                f"input {value.name!r} is fixed to {size}: other images must be resized before; export with dynamic "
                "axes if the network allows it",
            )


def weights(context: LintContext) -> Iterator[LintFinding]:
    """Weights that are not numbers."""
    # both walk the tensors in one order
    places = iter(external_tensors(context.weights, context.folder))
    for tensor in tensors_of(context.weights):
        kind = None
        if tensor.data_location == TensorProto.EXTERNAL:
            kind = _scan(next(places)[1], _NUMPY.get(tensor.data_type))
        elif tensor.data_type in (*_NUMPY, TensorProto.BFLOAT16):
            kind = _not_finite(numpy_helper.to_array(tensor))
        if kind == "NaN":
            yield LintFinding(
                "nan-weights",
                "error",
                "",
                tensor.name,
                f"{tensor.name or 'a constant'!r} holds NaN, and whatever depends on it will; fix the checkpoint",
            )
        elif kind == "infinity":
            yield LintFinding(
                "infinite-weights",
                "info",
                "",
                tensor.name,
                f"{tensor.name or 'a constant'!r} holds an infinity: right in a mask, an overflow elsewhere",
            )


def _scan(place: External, dtype: np.dtype[Any] | None) -> str | None:
    """As :func:`_not_finite`, block by block; None for types that are not looked into."""
    if dtype is None:
        return None
    kind: str | None = None
    with place.path.open("rb") as file:
        file.seek(place.offset)
        for start in range(0, place.length, _BLOCK):
            block = file.read(min(_BLOCK, place.length - start))
            kind = _not_finite(np.frombuffer(block, dtype)) or kind
            if kind == "NaN" or not block:
                break
    return kind


def _not_finite(values: NDArray[Any]) -> str | None:
    """NaN, infinity, or None."""
    if np.isfinite(values).all():
        return None
    return "NaN" if np.isnan(values).any() else "infinity"


def examined(context: LintContext) -> Iterator[LintFinding]:
    """That there is nothing to do, or that the fusion could not be run."""
    if not context.samplers and not any(node.op_type == "AffineGrid" for node in context.model.graph.node):
        yield LintFinding("no-sampler", "info", "", "", "there is no sampler in the file: nothing to rewrite")
    if context.load_error:
        yield LintFinding("does-not-run", "error", "", "", f"{context.load_error}; export the model again")
    elif context.not_fused:
        yield LintFinding("not-examined", "warning", "", "", f"the grids could not be examined: {context.not_fused}")
    if context.invalid:
        yield LintFinding("invalid", "warning", "", "", f"onnx's checker refuses it: {context.invalid}")


RULES: tuple[LintRule, ...] = (versions, inputs, weights, examined)
