"""Put ``stn`` nodes where samplers stood; the map to theta is folded into a linear layer where one stands before."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from stn_infer.fusion.dataflow import GraphView
from stn_infer.fusion.measure import Cut, ThetaMap
from stn_infer.fusion.op import DOMAIN, PROJECTIVE, SPATIAL, node_attributes
from stn_infer.fusion.shapes import ALONE, Observation
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import attributes_of, bodies, names_read, opset_of
from stn_infer.samplers import spell_mode

_PIECE = 4096

Constants = NDArray[np.float32] | NDArray[np.int64]


class Rewriter:
    """Edits one graph of a model in place; :meth:`finish` puts the new nodes in."""

    def __init__(self, view: GraphView, observed: Observation, names: Names) -> None:
        self._view, self._observed, self._names = view, observed, names
        self._graph = view.scope.graph
        self._opset = opset_of(view.scope.model)
        self._thetas: dict[tuple[object, ...], str] = {}
        self._bases: dict[bytes, str] = {}
        self._new: dict[str, list[onnx.NodeProto]] = {}  # sampler's output -> nodes that take its place

    def replace(self, sampler: onnx.NodeProto, cut: Cut, factored: ThetaMap) -> None:
        """Replace one GridSample by the op on ``theta`` and ``basis``."""
        prefix = self._names.prefix()
        before: list[onnx.NodeProto] = []
        theta = self._theta(prefix, sampler.input[0], cut, factored, before)
        attributes = attributes_of(sampler)
        node = helper.make_node(
            PROJECTIVE if factored.kind == "projective" else SPATIAL,
            [sampler.input[0], theta, self._basis(prefix, factored)],
            list(sampler.output),
            name=sampler.name or self._names.fresh(prefix),
            domain=DOMAIN,
        )
        values = node_attributes(
            factored.kind,
            factored.output_size,
            spell_mode(attributes.get("mode", "linear"), self._opset),
            attributes.get("padding_mode", "zeros"),
            bool(attributes.get("align_corners", 0)),
        )
        node.attribute.extend(helper.make_attribute(key, value) for key, value in sorted(values.items()))
        self._new[sampler.output[0]] = [*before, node]

    def finish(self) -> None:
        """Put the new nodes where the samplers are."""
        graph = self._graph
        for index in reversed(range(len(graph.node))):
            outputs = graph.node[index].output
            if outputs and outputs[0] in self._new:
                new = self._new[outputs[0]]
                graph.node[index].CopyFrom(new[-1])
                for node in reversed(new[:-1]):
                    graph.node.insert(index, node)

    def _constant(self, name: str, values: Constants) -> str:
        name = self._names.fresh(name)
        self._graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _basis(self, prefix: str, factored: ThetaMap) -> str:
        values = np.ascontiguousarray(factored.basis, np.float32)
        key = values.shape[0].to_bytes(8) + sha256(values.data).digest()
        if key not in self._bases:
            self._bases[key] = self._constant(f"{prefix}_basis", values)
        return self._bases[key]

    def _theta(self, prefix: str, image: str, cut: Cut, factored: ThetaMap, before: list[onnx.NodeProto]) -> str:
        """The name of theta [N, D, K]; the nodes that compute it are added to ``before``."""
        alone = all(cut.shared)
        # an input may have a batch of its own, to be repeated for the images
        repeated = self._observed.batches > 1 or (alone and cut.units != ALONE)
        key = (
            cut.tensors,
            factored.matrix.tobytes(),
            factored.offset.tobytes(),
            len(factored.basis),
            image if repeated else "",
        )
        if key in self._thetas:
            return self._thetas[key]
        values = self._fold(prefix, cut, factored, before)
        if values is None:
            values = self._apply(prefix, image, cut, factored, before)
        # a unit's rows lie side by side in the values
        leading = 0 if cut.rows == 1 else -1
        shape = np.array([leading, factored.dimensions, len(factored.basis)], np.int64)
        theta = self._node(
            before, "Reshape", [values, self._constant(f"{prefix}_theta_shape", shape)], f"{prefix}_theta"
        )
        if repeated:
            theta = self._repeat(prefix, theta, image, 3, before)
        self._thetas[key] = theta
        return theta

    def _node(self, before: list[onnx.NodeProto], op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        output = self._names.fresh(output)
        before.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def _repeat(self, prefix: str, values: str, like: str, rank: int, before: list[onnx.NodeProto]) -> str:
        """``values`` [1 or N, ...] repeated as often as ``like`` [N, ...] has samples."""
        size = self._node(before, "Shape", [like], f"{prefix}_batch", start=0, end=1)
        ones = self._constant(f"{prefix}_ones", np.ones(rank - 1, np.int64))
        shape = self._node(before, "Concat", [size, ones], f"{prefix}_repeats", axis=0)
        return self._node(before, "Expand", [values, shape], f"{prefix}_repeated")

    def _fold(self, prefix: str, cut: Cut, factored: ThetaMap, before: list[onnx.NodeProto]) -> str | None:
        """A Gemm that gives theta straight from the layer's input: weights M·W, bias M·b + m."""
        index = self._view.producer.get(cut.tensors[0])
        if len(cut.tensors) > 1 or index is None or self._view.nodes[index].op_type != "Gemm":
            return None
        layer = self._view.nodes[index]
        attributes = attributes_of(layer)
        parts = [self._view.initializers.get(name) for name in layer.input[1:] if name]
        if attributes.get("transA", 0) or cut.sizes[0] != cut.shapes[0][-1].factor:
            return None
        arrays = [
            numpy_helper.to_array(part)
            for part in parts
            if part is not None and part.data_location != TensorProto.EXTERNAL
        ]
        if len(arrays) != len(parts):
            return None
        weight = arrays[0] if attributes.get("transB", 0) else arrays[0].T  # [Q, features]
        bias = np.zeros(1) if len(arrays) < 2 else arrays[1].astype(np.float64) * attributes.get("beta", 1.0)
        if bias.size not in (1, len(weight)):
            return None
        bias = np.broadcast_to(bias.ravel(), len(weight))
        features = self._single(prefix, layer.input[0], self._observed.dtypes.get(cut.tensors[0]), before)
        folded = _product(factored.matrix * attributes.get("alpha", 1.0), weight)
        return self._gemm(prefix, features, folded, factored.matrix @ bias + factored.offset, before)

    def _single(self, prefix: str, tensor: str, dtype: str | None, before: list[onnx.NodeProto]) -> str:
        """``tensor`` in float32."""
        if dtype == "float":
            return tensor
        return self._node(before, "Cast", [tensor], f"{prefix}_single", to=TensorProto.FLOAT)

    def _apply(self, prefix: str, image: str, cut: Cut, factored: ThetaMap, before: list[onnx.NodeProto]) -> str:
        """theta = M · p + m on the cut's values; nothing but a reshape where M is the identity and m is zero."""
        flat = []
        for number, (tensor, shape, size) in enumerate(zip(cut.tensors, cut.shapes, cut.sizes, strict=True)):
            name = self._single(prefix, tensor, self._observed.dtypes.get(tensor), before)
            one = cut.shared[number] or cut.units == ALONE
            whole = len(shape) == 2 and shape[1].factor == size and not (one and shape[0].factor != 1)
            if not whole:
                leading = 1 if one else 0 if shape[0] == cut.units else -1
                sizes = self._constant(f"{prefix}_size_{number}", np.array([leading, size], np.int64))
                name = self._node(before, "Reshape", [name, sizes], f"{prefix}_parameters_{number}")
            flat.append(name)
        if len(flat) > 1 and self._observed.batches > 1 and cut.rows == 1 and not all(cut.shared):
            # inputs with batches of their own: one of them may be 1 and broadcast
            flat = [self._repeat(prefix, name, image, 2, before) for name in flat]
        elif any(cut.shared) and not all(cut.shared):
            sample = flat[cut.shared.index(False)]
            flat = [
                self._repeat(prefix, name, sample, 2, before) if shared else name
                for name, shared in zip(flat, cut.shared, strict=True)
            ]
        values = flat[0]
        if len(flat) > 1:
            values = self._node(before, "Concat", flat, f"{prefix}_parameters", axis=1)
        square = factored.matrix.shape[0] == factored.matrix.shape[1]
        if square and np.array_equal(factored.matrix, np.eye(cut.size)) and not factored.offset.any():
            return values
        return self._gemm(prefix, values, factored.matrix, factored.offset, before)

    def _gemm(
        self,
        prefix: str,
        values: str,
        matrix: NDArray[Any],
        offset: NDArray[np.float64],
        before: list[onnx.NodeProto],
    ) -> str:
        inputs = [
            values,
            self._constant(f"{prefix}_weight", np.asarray(matrix, np.float32)),
            self._constant(f"{prefix}_bias", offset.astype(np.float32)),
        ]
        name = self._names.fresh(f"{prefix}_gemm")
        return self._node(before, "Gemm", inputs, f"{prefix}_theta_values", name=name, transB=1)


def _product(matrix: NDArray[np.float64], weight: NDArray[Any]) -> NDArray[np.float32]:
    """``matrix @ weight`` in float64, rounded at the end; in pieces, since a layer may have many features."""
    product = np.empty((len(matrix), weight.shape[1]), np.float32)
    for start in range(0, weight.shape[1], _PIECE):
        product[:, start : start + _PIECE] = matrix @ weight[:, start : start + _PIECE].astype(np.float64)
    return product


def drop_unused(graph: onnx.GraphProto) -> None:
    """Remove, in place, the nodes and constants that nothing uses, in bodies too; bodies keep their interface."""
    needed = {value.name for value in (*graph.output, *graph.input)}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.output and needed.isdisjoint(node.output):
            del graph.node[index]
            continue
        for _, body in bodies(node):
            drop_unused(body)
        needed.update(names_read(node))
    made = {name for node in graph.node for name in node.output}
    for field, names in ((graph.initializer, needed), (graph.value_info, made)):
        for index in reversed(range(len(field))):
            if field[index].name not in names:
                del field[index]
