"""Whether a graph itself ends in a softmax or a sigmoid, so that its scores are probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
from onnx import NodeProto

from stn_infer.activation import Scores
from stn_infer.metadata import ModelMetadata
from stn_infer.proto.edit import inline_functions
from stn_infer.proto.traversal import STANDARD_DOMAINS, attributes_of, is_standard, opset_of

# What hands values on as they are.
_KEEPS = ("Identity", "Cast", "Dropout", "QuantizeLinear", "DequantizeLinear")
_RESHAPES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")
_SIGMOIDS = ("Sigmoid", "HardSigmoid", "QLinearSigmoid")
_SOFTMAXES = ("Softmax", "QLinearSoftmax")


def final_activation(model: onnx.ModelProto) -> Scores | None:
    """What the scores [N, classes] of the first output are, as far as the last operators show it.

    A softmax and a sigmoid give probabilities; the logarithms of a log-softmax become probabilities by another softmax.
    A softmax of Exp, ReduceSum and Div is recognized.

    Args:
        model: with or without its weights; it is not changed.

    Returns:
        None: it ends in something else, such as a linear layer, whose scores are trained with either activation.
    """
    if not model.graph.output:
        return None
    return _Walk(model).scores(model.graph.output[0].name)


def with_scores(model: onnx.ModelProto, metadata: ModelMetadata) -> ModelMetadata:
    """``metadata`` with what the graph shows of the scores, where it does not say what they are."""
    if metadata.scores is not None:
        return metadata
    return replace(metadata, scores=final_activation(model))


class _Walk:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._producers = {name: node for node in model.graph.node for name in node.output if name}

    def scores(self, output: str) -> Scores | None:
        node, reshaped = self._behind(output)
        if node is None:
            return None
        if self._is_call(node):
            flat = _Walk(inline_functions(self._model))
            inner, _ = flat._behind(output)
            return None if inner is None or flat._is_call(inner) else flat.scores(output)
        kind = node.op_type if node.domain in (*STANDARD_DOMAINS, "com.microsoft") else ""
        if kind in _SIGMOIDS:
            return Scores("sigmoid", applied=True)
        if kind == "Log":  # of a softmax
            inner, reshaped_inside = self._behind(node.input[0])
            found = inner is not None and inner.op_type in _SOFTMAXES
            return Scores() if inner and found and self._over_classes(inner, reshaped or reshaped_inside) else None
        if kind in (*_SOFTMAXES, "LogSoftmax"):
            return Scores("softmax", applied=kind != "LogSoftmax") if self._over_classes(node, reshaped) else None
        return Scores("softmax", applied=True) if kind == "Div" and self._is_quotient(node) else None

    def _is_call(self, node: NodeProto) -> bool:
        return any((node.domain, node.op_type) == (one.domain, one.name) for one in self._model.functions)

    def _behind(self, name: str) -> tuple[NodeProto | None, bool]:
        """The node that computes a tensor's values, and whether a reshape follows it."""
        reshaped = False
        node = self._producers.get(name)
        while node is not None and node.input and is_standard(node, *_KEEPS, *_RESHAPES):
            reshaped = reshaped or node.op_type in _RESHAPES
            node = self._producers.get(node.input[0])
        return node, reshaped

    def _is_quotient(self, node: NodeProto) -> bool:
        """Whether a Div is exp(x) / sum(exp(x)), which nobody takes over another axis than that of the classes."""
        powers, _ = self._behind(node.input[0])
        total, _ = self._behind(node.input[1])
        if powers is None or total is None or not is_standard(powers, "Exp") or not is_standard(total, "ReduceSum"):
            return False
        return self._behind(total.input[0])[0] is powers

    def _over_classes(self, node: NodeProto, reshaped: bool) -> bool:
        """Whether a softmax is over the classes: all of them, for one sample."""
        before_13 = is_standard(node) and opset_of(self._model) < 13
        axis = attributes_of(node).get("axis", 1 if before_13 else -1)
        if not reshaped:
            return axis in (1, -1)
        shape = self._shape(node.output[0])
        if shape is None or not -len(shape) <= axis < len(shape):
            return False
        others = [size for index, size in enumerate(shape[1:], 1) if index != axis % len(shape)]
        return axis % len(shape) > 0 and all(size == 1 for size in others)

    def _shape(self, name: str) -> list[Any] | None:
        try:
            inferred = onnx.shape_inference.infer_shapes(self._model)
        except Exception:  # a C++ exception of no particular class
            return None
        for value in inferred.graph.value_info:
            if value.name == name and value.type.tensor_type.HasField("shape"):
                return [axis.dim_value or axis.dim_param or None for axis in value.type.tensor_type.shape.dim]
        return None
