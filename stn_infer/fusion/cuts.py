"""Where to cut the graph before a sampling grid: sets of tensors that determine the grid, and the order to try them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import onnx

from stn_infer.fusion.dataflow import GraphView, NotLinear
from stn_infer.fusion.forms import FLOATS
from stn_infer.fusion.measure import Cut
from stn_infer.fusion.proof import Prover, rejection_reason
from stn_infer.fusion.shapes import SINGLE, Axis, Observation, SymbolicShape
from stn_infer.proto.traversal import attributes_of

_MAX_PARAMETERS = 1024
_MAX_RESPONSES = 2**26  # number of parameters times number of grid values
_MAX_TRIES = 24


@dataclass(frozen=True)
class Candidate:
    """Tensors that determine a grid; linearity is not yet proven.

    Attributes:
        tensors: their names.
        nodes: indices of the nodes between them and the grid, ascending.
        size: values per unit, at the finest units that the shapes allow.
        foldable: whether the cut is the output of one linear layer, so that the map can be folded into that layer.
        reshapes: how many of the tensors are not [N, q].
        layers_crossed: how many linear layers lie between the tensors and the grid.
    """

    tensors: tuple[str, ...]
    nodes: tuple[int, ...]
    size: int
    foldable: bool
    reshapes: int
    layers_crossed: int

    @property
    def preference(self) -> tuple[bool, int]:
        """Tie-breaker between cuts of equal size: first whether the map can be folded, then fewer reshapes."""
        return self.foldable, -self.reshapes


class Cutter:
    """Finds the cuts of one grid.

    Args:
        view: the graph.
        observed: shapes and types.
        prover: reports which nodes cannot be part of a proof.
        grid: the grid's tensor; its shape is known.
        region: indices of the nodes through which the grid can be traced back, ascending.
    """

    def __init__(self, view: GraphView, observed: Observation, prover: Prover, grid: str, region: list[int]) -> None:
        self._view, self._observed, self._prover = view, observed, prover
        self._grid, self._region = grid, region
        self._shape = observed.shapes[grid]
        self._values = prod(axis.factor for axis in self._shape[1:])

    def candidates(self) -> tuple[list[Candidate], NotLinear]:
        """Returns the candidates worth trying, best first, and the reason that the search ended."""
        found: dict[tuple[object, ...], Candidate] = {}
        for through_layers in (True, False):
            self._sweep(found, through_layers)
        if self._prover.products:
            # Products of single values are left to the file, unless only their factors are few.
            self._sweep(found, False, only_fields=True)
        return preferred(list(found.values()))[:_MAX_TRIES], self._obstacle()

    def cuts(self, candidate: Candidate) -> Iterator[Cut]:
        """Yields the candidate's cuts that its shapes allow: the grid's rows as units, then whole samples as units."""
        rows, shapes = self._shape[0], tuple(self._observed.shapes[name] for name in candidate.tensors)
        units = [rows] if rows == SINGLE or not rows.batch else [rows, Axis(1, batch=True)]
        # With a fixed batch, a tensor with one row per sample must give exactly one grid row per sample.
        if not rows.batch and rows != SINGLE and all(shape[:1] != (rows,) for shape in shapes):
            units.append(SINGLE)
        seen = set()
        for unit in units:
            shared = self._shared(shapes, unit)
            if shared is None or unit in seen:
                continue
            seen.add(unit)
            count = rows.factor // unit.factor
            if count > 1 and self._observed.batches > 1 and shared.count(False) > 1:
                continue  # inputs with separate batch sizes: the number of images does not show what is broadcast
            cut = Cut(
                candidate.tensors, shapes, shared, candidate.nodes, unit, count, self._widest(candidate) // unit.factor
            )
            if self._is_worthwhile(cut.size, count):
                yield cut

    def precision(self, cut: Cut) -> str:
        """Returns the narrowest float type between a cut and the grid."""
        names = {*cut.tensors, self._grid, *(name for index in cut.nodes for name in self._view.nodes[index].output)}
        kinds = {self._observed.dtypes.get(name) for name in names}
        order = {"bfloat16": "bfloat16", "float16": "float16", "float": "float32", "double": "float64"}
        return next((precision for kind, precision in order.items() if kind in kinds), "float32")

    def _is_worthwhile(self, size: int, rows: int) -> bool:
        values = self._values * rows
        return size < values and size <= _MAX_PARAMETERS and size * values <= _MAX_RESPONSES

    def _widest(self, candidate: Candidate) -> int:
        """Returns the most elements held at once between the cut and the grid, for a batch of one."""
        nodes = [self._view.nodes[index] for index in candidate.nodes]
        last = {name: position for position, node in enumerate(nodes) for name in node.input}
        held = {name: self._elements(name) for name in candidate.tensors}
        total = most = sum(held.values())
        for position, node in enumerate(nodes):
            constants = sum(self._elements(name) for name in node.input if self._is_repeated(name))
            for name in node.output:
                held[name] = self._elements(name)
                total += held[name]
            most = max(most, total + constants)
            for name in {*node.input, *node.output}:
                if last.get(name, position) <= position:
                    total -= held.pop(name, 0)
        return most

    def _is_repeated(self, name: str) -> bool:
        """Whether a tensor is a constant whose size grows with the batch."""
        return name not in self._view.varying and any(axis.batch for axis in self._observed.shapes.get(name, ()))

    def _elements(self, name: str) -> int:
        return prod(axis.factor for axis in self._observed.shapes.get(name, ()))

    def _shared(self, shapes: tuple[SymbolicShape, ...], unit: Axis) -> tuple[bool, ...] | None:
        """For each tensor, whether all units share it. None if the shapes don't fit these units."""
        if unit == SINGLE:
            return tuple(False for _ in shapes)
        found = []
        for shape in shapes:
            by_unit = bool(shape) and shape[0] == unit
            if unit == Axis(1, batch=True):
                by_unit = bool(shape) and shape[0].batch
            if not by_unit and any(axis.batch for axis in shape):
                return None
            found.append(not by_unit)
        return tuple(found)

    def _sweep(
        self, found: dict[tuple[object, ...], Candidate], through_layers: bool, only_fields: bool = False
    ) -> None:
        """Moves a cut backwards through the grid's region, one node at a time, last node first.

        Args:
            found: the candidates so far, to be added to.
            through_layers: whether to go past linear layers.
            only_fields: whether to go past products only where they are computed for each pixel.
        """
        points = prod(axis.factor for axis in self._shape[1:-1])
        frontier = {self._grid: None}
        passed: list[int] = []
        crossed = 0
        for index in reversed(self._region):
            node = self._view.nodes[index]
            if not any(name in frontier for name in node.output):
                continue
            is_layer = self._is_layer(index)
            if self._prover.rejection(index) is not None or (is_layer and not through_layers):
                continue
            if only_fields and self._elements(node.output[0]) < points and len(self._view.varying_inputs(node)) > 1:
                continue
            for name in node.output:
                frontier.pop(name, None)
            for name in self._view.varying_inputs(node):
                frontier[name] = None
            passed.append(index)
            crossed += is_layer
            if len(frontier) <= _MAX_PARAMETERS:
                self._note(found, tuple(sorted(frontier)), passed, crossed)

    def _note(
        self, found: dict[tuple[object, ...], Candidate], tensors: tuple[str, ...], passed: list[int], crossed: int
    ) -> None:
        shapes = []
        for name in tensors:
            shape = self._observed.shapes.get(name)
            usable = shape is not None and self._observed.dtypes.get(name) in FLOATS
            if shape is None or not usable or any(axis.varied is not None for axis in shape):
                return
            shapes.append(shape)
        size = self._least_size(tuple(shapes))
        if size is None:
            return
        foldable = len(tensors) == 1 and self._view.maker(tensors[0]) == "Gemm"
        reshapes = sum(len(shape) != 2 for shape in shapes)
        # Among equivalent cuts, the one nearest the grid is the easiest to prove.
        key = (size, foldable, reshapes, crossed)
        if key not in found:
            found[key] = Candidate(tensors, tuple(sorted(passed)), size, foldable, reshapes, crossed)

    def _least_size(self, shapes: tuple[SymbolicShape, ...]) -> int | None:
        """Values per unit, at the finest units that the shapes allow. None if fusion is not worthwhile at any unit."""
        rows = self._shape[0]
        for unit in (rows, Axis(1, batch=True) if rows.batch else SINGLE):
            shared = self._shared(shapes, unit)
            if shared is not None:
                size = sum(
                    prod(axis.factor for axis in shape) // (1 if one else unit.factor)
                    for shape, one in zip(shapes, shared, strict=True)
                )
                if self._is_worthwhile(size, rows.factor // unit.factor):
                    return size
        return None

    def _is_layer(self, index: int) -> bool:
        """Whether a node is a linear layer: it multiplies a matrix of samples by a constant matrix."""
        node = self._view.nodes[index]
        if node.op_type not in ("Gemm", "MatMul"):
            return False
        shape = self._observed.shapes.get(node.input[0], ())
        return len(shape) == 2 and shape[0] == self._shape[0] and node.input[1] in self._view.initializers

    def _obstacle(self) -> NotLinear:
        """Why no cut is small: the operator that ends the proof, or the layer that computes a dense field.

        Operators beyond a tensor that is small enough for parameters are no obstacle, and the layers of a network are
        not traced further: what ends the proof there is a consequence.
        """
        open_, seen = [self._grid], {self._grid}
        rejected: list[NotLinear] = []
        ended: list[NotLinear] = []
        fields: list[str] = []
        inside = set(self._region)
        for name in open_:
            index = self._view.producer.get(name)
            node = self._view.node_of(name)
            if name != self._grid and self._is_small(name):
                continue
            if index is None or node is None:
                fields.append(name)
            elif index not in inside:
                ended.append(NotLinear(name, self._view.maker(name), rejection_reason(node.op_type)))
            elif (reason := self._prover.rejection(index)) is not None:
                rejected.append(reason)
            elif self._is_network_layer(node):
                fields.append(name)
            else:
                following = [need for need in self._view.varying_inputs(node) if need not in seen]
                seen.update(following)
                open_.extend(following)
        return next(iter((*rejected, *ended)), None) or self._dense_field(fields)

    def _is_small(self, name: str) -> bool:
        """Whether a tensor of the graph has few enough values per sample to be a transformation's parameters."""
        return name in self._observed.shapes and self._elements(name) <= min(_MAX_PARAMETERS, self._values // 4)

    def _is_network_layer(self, node: onnx.NodeProto) -> bool:
        """Whether a convolution mixes channels, as a network's layers do."""
        if node.op_type not in ("Conv", "ConvTranspose"):
            return False
        grown = self._elements(node.output[0]) > 4 * self._elements(node.input[0])
        return not grown and attributes_of(node).get("group", 1) == 1

    def _dense_field(self, fields: list[str]) -> NotLinear:
        """The reason where everything is linear but no cut is small."""
        widest = max(fields, key=self._elements, default=self._grid)
        count = self._elements(widest)
        reason = f"it has {count} values per sample: a dense field, not a transformation's parameters"
        if count <= self._values // 2:
            reason = f"it has {count} values per sample, more than the {_MAX_PARAMETERS} that one basis supports"
        return NotLinear(widest, self._view.maker(widest) if fields else "", reason)


def preferred(candidates: list[Candidate]) -> list[Candidate]:
    """Returns the candidates, best first.

    The candidate with the fewest values per sample comes first. Ties go to the output of a linear layer (the map can be
    folded into the layer), then to tensors [N, q] (no reshape needed), then to the candidate nearest the grid. The
    output of a linear layer also precedes the layer's input unless the layer expands fourfold or more, so that theta
    remains what the network predicts.
    """
    rest = list(candidates)
    order: list[Candidate] = []
    while rest and len(order) < _MAX_TRIES:
        best = rest[0]
        for other in rest[1:]:
            fewer = other.size < best.size
            if other.layers_crossed > best.layers_crossed and not other.foldable:
                fewer = 4 * other.size < best.size
            tied = other.size == best.size
            # Of two consecutive linear layers, the map is folded into the first and the second is removed.
            tidier = other.preference > best.preference or (other.foldable and best.foldable)
            if fewer or (tied and tidier):
                best = other
        order.append(best)
        rest.remove(best)
    return order
