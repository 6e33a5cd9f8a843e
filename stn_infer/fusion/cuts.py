"""Where a sampling grid can be cut: sets of tensors that determine it, and which of them to try first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from stn_infer.fusion.dataflow import GraphView, NotLinear
from stn_infer.fusion.forms import FLOATS
from stn_infer.fusion.measure import Cut
from stn_infer.fusion.proof import LINEAR_OPS, Prover, why_not
from stn_infer.fusion.shapes import ALONE, Axis, Observation, SymbolicShape
from stn_infer.proto.traversal import is_standard

_MOST_PARAMETERS = 1024
_MOST_RESPONSES = 2**26  # parameters times values of the grid
_MOST_TRIES = 24


@dataclass(frozen=True)
class Candidate:
    """Tensors that determine a grid, not yet proven.

    Attributes:
        tensors: their names.
        nodes: indices of the nodes between them and the grid, ascending.
        size: values a unit, at the finest units that their shapes allow.
        foldable: whether it is the output of one linear layer, into which a map can be folded.
        reshapes: how many of the tensors are not [N, q].
        layers_crossed: how many linear layers lie between.
    """

    tensors: tuple[str, ...]
    nodes: tuple[int, ...]
    size: int
    foldable: bool
    reshapes: int
    layers_crossed: int

    @property
    def tidiness(self) -> tuple[bool, int]:
        """What decides between cuts of one size: the map folds into the layer before; no reshapes are needed."""
        return self.foldable, -self.reshapes


class Cutter:
    """Finds the cuts of one grid.

    Args:
        view: the graph.
        observed: shapes and types.
        prover: says which nodes can be part of no proof.
        grid: the grid's tensor; its shape is known.
        region: indices of the nodes through which it can be followed back, ascending.
    """

    def __init__(self, view: GraphView, observed: Observation, prover: Prover, grid: str, region: list[int]) -> None:
        self._view, self._observed, self._prover = view, observed, prover
        self._grid, self._region = grid, region
        self._shape = observed.shapes[grid]
        self._values = prod(axis.factor for axis in self._shape[1:])

    def candidates(self) -> tuple[list[Candidate], NotLinear]:
        """What is worth a try, best first, and what ended the search."""
        found: dict[tuple[object, ...], Candidate] = {}
        ended, _ = (self._sweep(found, through_layers) for through_layers in (True, False))
        return preferred(list(found.values()))[:_MOST_TRIES], ended

    def cuts(self, candidate: Candidate) -> Iterator[Cut]:
        """The candidate with the grid's rows as units, and with whole samples; what its shapes allow."""
        rows, shapes = self._shape[0], tuple(self._observed.shapes[name] for name in candidate.tensors)
        units = [rows] if rows == ALONE or not rows.batch else [rows, Axis(1, batch=True)]
        # a fixed batch: what has a row a sample must make one row of the grid of each
        if not rows.batch and rows != ALONE and all(shape[:1] != (rows,) for shape in shapes):
            units.append(ALONE)
        seen = set()
        for unit in units:
            shared = self._shared(shapes, unit)
            if shared is None or unit in seen:
                continue
            seen.add(unit)
            count = rows.factor // unit.factor
            if count > 1 and self._observed.batches > 1 and shared.count(False) > 1:
                continue  # batches of their own: what is broadcast can't be told from the images' number
            cut = Cut(
                candidate.tensors, shapes, shared, candidate.nodes, unit, count, self._widest(candidate) // unit.factor
            )
            if self._pays(cut.size, count):
                yield cut

    def precision(self, cut: Cut) -> str:
        """The narrowest float type between a cut and the grid."""
        names = {*cut.tensors, self._grid, *(name for index in cut.nodes for name in self._view.nodes[index].output)}
        kinds = {self._observed.dtypes.get(name) for name in names}
        order = {"bfloat16": "bfloat16", "float16": "float16", "float": "float32", "double": "float64"}
        return next((told for kind, told in order.items() if kind in kinds), "float32")

    def _pays(self, size: int, rows: int) -> bool:
        values = self._values * rows
        return size < values and size <= _MOST_PARAMETERS and size * values <= _MOST_RESPONSES

    def _widest(self, candidate: Candidate) -> int:
        """Elements, for a batch of one, of all tensors that have to be held at once on the way to the grid."""
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
        """Whether a constant is as large as the batch."""
        return name not in self._view.varying and any(axis.batch for axis in self._observed.shapes.get(name, ()))

    def _elements(self, name: str) -> int:
        return prod(axis.factor for axis in self._observed.shapes.get(name, ()))

    def _shared(self, shapes: tuple[SymbolicShape, ...], unit: Axis) -> tuple[bool, ...] | None:
        """Which tensors are one for all units; None where the shapes don't fit such units."""
        if unit == ALONE:
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

    def _sweep(self, found: dict[tuple[object, ...], Candidate], through_layers: bool) -> NotLinear:
        """Sweep a cut backwards through the grid's region, one node at a time, latest node first."""
        frontier = {self._grid: None}
        passed: list[int] = []
        crossed = 0
        stopped: NotLinear | None = None
        ended = self._end_of(self._grid)
        for index in reversed(self._region):
            node = self._view.nodes[index]
            if not any(name in frontier for name in node.output):
                continue
            is_layer = self._is_layer(index)
            reason = self._prover.rejection(index)
            if reason is not None or (is_layer and not through_layers):
                stopped = stopped or reason
                continue
            for name in node.output:
                frontier.pop(name, None)
            for name in self._view.varying_inputs(node):
                frontier[name] = None
                ended = ended or self._end_of(name)
            passed.append(index)
            crossed += is_layer
            if len(frontier) <= _MOST_PARAMETERS:
                self._note(found, tuple(sorted(frontier)), passed, crossed)
        return stopped or ended or self._too_much(list(frontier))

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
        # of cuts that are alike, the one nearest the grid is the easiest to prove
        key = (size, foldable, reshapes, crossed)
        if key not in found:
            found[key] = Candidate(tensors, tuple(sorted(passed)), size, foldable, reshapes, crossed)

    def _least_size(self, shapes: tuple[SymbolicShape, ...]) -> int | None:
        """Values a unit, at the finest units that the shapes allow; None where it doesn't pay at any."""
        rows = self._shape[0]
        for unit in (rows, Axis(1, batch=True) if rows.batch else ALONE):
            shared = self._shared(shapes, unit)
            if shared is not None:
                size = sum(
                    prod(axis.factor for axis in shape) // (1 if one else unit.factor)
                    for shape, one in zip(shapes, shared, strict=True)
                )
                if self._pays(size, rows.factor // unit.factor):
                    return size
        return None

    def _is_layer(self, index: int) -> bool:
        """Whether a node multiplies a matrix of samples by a constant one, as a linear layer does."""
        node = self._view.nodes[index]
        if node.op_type not in ("Gemm", "MatMul"):
            return False
        shape = self._observed.shapes.get(node.input[0], ())
        return len(shape) == 2 and shape[0] == self._shape[0] and node.input[1] in self._view.initializers

    def _end_of(self, tensor: str) -> NotLinear | None:
        """Why a walk can't pass ``tensor``; None where it can."""
        node = self._view.node_of(tensor)
        if node is None or (node.op_type in LINEAR_OPS and is_standard(node)):
            return None
        return NotLinear(tensor, node.op_type, why_not(node.op_type))

    def _too_much(self, frontier: list[str]) -> NotLinear:
        """All is linear, and yet no cut is small."""
        sizes = {name: prod(axis.factor for axis in self._observed.shapes.get(name, ())) for name in frontier}
        widest = max(sizes, key=sizes.__getitem__, default=self._grid)
        reason = f"it has {sizes.get(widest, 0)} values a sample: a dense field, not a transformation's parameters"
        return NotLinear(widest, self._view.maker(widest), reason)


def preferred(candidates: list[Candidate]) -> list[Candidate]:
    """Candidates, best first.

    Fewest values a sample; in a tie the output of a linear layer, into which the map can be folded, then tensors [N, q]
    that need no reshape, then what is nearest the grid. The output of a linear layer also goes before that layer's
    input, unless the layer expands fourfold or more: theta then stays what the network predicts.
    """
    rest = list(candidates)
    order: list[Candidate] = []
    while rest and len(order) < _MOST_TRIES:
        best = rest[0]
        for other in rest[1:]:
            fewer = other.size < best.size
            if other.layers_crossed > best.layers_crossed and not other.foldable:
                fewer = 4 * other.size < best.size
            tied = other.size == best.size
            # of two linear layers in a row, the map folds into the first, and the second goes
            tidier = other.tidiness > best.tidiness or (other.foldable and best.foldable)
            if fewer or (tied and tidier):
                best = other
        order.append(best)
        rest.remove(best)
    return order
