"""Rules about the file as a whole: versions, inputs, weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from stn_infer.fusion.samplers import unknown_samplers
from stn_infer.lint_rules.catalog import Severity
from stn_infer.lint_rules.context import LintContext, LintFinding, LintRule
from stn_infer.proto.check import tensor_bytes
from stn_infer.proto.load import External, external_tensors
from stn_infer.proto.traversal import given_inputs, tensors_of
from stn_infer.repairs.large_weights import EXTERNAL_TENSOR
from stn_infer.repairs.versions import NEWEST_IR, NEWEST_OPSET

_BLOCK = 4 << 20
_NUMPY: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.FLOAT16: np.dtype("<f2"),
}
_OLDEST_OPSET = 11


def _finding(code: str, severity: Severity, message: str, tensor: str = "", fixable: bool = False) -> LintFinding:
    return LintFinding(code, severity, "", tensor, message, fixable)


def versions(context: LintContext) -> Iterator[LintFinding]:
    """Opsets and IR versions that onnxruntime does not support, or that are too old."""
    too_new = (
        ("opset-too-new", "opset", context.opset, NEWEST_OPSET, "export at opset 18"),
        ("ir-too-new", "IR version", context.model.ir_version, NEWEST_IR, "save with an older one"),
    )
    for code, what, version, newest, advice in too_new:
        if version > newest:
            message = f"{what} {version}: onnxruntime 1.31 supports up to {newest}; {advice}{context.unfixable(code)}"
            yield _finding(code, "error", message, fixable=context.fixable(code))
    if context.opset < _OLDEST_OPSET:
        message = f"opset {context.opset} is older than {_OLDEST_OPSET}, the oldest that optimize supports; re-export"
        yield _finding("opset-too-old", "warning", message)


def inputs(context: LintContext) -> Iterator[LintFinding]:
    """Sizes that the exporter baked in as constants, and weights that are also inputs."""
    given = given_inputs(context.model.graph)
    names = {value.name for value in given}
    listed = [value.name for value in context.model.graph.input if value.name not in names]
    if listed:
        message = (
            f"{len(listed)} weights are also inputs, so runtimes cannot treat them as constants and no grid can be "
            "proven linear; export with keep_initializers_as_inputs=False"
        )
        yield _finding("weights-as-inputs", "warning", message, listed[0], context.fixable("weights-as-inputs"))
    for value in given:
        dims = context.fact(value.name).dims
        if dims is None or len(dims) < 2:
            continue
        if dims[0] is not None:
            message = (
                f"input {value.name!r} has the fixed batch size {dims[0]}: larger batches are split; "
                "export with a dynamic batch axis"
            )
            yield _finding("static-batch", "warning", message, value.name)
        if len(dims) in (4, 5) and all(size is not None for size in dims[2:]) and context.samplers:
            message = (
                f"input {value.name!r} has the fixed size {'x'.join(map(str, dims[2:]))}: images of other sizes must "
                "be resized; export with dynamic height and width if the network supports it"
            )
            yield _finding("static-size", "info", message, value.name)


def weights(context: LintContext) -> Iterator[LintFinding]:
    """Weights that are NaN or infinite."""
    # external_tensors and tensors_of visit the tensors in the same order.
    places = iter(external_tensors(context.weights, context.folder))
    for tensor in tensors_of(context.weights):
        kind = None
        if tensor.data_location == TensorProto.EXTERNAL:
            kind = _scan(next(places)[1], _NUMPY.get(tensor.data_type))
        elif tensor.data_type in (*_NUMPY, TensorProto.BFLOAT16):
            kind = _not_finite(numpy_helper.to_array(tensor))
        name = tensor.name or "a constant"
        if kind == "NaN":
            message = f"{name!r} contains NaN, which propagates to all dependent values; fix the checkpoint"
            yield _finding("nan-weights", "error", message, tensor.name)
        elif kind == "infinity":
            message = f"{name!r} contains an infinity: valid in a mask, elsewhere probably an overflow"
            yield _finding("infinite-weights", "info", message, tensor.name)


def _scan(place: External, dtype: np.dtype[Any] | None) -> str | None:
    """Like :func:`_not_finite`, block by block. None for types that are not scanned."""
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
    """Returns "NaN", "infinity", or None."""
    if np.isfinite(values).all():
        return None
    return "NaN" if np.isnan(values).any() else "infinity"


def examined(context: LintContext) -> Iterator[LintFinding]:
    """Files without a sampler, files that do not run, and files on which the fusion could not run."""
    affine = any(node.op_type == "AffineGrid" for node in context.model.graph.node)
    if not context.samplers and not affine and not any(unknown_samplers(context.model)):
        yield _finding("no-sampler", "info", "the file has no sampler: nothing to rewrite")
    small = _small_external(context)
    if small and "external" in context.load_error:
        message = (
            f"{context.load_error}: its values are external data, which onnxruntime does not read for a size; optimize "
            "stores small constants in the file"
        )
        yield _finding("external-constant", "error", message, small, fixable=True)
    elif context.load_error:
        yield _finding("does-not-run", "error", f"{context.load_error}; export the model again")
    elif context.not_fused:
        yield _finding("not-examined", "warning", f"the fusion pass could not run: {context.not_fused}")
    if context.invalid:
        yield _finding("invalid", "warning", f"onnx's checker rejects the file: {context.invalid}")


def _small_external(context: LintContext) -> str:
    """The name of a constant with external data that ``optimize`` would store in the file; "" if there is none."""
    constants = context.weights.graph.initializer
    external = (tensor for tensor in constants if tensor.data_location == TensorProto.EXTERNAL)
    return next((tensor.name for tensor in external if tensor_bytes(tensor) < EXTERNAL_TENSOR), "")


RULES: tuple[LintRule, ...] = (versions, inputs, weights, examined)
