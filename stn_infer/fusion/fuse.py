"""The pass: every GridSample whose grid is provably ``theta · basis`` becomes one ``stn`` node.

Its steps, each in a module of its own:

1. ``functions``: put the model's own functions in place of their calls, where a sampler or its grid is in one.
2. ``scopes``: lay each graph that holds a sampler flat, with all that it can see.
3. ``dataflow``, ``shapes``: which tensors vary with the inputs' data, and how shapes follow from the open sizes.
4. ``cuts``: walk back from the grid while operators may be linear; the tensors passed on the way are where to cut.
5. ``proof`` (``forms``, ``rules_*``): prove the grid affine, or a quotient of affine forms, in a cut's tensors.
6. ``measure`` (``evaluate``, ``operators``, ``span``): measure the map in float64 and factor it into theta and basis.
7. ``rewrite``, ``op``: put the ``stn`` node in, and the op's function into the file.

Whatever fails leaves the graph as it was, with a finding that names the tensor and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import onnx

from stn_infer.errors import ModelError
from stn_infer.fusion.basis import Kind
from stn_infer.fusion.cuts import Cutter
from stn_infer.fusion.dataflow import OTHER_CONSTANT_OPS, SHAPE_OPS, GraphView, NotLinear
from stn_infer.fusion.evaluate import Evaluator
from stn_infer.fusion.forms import FLOATS, Degree
from stn_infer.fusion.functions import sampling_functions, with_functions_inlined
from stn_infer.fusion.measure import Cut, ThetaMap, factor
from stn_infer.fusion.op import attach_functions
from stn_infer.fusion.operators import OPERATORS
from stn_infer.fusion.proof import LINEAR_OPS, Prover
from stn_infer.fusion.rewrite import Rewriter
from stn_infer.fusion.scopes import Scope, scopes
from stn_infer.fusion.shapes import Observation, observe
from stn_infer.proto.edit import copy_of, drop_unused
from stn_infer.proto.inputs import Shapes
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import STANDARD_DOMAINS, is_standard, nested_nodes, opset_of


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
        precision: the narrowest type in which the file computed the grid: float16, bfloat16, float32 or float64. The
            op computes it in float32, so that it is not the file's own within half precision's rounding, but better.
        scope: the body of an If, Loop or Scan, or the function, that the node is in; empty for the main graph.
    """

    node: str
    grid: str
    fused: bool
    message: str
    kind: Kind | None = None
    parameters: int = 0
    basis_rows: int = 0
    cut: tuple[str, ...] = ()
    precision: str = "float32"
    scope: str = ""


def fuse(model: onnx.ModelProto, shapes: Sequence[Shapes] = ()) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    """Rewrite what can be proven; the given model is not changed.

    Args:
        model: a valid model of opset 16 or later. Samplers are found in the bodies of If, Loop and Scan too, and in the
            model's own functions.
        shapes: sizes for inputs that have open ones besides the batch, by name and without the batch; two choices, so
            that what follows an open size is seen to. Without them plausible ones are tried.

    Returns:
        The rewritten copy (with the functions of the ops it uses; just a copy where nothing was fused) and one finding
        a GridSample, in graph order. Inputs, outputs and the opset stay.

    Raises:
        ModelError: onnxruntime can't run the model, or a function of it has the name of a standard operator.
    """
    _refuse_own_operators(model)
    copy = with_functions_inlined(model)
    names, prefixes = Names(copy.graph), (f"stn_{number}" for number in count())
    findings: list[Finding] = []
    rewriters = []
    for scope in scopes(copy):
        planner = _Planner(scope, shapes)
        rewriters.append(Rewriter(planner.view, planner.observed, names, prefixes))
        findings += (planner.decide(node, rewriters[-1]) for node in scope.samplers)
    findings += _in_functions(copy)
    if not any(finding.fused for finding in findings):
        return copy_of(model), tuple(findings)
    for rewriter in rewriters:
        rewriter.finish()
    drop_unused(copy.graph)
    attach_functions(copy)
    return copy, tuple(findings)


def _refuse_own_operators(model: onnx.ModelProto) -> None:
    """ONNX lets a file's function stand for an operator of the same name; onnxruntime takes its own all the same."""
    for function in model.functions:
        if function.domain in STANDARD_DOMAINS or (function.domain, function.name) in OTHER_CONSTANT_OPS:
            raise ModelError(f"the file has a function of the name of the standard operator {function.name!r}")


def _in_functions(model: onnx.ModelProto) -> Iterator[Finding]:
    """Samplers that could not be brought into a graph."""
    reason = "it is in a function that could not be put in place of its calls"
    for function in sampling_functions(model):
        for node in nested_nodes(function.node):
            if is_standard(node, "GridSample"):
                yield _left(node, NotLinear(node.input[1], "", reason), f"function {function.name!r}")


def _left(node: onnx.NodeProto, why: NotLinear, scope: str) -> Finding:
    maker = f" ({why.op_type})" if why.op_type else ""
    message = f"left as it was: grid {node.input[1]!r} is not provably linear: {why.tensor!r}{maker}: {why.reason}"
    return Finding(node.name or node.output[0], node.input[1], False, message, scope=scope)


