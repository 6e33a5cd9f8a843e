"""Quantizes convolutions and linear layers of a float32 graph to INT8: Q/DQ pairs by static calibration.

Inputs and weights of the layers are quantized symmetrically, weights per channel, as TensorRT requires. A layer's
output is not quantized until the next layer reads it. Nodes that compute sampling grids, including the fully connected
layers of a localization network, and the samplers stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from stn_infer.errors import ExportError, MissingDependencyError, one_line
from stn_infer.files import temporary_folder
from stn_infer.fusion.op import is_op
from stn_infer.precision.coordinates import LAYERS, coordinate_nodes
from stn_infer.proto.edit import copy_of
from stn_infer.proto.session import import_onnxruntime
from stn_infer.quiet import quiet

_TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def quantize(model: onnx.ModelProto, samples: Iterable[Mapping[str, NDArray[Any]]]) -> onnx.ModelProto:
    """Returns ``model`` with Q/DQ pairs before its layers; the given model is not changed.

    Args:
        model: float32, fused or not; its functions are kept.
        samples: INT8 calibration data: batches [N, ...] of inputs by name; min and max of each activation are used.

    Raises:
        ExportError: no layer can be quantized, there are no samples, or onnxruntime's quantizer fails.
        MissingDependencyError: onnxruntime or its quantizer can't be imported.
    """
    import_onnxruntime()  # without its telemetry
    try:
        from onnxruntime import quantization
    except ImportError as error:
        raise MissingDependencyError(f"onnxruntime's quantizer cannot be imported ({error})") from error
    named = _named(model)
    head = {named.graph.node[index].name for index in coordinate_nodes(named, whole_head=True)}
    if not any(node.op_type in LAYERS and node.name not in head for node in named.graph.node):
        raise ExportError("int8: the model has no convolution or linear layer besides those that compute theta")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """The samples in the quantizer's interface."""

        def __init__(self) -> None:
            self._rest = iter(samples)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            found = next(self._rest, None)
            return None if found is None else dict(found)

    # The quantizer advises to run its pre-processing, but that would inline the functions.
    with temporary_folder() as folder, quiet():
        path = folder / "int8.onnx"
        try:
            quantization.quantize_static(
                named,
                path,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_TYPES),
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                nodes_to_exclude=sorted(head),
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,  # TensorRT cannot dequantize 32-bit integers
                    "OpTypesToExcludeOutputQuantization": list(_TYPES),
                },
            )
            quantized = onnx.load(path)
        except Exception as error:  # the quantizer's exceptions have no common type
            raise ExportError(f"int8: onnxruntime's quantizer fails: {one_line(error)}") from error
    _restore(quantized, {node.name for node in named.graph.node if node.op_type in LAYERS and node.name not in head})
    _check(model, quantized)
    return quantized


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy in which all nodes have unique names, so that nodes can be excluded from quantization by name."""
    copy = copy_of(model)
    taken: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        name = node.name or f"node_{index}"
        while name in taken:
            name += "_"
        taken.add(name)
        node.name = name
    return copy


def _restore(model: onnx.ModelProto, layers: set[str]) -> None:
    """Connects all nodes except the quantized layers, above all samplers, to the unquantized tensors, in place.

    The quantizer inserts a tensor's Q/DQ pair before all nodes that read the tensor.
    """
    before = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    exact = {
        node.output[0]: before[node.input[0]]
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in before
    }
    for node in model.graph.node:
        if node.name not in layers:
            for index, name in enumerate(node.input):
                node.input[index] = exact.get(name, name)


def _check(model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    """Raises unless the ``stn`` nodes and functions are unchanged and every zero point is zero."""
    kept = {(*node.input, node.output[0]) for node in quantized.graph.node if is_op(node)}
    functions = {(function.domain, function.name) for function in quantized.functions}
    for node in filter(is_op, model.graph.node):
        if (*node.input, node.output[0]) not in kept:
            raise ExportError(f"int8: the quantizer changed the {node.domain}::{node.op_type} {node.name!r}")
    if not functions.issuperset((function.domain, function.name) for function in model.functions):
        raise ExportError("int8: the quantizer removed the file's functions, so the result is not portable")
    constants = {tensor.name: tensor for tensor in quantized.graph.initializer}
    for layer in quantized.graph.node:
        if layer.op_type in ("QuantizeLinear", "DequantizeLinear") and len(layer.input) > 2:
            zero = constants.get(layer.input[2])
            if zero is not None and np.any(onnx.numpy_helper.to_array(zero)):
                raise ExportError(f"int8: the quantizer gave {layer.name!r} a zero point, which TensorRT rejects")
