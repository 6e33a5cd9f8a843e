"""The fusion pass: every GridSample whose grid is provably ``theta · basis`` becomes one ``stn`` node.

Any other GridSample becomes ``stn::Sampler`` at the same grid, so that the plugin library's kernel samples it.

Each step has its own module:

1. ``functions``: inline the model-local functions that contain a sampler or compute its grid.
2. ``scopes``: flatten each graph that contains a sampler, together with the enclosing graphs that it can read.
3. ``dataflow``, ``shapes``: which tensors vary with the inputs' data, and how shapes depend on the dynamic sizes.
4. ``clamps``: a clamp to [-1, 1] directly before the sampler that equals the padding mode ``border`` is left out.
5. ``cuts``: trace back from the grid through operators that may be linear; each set of tensors on the way is a cut.
6. ``proof`` (``forms``, ``rules``): prove the grid affine, or a quotient of affine forms, in a cut's tensors.
7. ``measure`` (``evaluate``, ``operators``, ``span``): measure the map in float64 and factor it into theta and basis;
   ``lattices``: into theta and one matrix per axis; chooses the form by what it costs the file.
8. ``rewrite``, ``op``: insert the ``stn`` node into the graph and the op's function into the file.

If a step fails, the grid's nodes are unchanged, and a finding names the tensor and the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import onnx

from stn_infer.errors import ModelError
from stn_infer.fusion.basis import Kind
from stn_infer.fusion.clamps import check_border, find_clamps
from stn_infer.fusion.dataflow import OTHER_CONSTANT_OPS, SHAPE_OPS, GraphView, NotLinear, Product, TooLarge
from stn_infer.fusion.evaluate import Evaluator
from stn_infer.fusion.forms import FLOATS
from stn_infer.fusion.functions import sampling_functions, with_functions_inlined
from stn_infer.fusion.lattices.plan import Chooser, Plan
from stn_infer.fusion.op import DOMAIN, SAMPLER, attach_functions, is_sampler, reads_grid
from stn_infer.fusion.operators import OPERATORS
from stn_infer.fusion.proof import LINEAR_OPS, PRODUCTS, Prover
from stn_infer.fusion.rewrite import Rewriter
from stn_infer.fusion.samplers import spec_of
from stn_infer.fusion.scopes import Scope, scopes
from stn_infer.fusion.shapes import Observation, observe
from stn_infer.printing import shown
from stn_infer.proto.edit import copy_of, drop_unused
from stn_infer.proto.inputs import Shapes
from stn_infer.proto.names import Names
from stn_infer.proto.traversal import STANDARD_DOMAINS, every_node, is_standard, nested_nodes, opset_of


@dataclass(frozen=True)
class Finding:
    """The pass's result for one GridSample.

    Attributes:
        node: the GridSample's name, or its output's name if it has none.
        grid: the grid's tensor.
        fused: whether a node that computes the grid from theta replaced it.
        message: one sentence: what was fused, or which tensor and operator ended the proof.
        op: the type of the ``stn`` node that stands in its place; empty if it stays a GridSample.
        written: whether the pass wrote that node; false for a ``Sampler`` that the file had.
        why: why the grid is not linear; empty if fused.
        obstacle: why the node stays a GridSample, if it could become ``Sampler`` otherwise.
        kind: affine, basis, projective, tensor_product, lattice; None if not fused.
        parameters: Q, values per sample at the cut; 0 if not fused.
        basis_rows: K; 0 if not fused.
        cut: the tensors that theta is computed from.
        precision: the narrowest type in which the file computed the grid: float16, bfloat16, float32 or float64. The
            op computes it in float32, so a half-precision grid becomes more accurate than the file's own.
        scope: the body of the If, Loop or Scan, or the function, that contains the node; empty for the main graph.
    """

    node: str
    grid: str
    fused: bool
    message: str
    op: str = ""
    written: bool = False
    why: str = ""
    obstacle: str = ""
    kind: Kind | None = None
    parameters: int = 0
    basis_rows: int = 0
    cut: tuple[str, ...] = ()
    precision: str = "float32"
    scope: str = ""


def fuse(model: onnx.ModelProto, shapes: Sequence[Shapes] = ()) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    """Fuses every sampler whose grid is provably linear, and writes the others as ``Sampler``.

    The given model is not changed.

    Args:
        model: a valid model of opset 16 or later. Samplers in the bodies of If, Loop and Scan and in model-local
            functions are included.
        shapes: two choices of sizes, by input name and without the batch, for inputs with dynamic sizes besides the
            batch; two show what depends on a dynamic size. If empty, plausible sizes are tried.

    Returns:
        The rewritten copy, with the functions of the ops it uses (an identical copy if nothing was replaced), and one
        finding per sampler, in graph order. Inputs, outputs and the opset do not change.

    Raises:
        ModelError: onnxruntime can't run the model, or a model-local function has the name of a standard operator.
    """
    _reject_redefined_operators(model)
    if not any(map(reads_grid, every_node(model))):
        return copy_of(model), ()
    copy = with_functions_inlined(model)
    names, prefixes = Names(copy.graph), (f"stn_{number}" for number in count())
    findings: list[Finding] = []
    rewriters = []
    for scope in scopes(copy):
        planner = _Planner(scope, shapes)
        rewriters.append(Rewriter(planner.view, planner.observed, names, prefixes))
        findings += (planner.decide(node, rewriters[-1]) for node in scope.samplers)
    findings += _in_functions(copy)
    if not any(finding.written for finding in findings):
        return copy_of(model), tuple(findings)
    for rewriter in rewriters:
        rewriter.finish()
    if any(finding.fused for finding in findings):
        drop_unused(copy.graph)
    attach_functions(copy)
    return copy, tuple(findings)


def _reject_redefined_operators(model: onnx.ModelProto) -> None:
    """ONNX lets a file's function replace an operator of the same name, but onnxruntime still runs its own kernel."""
    for function in model.functions:
        if function.domain in STANDARD_DOMAINS or (function.domain, function.name) in OTHER_CONSTANT_OPS:
            raise ModelError(f"the file has a function with the name of the standard operator {function.name!r}")


