"""Proves that a sampling grid is affine, or a quotient of affine forms, in some tensors before it.

Each rule derives, for one operator, the form of the output from the forms of the inputs. The rules are structural:
they never decide by values (a clamp at ±10 looks affine at every point tried inside ±10). They also track the batch
axis, because an operator that mixes samples cannot be written as one map per sample. An operator without a rule ends
the proof.

If a file's batch size is fixed, there is no batch axis to track. All samples then count as one, and whether they mix is
measured: finitely many values determine an affine map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx

from stn_infer.fusion.dataflow import AFTER_CLAMP, CLAMPS, LOWER_CLAMPS, GraphView, NotLinear
from stn_infer.fusion.evaluate import SHAPE_INPUTS, Evaluator
from stn_infer.fusion.forms import Context, Degree, Form
from stn_infer.fusion.monomials import Term
from stn_infer.fusion.rules import RULES
from stn_infer.fusion.shapes import Observation
from stn_infer.proto.traversal import is_standard, names_read

LINEAR_OPS = frozenset(RULES) - LOWER_CLAMPS

PRODUCTS = frozenset({"Mul", "MatMul", "Gemm", "Einsum", "Pow"})
"""Operators that multiply values."""

# Limits on the products of a cut's tensors.
_MAX_DEGREE, _MAX_TERMS = 4, 256

_BRANCHES = frozenset({"If", "Loop", "Scan"})


def rejection_reason(op_type: str) -> str:
    """Why an operator without a rule ends the proof."""
    if op_type in _BRANCHES:
        return "a branch or a loop, whose control flow may depend on data"
    if op_type in CLAMPS:
        return "a clamp, so the map is piecewise"
    return "the operator is not known to be linear"


class Prover:
    """Applies the rules to one graph.

    Args:
        view: the graph.
        observed: shapes and types.
        evaluator: constants.
        samplewise: whether the batch axis is dynamic and tracked.
        products: whether products of tensors that vary are allowed; an attribute, too. Then each form is affine in
            products of the cut's tensors, which its terms name.
    """

    def __init__(
        self, view: GraphView, observed: Observation, evaluator: Evaluator, samplewise: bool, products: bool = False
    ) -> None:
        self._view, self._observed, self._evaluator = view, observed, evaluator
        self._samplewise, self.products = samplewise, products
        self._rejections: dict[int, NotLinear | None] = {}
        self._from_samples = _from_samples(view, observed) if samplewise else set[str]()

    def source(self, tensor: str) -> Form:
        """The form of a tensor of the cut: affine in itself, the samples on its single batch axis."""
        if tensor not in self._observed.shapes:
            raise NotLinear(tensor, self._view.maker(tensor), "its shape does not follow a simple rule")
        axes = self._batch_axes(tensor)
        if len(axes) > 1 or (axes and not self._samplewise):
            raise NotLinear(
                tensor, self._view.maker(tensor), "the samples of a batch are mixed: they lie on more than one axis"
            )
        if not axes and tensor in self._from_samples:
            raise NotLinear(tensor, self._view.maker(tensor), "it mixes the samples of a batch")
        return Form(Degree.AFFINE, axes[0] if axes else None, frozenset({(tensor,)}))

    def constant(self, tensor: str) -> Form:
        """The form of a tensor that does not vary with data."""
        axes = self._batch_axes(tensor)
        if len(axes) > 1 or (axes and not self._samplewise):
            raise NotLinear(tensor, self._view.maker(tensor), "it has two batch axes")
        return Form(Degree.CONSTANT, axes[0] if axes else None)

    def _batch_axes(self, tensor: str) -> list[int]:
        return [axis for axis, length in enumerate(self._observed.shapes.get(tensor, ())) if length.batch]

    def step(self, index: int, forms: Mapping[str, Form]) -> Form:
        """Returns the form of node ``index``'s outputs, given the forms of its varying inputs.

        Raises:
            NotLinear: the operator has no rule, or the rule does not apply to these forms.
        """
        node = self._view.nodes[index]
        followed = node.op_type in LINEAR_OPS or index in self._view.denominator_clamps
        if not followed or not is_standard(node):
            raise NotLinear(node.output[0], node.op_type, rejection_reason(node.op_type))
        inputs = tuple(
            None if not name else forms[name] if name in forms else self.constant(name) for name in node.input
        )
        for position, name in enumerate(node.input):
            if not name or name in forms:
                continue
            is_shape = position in SHAPE_INPUTS.get(node.op_type, ())
            # The rules of ScatterND and GatherND check their indices themselves.
            is_checked = position == 1 and node.op_type in ("AffineGrid", "ScatterND", "GatherND")
            if is_shape and not self._evaluator.grows_with_batch(name):
                raise NotLinear(node.output[0], node.op_type, f"the shape {name!r} does not follow a simple rule")
            if not (is_shape or is_checked) and self._evaluator.depends_on_open_sizes(name):
                reason = f"{name!r} is computed from the batch size, or depends on the size of the images"
                raise NotLinear(node.output[0], node.op_type, reason)
        shapes, dtypes = self._observed.shapes, self._observed.dtypes
        context = Context(node, inputs, shapes, dtypes, self._evaluator, self.products)
        clamp = _clamp_before(context)
        form = RULES[node.op_type](context)
        if form.degree is Degree.CLAMPED:
            form = replace(form, clamp=clamp or (node.output[0], node.op_type))
        form = replace(form, terms=self._terms(context, node))
        for output in filter(None, node.output):
            if output not in shapes or self._batch_axes(output) != ([] if form.axis is None else [form.axis]):
                raise NotLinear(output, node.op_type, "the batch axis is lost")
        return form

    def _terms(self, context: Context, node: onnx.NodeProto) -> frozenset[Term]:
        """The products of the cut's tensors in which a node's outputs are affine."""
        varying = [form for form in context.forms if form is not None and form.degree is not Degree.CONSTANT]
        terms = frozenset().union(*(form.terms for form in varying))
        factors = [form for form in context.forms[:2] if form is not None] if node.op_type == "Gemm" else varying
        factors = [form for form in factors if form.degree is not Degree.CONSTANT]
        if node.op_type == "Pow":
            exponent = self._evaluator.constant(node.input[1], self._evaluator.settings[0])
            factors = factors * int(exponent.item())
        # A numerator times a reciprocal is a quotient, whose numerator and denominator are measured separately.
        if not self.products or node.op_type not in PRODUCTS or any(f.degree is Degree.RECIPROCAL for f in factors):
            return terms
        products: frozenset[Term] = frozenset({()})
        for factor in factors:
            products = frozenset(tuple(sorted((*a, *b))) for a in products for b in (*factor.terms, ()))
            if any(len(term) > _MAX_DEGREE for term in products) or len(products) > _MAX_TERMS:
                raise context.fail(f"it multiplies more than {_MAX_DEGREE} values that depend on data")
        return terms | (products - {()})

    def rejection(self, index: int) -> NotLinear | None:
        """Why node ``index`` cannot be part of a proof. None if some degrees of its inputs are acceptable."""
        if index not in self._rejections:
            self._rejections[index] = self._try(index)
        return self._rejections[index]

    def _try(self, index: int) -> NotLinear | None:
        reason: NotLinear | None = None
        names = self._view.varying_inputs(self._view.nodes[index])
        # All inputs affine, or one of them a reciprocal.
        for special in (None, *names[:4]):
            try:
                forms = {name: self.source(name) for name in names}
                if special is not None:
                    forms[special] = replace(forms[special], degree=Degree.RECIPROCAL)
                self.step(index, forms)
                return None
            except NotLinear as rejection:
                reason = reason or rejection
        return reason

    def prove(self, sources: Sequence[str], nodes: Sequence[int], grid: str) -> dict[str, Form]:
        """Returns the forms of all tensors from ``sources`` through ``nodes`` (ascending), including ``grid``.

        Raises:
            NotLinear: the tensor at which the proof ends.
        """
        forms = {name: self.source(name) for name in sources}
        for index in nodes:
            form = self.step(index, forms)
            forms.update((name, form) for name in self._view.nodes[index].output if name and name not in forms)
        if forms[grid].degree is Degree.CLAMPED:
            raise _piecewise(forms[grid].clamp)
        if self._samplewise and forms[grid].axis != 0:
            raise NotLinear(grid, self._view.maker(grid), "the samples do not lie on axis 0")
        return forms


def _clamp_before(context: Context) -> tuple[str, str] | None:
    """The clamp of the value that a node reads; None if there is none.

    Raises:
        NotLinear: the node does more to the value than a denominator may undergo; names the clamp.
    """
    forms = [form for form in context.forms if form is not None]
    clamp = next((form.clamp for form in forms if form.degree is Degree.CLAMPED), None)
    if clamp is None:
        return None
    node = context.node
    degrees = [form.degree for form in forms]
    if node.op_type == "Reciprocal" or (node.op_type == "Div" and degrees[0] is not Degree.CLAMPED):
        return clamp
    others = {degree for degree in degrees if degree is not Degree.CLAMPED}
    one = degrees.count(Degree.CLAMPED) == 1
    if node.op_type == "Concat":
        allowed = not others
    elif node.op_type in ("Add", "Sum", "Mul"):
        allowed = one and others <= {Degree.CONSTANT}
    else:
        allowed = degrees[0] is Degree.CLAMPED and one and others <= {Degree.CONSTANT}
    if node.op_type not in AFTER_CLAMP or not allowed:
        raise _piecewise(clamp)
    return clamp


def _piecewise(clamp: tuple[str, str]) -> NotLinear:
    return NotLinear(*clamp, "a clamp, so the map is piecewise")


def _from_samples(view: GraphView, observed: Observation) -> set[str]:
    """Tensors that depend on individual samples; all samples share the other varying tensors."""
    inputs = {value.name for value in view.scope.model.graph.input}
    shared = {name for name in inputs if name in observed.shapes and not any(a.batch for a in observed.shapes[name])}
    found = (inputs - shared) | view.scope.given
    for node in view.nodes:
        random = any(name in view.varying for name in node.output) and view.varying.isdisjoint(names_read(node))
        if random or not found.isdisjoint(names_read(node)):
            found.update(name for name in node.output if name in view.varying)
    return found
