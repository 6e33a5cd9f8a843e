"""The pass: every GridSample whose grid is provably ``theta · basis`` becomes one ``stn`` node.

For each sampler, walk back from its grid while the operators may be linear, and note the cuts on the way; prove;
choose; measure; rewrite. Whatever fails leaves the graph as it was, with a finding that names the tensor and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from stn_infer.errors import ModelError, one_line
from stn_infer.fusion.cuts import Candidate, Cutter
from stn_infer.fusion.dataflow import OTHER_CONSTANT_OPS, SHAPE_OPS, GraphView, NotLinear
from stn_infer.fusion.evaluate import Evaluator
from stn_infer.fusion.forms import FLOATS, Degree
from stn_infer.fusion.functions import sampling_functions, with_functions_inlined
from stn_infer.fusion.measure import Cut, ThetaMap, factor
from stn_infer.fusion.op import Kind, attach_functions
from stn_infer.fusion.operators import OPERATORS
from stn_infer.fusion.proof import LINEAR_OPS, Prover
from stn_infer.fusion.rewrite import Rewriter, drop_unused
from stn_infer.fusion.scopes import Scope, scopes
from stn_infer.fusion.shapes import Observation, observe
from stn_infer.proto.inputs import Shapes
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import STANDARD_DOMAINS, opset_of


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
        ModelError: onnxruntime can't run the model, or it defines an operator of ONNX's own anew.
    """
    _refuse_own_operators(model)
    copy = with_functions_inlined(model)
    names = Names(copy)
    findings: list[Finding] = []
    rewriters = []
    for scope in scopes(copy):
        rewriter, found = _plan(scope, names, shapes)
        rewriters.append(rewriter)
        findings += found
    for function in sampling_functions(copy):
        reason = "it is in a function that could not be put in place of its calls"
        for node in function.node:
            if node.op_type == "GridSample":
                findings.append(_left(node, NotLinear(node.input[1], "", reason), f"function {function.name!r}"))
    if not any(finding.fused for finding in findings):
        copy.CopyFrom(model)
        return copy, tuple(findings)
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


def _plan(scope: Scope, names: Names, shapes: Sequence[Shapes]) -> tuple[Rewriter, list[Finding]]:
    """Decide on every sampler of one graph; nothing is changed yet."""
    planner = _Planner(scope, shapes)
    rewriter = Rewriter(planner.view, planner.observed, names)
    findings = []
    for node in scope.samplers:
        try:
            cut, factored, precision = planner.plan(node)
        except NotLinear as obstacle:
            findings.append(_left(node, obstacle, scope.label))
            continue
        rewriter.replace(node, cut, factored)
        findings.append(_fused(node, cut, factored, precision, scope.label))
    return rewriter, findings


def _name(node: onnx.NodeProto) -> str:
    return node.name or node.output[0]


def _left(node: onnx.NodeProto, obstacle: NotLinear, scope: str) -> Finding:
    maker = f" ({obstacle.op_type})" if obstacle.op_type else ""
    message = (
        f"left as it was: grid {node.input[1]!r} is not provably linear: {obstacle.tensor!r}{maker}: {obstacle.reason}"
    )
    return Finding(_name(node), node.input[1], False, message, scope=scope)


def _fused(node: onnx.NodeProto, cut: Cut, factored: ThetaMap, precision: str, scope: str) -> Finding:
    rows = len(factored.basis)
    where = ", ".join(repr(name) for name in cut.tensors)
    message = f"fused: {factored.kind}, K = {rows}, theta from {cut.size} values a sample at {where}"
    if precision in ("float16", "bfloat16"):
        message += f"; its coordinates were {precision} and are float32 now"
    return Finding(
        _name(node), node.input[1], True, message, factored.kind, cut.size, rows, cut.tensors, precision, scope
    )


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

    def plan(self, node: onnx.NodeProto) -> tuple[Cut, ThetaMap, str]:
        """The cut and the map for one sampler, and the precision in which the file computed its grid.

        Raises:
            NotLinear: there is none.
        """
        image, grid = node.input[0], node.input[1]
        self._check(image, grid)
        shape = self.observed.shapes[grid]
        output_size = tuple(axis.factor for axis in shape[1:-1])
        prover = self._provers[shape[0].batch]
        cutter = Cutter(self.view, self.observed, prover, grid, self._regions[grid])
        candidates, last = cutter.candidates()
        tried: list[NotLinear] = []
        for candidate in candidates:
            try:
                quotients = self._prove(prover, candidate, grid)
            except NotLinear as obstacle:
                tried.append(obstacle)
                continue
            for cut in cutter.cuts(candidate):
                try:
                    factored = factor(self._evaluator, cut, grid, output_size, quotients)
                    return cut, factored, cutter.precision(cut)
                except NotLinear as obstacle:
                    tried.append(obstacle)
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

    def _prove(self, prover: Prover, candidate: Candidate, grid: str) -> frozenset[str]:
        """The tensors between that are quotients."""
        forms = prover.prove(candidate.tensors, candidate.nodes, grid)
        return frozenset(name for name, form in forms.items() if form.degree >= Degree.RECIPROCAL)


def describe(findings: tuple[Finding, ...]) -> str:
    """The findings, a line each; one sentence where there is no sampler at all."""
    if not findings:
        return "no GridSample in the graph: nothing to fuse"
    return "\n".join(f"{finding.node}: {finding.message}" for finding in findings)


def fuse_or_say(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Finding, ...], str]:
    """The pass's result and findings, and why it could not be run; the model itself where it could not."""
    try:
        with np.errstate(all="ignore"):  # weights may be infinite, or no numbers
            return *fuse(model), ""
    except ModelError as error:
        return model, (), str(error)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, onnx.checker.ValidationError) as error:
        # a damaged file may hold what no operator's definition allows; nothing is changed then
        return model, (), f"the pass cannot take it apart ({type(error).__name__}: {one_line(error, 120)})"
