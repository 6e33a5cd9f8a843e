"""The pass: every GridSample whose grid is provably ``theta · basis`` becomes one ``stn`` node.

For each sampler, walk back from its grid while the operators may be linear, and note the cuts on the way; prove;
choose; measure; rewrite. Whatever fails leaves the graph as it was, with a finding that names the tensor and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

from stn_infer.graph.evaluate import Evaluator
from stn_infer.graph.measure import Cut, Factored, factor
from stn_infer.graph.observe import Observation, Template, observe
from stn_infer.graph.op import Kind, attach_functions, opset_of
from stn_infer.graph.proof import LINEAR_OPS, Degree, Prover
from stn_infer.graph.region import GraphView, Obstacle
from stn_infer.graph.rewrite import Rewriter

_MOST_PARAMETERS = 1024
_MOST_BYTES = 2**29


@dataclass(frozen=True)
class Finding:
    """What the pass made of one GridSample.

    Attributes:
        node: the GridSample's name, or its output's where it has none.
        grid: the grid's tensor.
        fused: whether a spatial-transformer node stands there now.
        message: one sentence: what was found, or which tensor and operator ended the proof.
        kind: affine, basis, projective; None where not fused.
        parameters: Q, values a sample at the cut; 0 where not fused.
        basis_rows: K; 0 where not fused.
        cut: the tensors that theta is computed from.
    """

    node: str
    grid: str
    fused: bool
    message: str
    kind: Kind | None = None
    parameters: int = 0
    basis_rows: int = 0
    cut: tuple[str, ...] = ()


def fuse(
    model: onnx.ModelProto, shapes: Sequence[Mapping[str, tuple[int, ...]]] = ()
) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    """Rewrite what can be proven; the given model is not changed.

    Args:
        model: a valid model with a dynamic batch, opset 16 or later.
        shapes: of inputs with open sizes besides the batch, by name and without the batch; two of them or more, so
            that what follows an open size is seen to. None: plausible ones.

    Returns:
        The rewritten copy (with the functions of the ops it uses) and one finding a GridSample, in graph order.

    Raises:
        ModelError: onnxruntime can't run the model.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    samplers = [node for node in copy.graph.node if node.op_type == "GridSample" and node.domain in ("", "ai.onnx")]
    if not samplers:
        return copy, ()
    planner = _Planner(copy, samplers, shapes)
    rewriter = Rewriter(copy, planner.view)
    findings = []
    for node in samplers:
        try:
            cut, factored = planner.plan(node)
        except Obstacle as obstacle:
            findings.append(_left(node, obstacle))
            continue
        rewriter.replace(node, cut, factored)
        findings.append(_fused(node, cut, factored))
    rewritten = rewriter.finish()
    attach_functions(rewritten)
    return rewritten, tuple(findings)


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _left(node: onnx.NodeProto, obstacle: Obstacle) -> Finding:
    maker = f" ({obstacle.op_type})" if obstacle.op_type else ""
    message = (
        f"left as it was: grid {node.input[1]!r} is not provably linear: {obstacle.tensor!r}{maker}: {obstacle.reason}"
    )
    return Finding(_name(node), node.input[1], False, message)


def _fused(node: onnx.NodeProto, cut: Cut, factored: Factored) -> Finding:
    rows = len(factored.basis)
    where = ", ".join(repr(name) for name in cut.tensors)
    message = f"fused: {factored.kind}, K = {rows}, theta from {cut.size} values a sample at {where}"
    return Finding(_name(node), node.input[1], True, message, factored.kind, cut.size, rows, cut.tensors)


@dataclass(frozen=True)
class _Candidate:
    """A cut that may be proven, whether a linear layer stands right before it, and how many were crossed on the way."""

    cut: Cut
    foldable: bool
    layers_crossed: int

    @property
    def tidiness(self) -> tuple[bool, int]:
        """What decides between cuts of one size: the map folds into the layer before; no reshapes are needed."""
        return self.foldable, -sum(len(shape) != 2 for shape in self.cut.shapes)