def _in_functions(model: onnx.ModelProto) -> Iterator[Finding]:
    """Findings for samplers in functions that could not be inlined."""
    reason = "it is in a function that could not be inlined"
    for function in sampling_functions(model):
        for node in nested_nodes(function.node):
            if is_standard(node, "GridSample"):
                why = NotLinear(node.input[1], "", reason)
                yield _not_fused(node, why, f"function {function.name!r}", "")


def _not_fused(node: onnx.NodeProto, why: NotLinear, scope: str, op: str, obstacle: str = "") -> Finding:
    """The finding for a grid that is not linear; ``obstacle``: why its node stays a GridSample."""
    maker = f" ({why.op_type})" if why.op_type else ""
    reason = f"grid {node.input[1]!r} is not provably linear: {why.tensor!r}{maker}: {why.reason}"
    if isinstance(why, TooLarge):
        reason = f"grid {node.input[1]!r} is linear, but {why.reason}"
    written = bool(op) and not is_sampler(node)
    what = "not fused" if not op else f"{'GridSample became' if written else 'stays'} {DOMAIN}::{op}"
    message = f"{what}: {reason}" + (f"; it stays a GridSample, because {obstacle}" if obstacle else "")
    return Finding(
        node.name or node.output[0], node.input[1], False, message, op, written, reason, obstacle, scope=scope
    )


def _fused(node: onnx.NodeProto, chosen: Plan, scope: str, clamped: bool) -> Finding:
    cut, precision = chosen.cut, chosen.precision
    where = ", ".join(repr(name) for name in cut.tensors)
    parameters = f"{cut.size} parameters"
    if chosen.products:
        parameters = f"{chosen.products} products of {parameters}"
    message = f"fused GridSample into {DOMAIN}::{chosen.op} ({chosen.text}, {parameters} from {where})"
    if precision in ("float16", "bfloat16"):
        message += f"; coordinates change from {precision} to float32"
    if clamped:
        message += "; its clamp to [-1, 1] becomes padding_mode border"
    name = node.name or node.output[0]
    facts = (chosen.kind, cut.size, chosen.rows, cut.tensors, precision, scope)
    return Finding(name, node.input[1], True, message, chosen.op, True, "", "", *facts)


class _Reading:
    """Finds, proves and measures cuts in one graph, with or without clamps.

    Attributes:
        evaluator: evaluates the graph's nodes.
    """

    def __init__(self, view: GraphView, observed: Observation) -> None:
        self._view, self._observed = view, observed
        self.evaluator = Evaluator(view, observed, opset_of(view.scope.model))
        self._provers: dict[tuple[bool, bool], Prover] = {}

    def plan(self, grid: str) -> Plan:
        """Returns what replaces a sampler at ``grid``; raises NotLinear if nothing does."""
        region = self._view.region(grid, LINEAR_OPS)
        try:
            return self._plan(grid, region, False)
        except NotLinear as why:
            if not any(self._multiplies(index) for index in region):
                raise
            try:
                return self._plan(grid, region, True)
            except NotLinear as reason:
                # If products are what ended the first proof, the second proof shows what else there is.
                raise (reason if isinstance(why, Product) else why) from None

    def _multiplies(self, index: int) -> bool:
        """Whether a node multiplies values that vary."""
        node = self._view.nodes[index]
        varying = [name for name in node.input[:2] if name in self._view.varying]
        return node.op_type == "Pow" or (node.op_type in PRODUCTS and len(varying) > 1)

    def _prover(self, grid: str, products: bool) -> Prover:
        key = self._observed.shapes[grid][0].batch, products
        if key not in self._provers:
            self._provers[key] = Prover(self._view, self._observed, self.evaluator, *key)
        return self._provers[key]

    def _plan(self, grid: str, region: list[int], products: bool) -> Plan:
        prover = self._prover(grid, products)
        return Chooser(self._view, self._observed, self.evaluator, prover, grid, region, products).chosen()