def _fused(node: onnx.NodeProto, cut: Cut, found: ThetaMap, precision: str, scope: str) -> Finding:
    rows = len(found.basis)
    where = ", ".join(repr(name) for name in cut.tensors)
    message = f"fused: {found.kind}, K = {rows}, theta from {cut.size} values a sample at {where}"
    if precision in ("float16", "bfloat16"):
        message += f"; its coordinates were {precision} and are float32 now"
    name = node.name or node.output[0]
    return Finding(name, node.input[1], True, message, found.kind, cut.size, rows, cut.tensors, precision, scope)


class _Planner:
    """Finds, proves and measures cuts in one graph.

    Attributes:
        view: the graph.
        observed: its tensors' shapes and types.
    """

    def __init__(self, scope: Scope, shapes: Sequence[Shapes]) -> None:
        self.view = GraphView(scope)
        samplers = scope.samplers
        self._regions = {node.input[1]: self.view.region(node.input[1], LINEAR_OPS) for node in samplers}
        nodes = sorted(set().union(*self._regions.values()))
        constants, shaped = self.view.constants_behind(nodes)
        tensors = {name for index in nodes for name in (*self.view.nodes[index].input, *self.view.nodes[index].output)}
        # a sampler's own input and grid too, whose shapes say what it makes
        tensors |= {name for node in samplers for name in node.input} | constants | shaped
        tensors |= {name for pair in scope.carried for name in pair}
        tensors.discard("")
        self.observed: Observation = observe(self.view, sorted(tensors), self._needs_a_run, shapes)
        opset = opset_of(scope.model)
        self._evaluator = Evaluator(self.view, self.observed, opset)
        self._provers = {
            samplewise: Prover(self.view, self.observed, self._evaluator, samplewise) for samplewise in (True, False)
        }

    def decide(self, node: onnx.NodeProto, rewriter: Rewriter) -> Finding:
        """Have one sampler replaced once ``rewriter`` finishes, if its grid is provably linear."""
        scope = self.view.scope.label
        try:
            cut, found, precision = self._plan(node.input[0], node.input[1])
        except NotLinear as why:
            return _left(node, why, scope)
        rewriter.replace(node, cut, found)
        return _fused(node, cut, found, precision, scope)

    def _plan(self, image: str, grid: str) -> tuple[Cut, ThetaMap, str]:
        """The cut and the map for one sampler, and the precision in which the file computed its grid.

        Raises:
            NotLinear: there is none.
        """
        self._check(image, grid)
        shape = self.observed.shapes[grid]
        output_size = tuple(axis.factor for axis in shape[1:-1])
        prover = self._provers[shape[0].batch]
        cutter = Cutter(self.view, self.observed, prover, grid, self._regions[grid])
        candidates, last = cutter.candidates()
        tried: list[NotLinear] = []
        for candidate in candidates:
            try:
                forms = prover.prove(candidate.tensors, candidate.nodes, grid)
            except NotLinear as why:
                tried.append(why)
                continue
            quotients = frozenset(name for name, form in forms.items() if form.degree >= Degree.RECIPROCAL)
            for cut in cutter.cuts(candidate):
                try:
                    return cut, factor(self._evaluator, cut, grid, output_size, quotients), cutter.precision(cut)
                except NotLinear as why:
                    tried.append(why)
        raise tried[0] if tried else last

    def _check(self, image: str, grid: str) -> None:
        """Refuse what has no op, whatever the grid is computed from."""
        scope, maker = self.view.scope, self.view.maker(grid)
        if scope.shadowed is not None:
            raise NotLinear(grid, maker, f"its graph has a second {scope.shadowed!r} beside an outer graph's")
        for before, after in scope.carried:
            if self.observed.shapes.get(before) != self.observed.shapes.get(after):
                raise NotLinear(grid, maker, f"the shape of {before!r} may change from one iteration to the next")
        if grid not in self.view.varying:
            raise NotLinear(grid, maker, "it depends on no input, so that there is no theta to compute")
        shape = self.observed.shapes.get(grid, ())
        dimensions = len(shape) - 2
        if dimensions not in (2, 3) or any(axis.batch for axis in shape[1:]) or shape[-1].factor != dimensions:
            raise NotLinear(grid, maker, "its shape is not [N, *output_size, D] with N the batch")
        if any(axis.varied is not None for axis in shape):
            raise NotLinear(grid, maker, "its size follows an input's open size, so that there is no one basis")
        kind = self.observed.dtypes.get(image, "unknown")
        if kind not in FLOATS - {"double"}:
            raise NotLinear(image, self.view.maker(image), f"the image is {kind}, for which the op has no type")

    def _needs_a_run(self, constant: str) -> bool:
        """Whether a constant's value may have to come from onnxruntime: no operator of ours computes it."""
        known = {*OPERATORS, *SHAPE_OPS, "Cast", "Constant", "ConstantOfShape"}
        return constant not in self.view.varying and self.view.maker(constant) not in known


def describe(findings: tuple[Finding, ...]) -> str:
    """The findings, a line each; one sentence where there is no sampler at all."""
    if not findings:
        return "no GridSample in the graph: nothing to fuse"
    return "\n".join(f"{finding.node}: {finding.message}" for finding in findings)