class _Planner:
    """Finds, proves and measures cuts in one model."""

    def __init__(
        self, model: onnx.ModelProto, samplers: list[onnx.NodeProto], shapes: Sequence[Mapping[str, tuple[int, ...]]]
    ) -> None:
        self.view = GraphView(model)
        self._regions = {node.input[1]: self.view.region(node.input[1], LINEAR_OPS) for node in samplers}
        nodes = sorted(set().union(*self._regions.values()))
        constants, shaped = self.view.constants_behind(nodes)
        tensors = {name for index in nodes for name in (*self.view.nodes[index].input, *self.view.nodes[index].output)}
        # a sampler's own input and grid too, whose shapes say what it makes
        tensors |= {name for node in samplers for name in node.input} | constants | shaped
        tensors.discard("")
        self._observed: Observation = observe(model, sorted(tensors), constants, shapes)
        self._evaluator = Evaluator(self.view, self._observed, opset_of(model))
        self._prover = Prover(self.view, self._observed.shapes, self._evaluator)

    def plan(self, node: onnx.NodeProto) -> tuple[Cut, Factored]:
        """The cut and the map for one sampler.

        Raises:
            Obstacle: there is none.
        """
        grid = node.input[1]
        if grid not in self.view.varying:
            raise Obstacle(grid, self._maker(grid), "it depends on no input, so that there is no theta to compute")
        shape = self._observed.shapes.get(grid)
        if shape is None or not shape[0].batch or any(axis.batch for axis in shape[1:]) or shape[0].factor != 1:
            raise Obstacle(grid, self._maker(grid), "its shape is not [N, *output_size, D] with N the batch")
        output_size = tuple(axis.factor for axis in shape[1:-1])
        candidates, last = self._candidates(grid)
        tried: list[Obstacle] = []
        for candidate in _preferred(candidates):
            try:
                quotients = self._prove(candidate.cut, grid)
                return candidate.cut, factor(self._evaluator, candidate.cut, grid, output_size, quotients)
            except Obstacle as obstacle:
                tried.append(obstacle)
        raise tried[0] if tried else last

    def _maker(self, tensor: str) -> str:
        index = self.view.producer.get(tensor)
        return "" if index is None else self.view.nodes[index].op_type

    def _prove(self, cut: Cut, grid: str) -> frozenset[str]:
        """The tensors between that are quotients."""
        forms = self._prover.prove(cut.tensors, cut.nodes, grid)
        return frozenset(name for name, form in forms.items() if form.degree >= Degree.RECIPROCAL)

    def _candidates(self, grid: str) -> tuple[list[_Candidate], Obstacle]:
        """Cuts small enough to be worth a try, from the grid backwards, and what ended the walk."""
        values = _values(self._observed, grid)
        found: list[_Candidate] = []
        last = Obstacle(grid, self._maker(grid), "the operator is not known to be linear")
        for tensors, nodes, crossed, obstacle in self._walk(grid):
            last = obstacle or last
            cut = self._cut(tensors, nodes)
            if cut is None or cut.size >= values or cut.size > _MOST_PARAMETERS or cut.size * values * 8 > _MOST_BYTES:
                continue
            foldable = len(tensors) == 1 and self._maker(tensors[0]) == "Gemm"
            candidate = _Candidate(cut, foldable, crossed)
            if candidate not in found[-1:]:
                found.append(candidate)
        return found, last

    def _walk(self, grid: str) -> Iterator[tuple[tuple[str, ...], list[int], int, Obstacle | None]]:
        """Sweep a cut backwards through the grid's region, one node at a time, latest node first."""
        frontier = {grid}
        passed: list[int] = []
        crossed = 0
        obstacle: Obstacle | None = None
        yield tuple(frontier), [], 0, self._end_of(grid)
        for index in reversed(self._regions[grid]):
            node = self.view.nodes[index]
            if frontier.isdisjoint(node.output):
                continue
            reason = self._prover.hopeless(index)
            if reason is not None:
                obstacle = obstacle or reason
                yield tuple(sorted(frontier)), list(passed), crossed, obstacle
                continue
            frontier.difference_update(node.output)
            frontier.update(self.view.varying_inputs(node))
            passed.insert(0, index)
            crossed += node.op_type in ("Gemm", "MatMul") and self._is_layer(node)
            ends = [self._end_of(name) for name in sorted(frontier)]
            yield tuple(sorted(frontier)), list(passed), crossed, obstacle or next(filter(None, ends), None)

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        """Whether it multiplies a matrix of samples by a constant one, as a linear layer does."""
        shape = self._observed.shapes.get(node.input[0], ())
        return len(shape) == 2 and shape[0].batch and node.input[1] in self.view.initialisers

    def _end_of(self, tensor: str) -> Obstacle | None:
        """Why a walk can't pass ``tensor``; None where it can."""
        index = self.view.producer.get(tensor)
        if index is None or self.view.nodes[index].op_type in LINEAR_OPS:
            return None
        return Obstacle(tensor, self.view.nodes[index].op_type, "the operator is not known to be linear")

    def _cut(self, tensors: tuple[str, ...], nodes: list[int]) -> Cut | None:
        shapes: list[Template] = []
        for name in tensors:
            shape = self._observed.shapes.get(name)
            if shape is None or not shape or not shape[0].batch or shape[0].factor != 1:
                return None
            if any(axis.batch for axis in shape[1:]) or self._observed.dtypes[name] != "float32":
                return None
            shapes.append(shape)
        return Cut(tensors, tuple(shapes), tuple(nodes)) if shapes else None


def _values(observed: Observation, grid: str) -> int:
    """Values a sample in the grid."""
    size = 1
    for axis in observed.shapes[grid][1:]:
        size *= axis.factor
    return size


def _preferred(candidates: list[_Candidate]) -> list[_Candidate]:
    """Candidates, best first.

    Fewest values a sample; in a tie the output of a linear layer, into which the map can be folded, then tensors [N, q]
    that need no reshape, then what is nearest the grid. The output of a linear layer also goes before that layer's
    input, unless the layer expands fourfold or more: theta then stays what the network predicts.
    """
    rest, order = list(candidates), []
    while rest:
        best = rest[0]
        for other in rest[1:]:
            fewer = other.cut.size < best.cut.size
            if other.layers_crossed > best.layers_crossed and not other.foldable:
                fewer = 4 * other.cut.size < best.cut.size
            tied = other.cut.size == best.cut.size
            # of two linear layers in a row, the map folds into the first, and the second goes
            tidier = other.tidiness > best.tidiness or (other.foldable and best.foldable)
            if fewer or (tied and tidier):
                best = other
        order.append(best)
        rest.remove(best)
    return order


def describe(findings: tuple[Finding, ...]) -> str:
    """The findings, a line each; one sentence where there is no sampler at all."""
    if not findings:
        return "no GridSample in the graph: nothing to fuse"
    return "\n".join(f"{finding.node}: {finding.message}" for finding in findings)