class _Planner:
    """Finds, proves and measures cuts in one graph.

    Attributes:
        view: the graph.
        observed: its tensors' shapes and types.
    """

    def __init__(self, scope: Scope, shapes: Sequence[Shapes]) -> None:
        self.view = GraphView(scope)
        samplers = scope.samplers
        clamped = {node.input[1]: find_clamps(self.view, node.input[1]) for node in samplers}
        nodes: set[int] = set()
        for grid, clamps in clamped.items():
            nodes.update(self.view.region(grid, LINEAR_OPS))
            if clamps is not None:
                nodes.update((*clamps.view.region(grid, LINEAR_OPS), *clamps.between))
        constants, shaped = self.view.constants_behind(sorted(nodes))
        tensors = {name for index in nodes for name in (*self.view.nodes[index].input, *self.view.nodes[index].output)}
        # The sampler's image and grid too: their shapes determine the shape of its output.
        tensors |= {name for node in samplers for name in node.input} | constants | shaped
        tensors |= {name for pair in scope.carried for name in pair}
        tensors.discard("")
        self.observed: Observation = observe(self.view, sorted(tensors), self._needs_a_run, shapes)
        self._whole = _Reading(self.view, self.observed)
        self._clamps = {grid: clamps for grid, clamps in clamped.items() if clamps is not None}

    def decide(self, node: onnx.NodeProto, rewriter: Rewriter) -> Finding:
        """Decides on one sampler; registers its replacement, if it gets one, with ``rewriter``."""
        scope, spec = self.view.scope.label, spec_of(node)
        image, grid = node.input[:2]
        clamps = self._clamps.get(grid)
        try:
            self._check(image, grid)
            try:
                chosen = self._whole.plan(grid)
                clamps = None
            except NotLinear:
                if clamps is None:
                    raise
                chosen = _Reading(clamps.view, self.observed).plan(grid)
                check_border(clamps, self.view, self.observed, self._whole.evaluator, grid, spec)
                spec = replace(spec, padding_mode="border")
        except NotLinear as why:
            obstacle = "" if is_sampler(node) else self._not_sampled(node)
            if obstacle:
                return _not_fused(node, why, scope, "", obstacle)
            if not is_sampler(node):
                dtypes = self.observed.dtypes
                rewriter.sample(node, spec, cast=dtypes[grid] not in ("float", dtypes[image]))
            return _not_fused(node, why, scope, SAMPLER)
        rewriter.replace(node, chosen, spec)
        return _fused(node, chosen, scope, clamps is not None)

    def _not_sampled(self, node: onnx.NodeProto) -> str:
        """Why ``Sampler`` cannot replace a GridSample; "" if it can."""
        image, grid = node.input[:2]
        if self.view.scope.shadowed is not None:
            return f"its graph redefines {self.view.scope.shadowed!r} of an enclosing graph"
        for what, name in (("image", image), ("grid", grid)):
            kind = self.observed.dtypes.get(name, "of unknown type")
            if kind not in FLOATS - {"double"}:
                return f"its {what} is {kind}, which the op does not support"
        if spec_of(node).mode == "bicubic" and len(self.observed.shapes.get(grid, ())) == 5:
            return "no runtime has bicubic sampling of volumes"
        return ""

    def _check(self, image: str, grid: str) -> None:
        """Raises NotLinear for samplers that the op does not support, however the grid is computed."""
        scope, maker = self.view.scope, self.view.maker(grid)
        if scope.shadowed is not None:
            raise NotLinear(grid, maker, f"its graph redefines {scope.shadowed!r} of an enclosing graph")
        for before, after in scope.carried:
            if self.observed.shapes.get(before) != self.observed.shapes.get(after):
                raise NotLinear(grid, maker, f"the shape of {before!r} may change from one iteration to the next")
        if grid not in self.view.varying:
            raise NotLinear(grid, maker, "it depends on no input, so it has no theta")
        shape = self.observed.shapes.get(grid, ())
        dimensions = len(shape) - 2
        if dimensions not in (2, 3) or any(axis.batch for axis in shape[1:]) or shape[-1].factor != dimensions:
            raise NotLinear(grid, maker, "its shape is not [N, *output_size, D] with N the batch")
        if any(axis.varied is not None for axis in shape):
            raise NotLinear(grid, maker, "its size depends on a dynamic input size, so it has no fixed basis")
        kind = self.observed.dtypes.get(image, "unknown")
        if kind not in FLOATS - {"double"}:
            raise NotLinear(image, self.view.maker(image), f"the image is {kind}, a type that the op does not support")

    def _needs_a_run(self, constant: str) -> bool:
        """Whether a constant's value may have to come from onnxruntime: no operator of this package computes it."""
        known = {*OPERATORS, *SHAPE_OPS, "Cast", "Constant", "ConstantOfShape"}
        return constant not in self.view.varying and self.view.maker(constant) not in known


def describe(findings: tuple[Finding, ...]) -> str:
    """Returns the findings, one per line; one sentence if the graph has no sampler."""
    if not findings:
        return "no GridSample in the graph: nothing to fuse"
    return "\n".join(shown(f"{finding.node}: {finding.message}") for finding in findings)
