"""Put ``stn`` nodes where samplers stood; the map to theta is folded into a linear layer where one stands before."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from stn_infer.graph.measure import Cut, Factored
from stn_infer.graph.op import DOMAIN, PROJECTIVE, SPATIAL, node_attributes, opset_of, spell_mode
from stn_infer.graph.region import GraphView, attributes_of


class Rewriter:
    """Edits one model in place; :meth:`finish` drops what is no longer used and gives it back."""

    def __init__(self, model: onnx.ModelProto, view: GraphView) -> None:
        self._model, self._view = model, view
        self._names = {name for node in view.nodes for name in (*node.input, *node.output)} | set(view.initialisers)
        self._thetas: dict[tuple[object, ...], str] = {}
        self._bases: dict[bytes, str] = {}
        self._new: dict[int, list[onnx.NodeProto]] = {}  # sampler's index -> nodes that take its place
        self._index = {node.output[0]: index for index, node in enumerate(view.nodes)}
        self._count = 0

    def replace(self, sampler: onnx.NodeProto, cut: Cut, factored: Factored) -> None:
        """Replace one GridSample by the op on ``theta`` and ``basis``."""
        prefix = f"stn_{self._count}"
        self._count += 1
        before: list[onnx.NodeProto] = []
        theta = self._theta(prefix, cut, factored, before)
        attributes = attributes_of(sampler)
        mode = spell_mode(attributes.get("mode", "linear"), 16)
        node = helper.make_node(
            PROJECTIVE if factored.kind == "projective" else SPATIAL,
            [sampler.input[0], theta, self._basis(prefix, factored)],
            list(sampler.output),
            name=sampler.name or self._fresh(prefix),
            domain=DOMAIN,
        )
        values = node_attributes(
            factored.kind,
            factored.output_size,
            spell_mode(mode, opset_of(self._model)),
            attributes.get("padding_mode", "zeros"),
            bool(attributes.get("align_corners", 0)),
        )
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(values.items()))
        self._new[self._index[sampler.output[0]]] = [*before, node]

    def finish(self) -> onnx.ModelProto:
        """The model with the new nodes in, and without nodes and constants that nothing uses."""
        kept: list[onnx.NodeProto] = []
        for index, node in enumerate(self._view.nodes):
            kept.extend(self._new.get(index, [node]))
        graph = self._model.graph
        needed = {value.name for value in (*graph.output, *graph.input)}
        alive = []
        for node in reversed(kept):
            if needed.intersection(node.output) or not node.output:
                alive.append(node)
                needed.update(_inputs(node))
        nodes = list(reversed(alive))
        made = {name for node in nodes for name in node.output}
        _keep(graph.node, nodes)
        _keep(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
        _keep(graph.value_info, [info for info in graph.value_info if info.name in made])
        return self._model

    def _fresh(self, name: str) -> str:
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def _constant(self, name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> str:
        name = self._fresh(name)
        self._model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _basis(self, prefix: str, factored: Factored) -> str:
        values = np.ascontiguousarray(factored.basis, np.float32)
        key = values.shape[0].to_bytes(8) + values.tobytes()
        if key not in self._bases:
            self._bases[key] = self._constant(f"{prefix}_basis", values)
        return self._bases[key]

    def _theta(self, prefix: str, cut: Cut, factored: Factored, before: list[onnx.NodeProto]) -> str:
        """The name of theta [N, D, K]; the nodes that compute it are added to ``before``."""
        key = (cut.tensors, factored.matrix.tobytes(), factored.offset.tobytes(), len(factored.basis))
        if key in self._thetas:
            return self._thetas[key]
        shape = np.array([0, factored.rows, len(factored.basis)], np.int64)
        values = self._fold(prefix, cut, factored, before)
        if values is None:
            values = self._apply(prefix, cut, factored, before)
        theta = self._fresh(f"{prefix}_theta")
        before.append(helper.make_node("Reshape", [values, self._constant(f"{prefix}_theta_shape", shape)], [theta]))
        self._thetas[key] = theta
        return theta

    def _fold(self, prefix: str, cut: Cut, factored: Factored, before: list[onnx.NodeProto]) -> str | None:
        """A Gemm that gives theta straight from the layer's input: weights M·W, bias M·b + m."""
        index = self._view.producer.get(cut.tensors[0])
        if len(cut.tensors) > 1 or index is None or self._view.nodes[index].op_type != "Gemm":
            return None
        layer = self._view.nodes[index]
        attributes = attributes_of(layer)
        parts = [self._view.initialisers.get(name) for name in layer.input[1:] if name]
        if attributes.get("transA", 0) or any(part is None for part in parts):
            return None
        arrays = [numpy_helper.to_array(part) for part in parts if part is not None]
        if any(array.dtype != np.float32 for array in arrays):
            return None
        weight = arrays[0].astype(np.float64) * attributes.get("alpha", 1.0)
        weight = weight if attributes.get("transB", 0) else weight.T  # [Q, features]
        bias = np.zeros(1) if len(arrays) < 2 else arrays[1].astype(np.float64) * attributes.get("beta", 1.0)
        if bias.size not in (1, len(weight)):
            return None
        bias = np.broadcast_to(bias.ravel(), len(weight))
        return self._gemm(
            prefix, layer.input[0], factored.matrix @ weight, factored.matrix @ bias + factored.offset, before
        )

    def _apply(self, prefix: str, cut: Cut, factored: Factored, before: list[onnx.NodeProto]) -> str:
        """theta = M · p + m on the cut's values; nothing but a reshape where M is the identity and m is zero."""
        flat = []
        for number, (tensor, shape, size) in enumerate(zip(cut.tensors, cut.shapes, cut.sizes, strict=True)):
            if len(shape) == 2:
                flat.append(tensor)
                continue
            name = self._fresh(f"{prefix}_parameters_{number}")
            size_name = self._constant(f"{prefix}_size_{number}", np.array([0, size], np.int64))
            before.append(helper.make_node("Reshape", [tensor, size_name], [name]))
            flat.append(name)
        values = flat[0]
        if len(flat) > 1:
            values = self._fresh(f"{prefix}_parameters")
            before.append(helper.make_node("Concat", flat, [values], axis=1))
        square = factored.matrix.shape[0] == factored.matrix.shape[1]
        if square and np.array_equal(factored.matrix, np.eye(cut.size)) and not factored.offset.any():
            return values
        return self._gemm(prefix, values, factored.matrix, factored.offset, before)

    def _gemm(
        self,
        prefix: str,
        values: str,
        matrix: NDArray[np.float64],
        offset: NDArray[np.float64],
        before: list[onnx.NodeProto],
    ) -> str:
        inputs = [
            values,
            self._constant(f"{prefix}_weight", matrix.astype(np.float32)),
            self._constant(f"{prefix}_bias", offset.astype(np.float32)),
        ]
        output = self._fresh(f"{prefix}_theta_values")
        before.append(helper.make_node("Gemm", inputs, [output], name=self._fresh(f"{prefix}_gemm"), transB=1))
        return output


def _inputs(node: onnx.NodeProto) -> set[str]:
    """What a node reads, its subgraphs included."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names.update(value.name for value in graph.output)
            for inner in graph.node:
                names |= _inputs(inner)
    return names


def _keep(field: Any, items: list[Any]) -> None:
    """Make ``items`` a repeated field's content; copied, since emptying the field invalidates its own."""
    copies = [copy.deepcopy(item) for item in items]
    del field[:]
    field.extend(copies)
