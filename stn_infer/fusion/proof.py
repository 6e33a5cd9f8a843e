"""Prove that a sampling grid is affine, or a quotient of affine forms, in some tensors before it.

Each rule says, for one operator, what it makes of inputs whose form is known. The rules are structural: a value never
decides (a clamp at ±10 looks affine wherever one happens to look). They also follow the axis that carries the samples
of a batch, since an operator that mixes samples can't be written as one map a sample. What has no rule ends a proof.

Where a file's batch is a fixed number there is no such axis to follow. All its samples then count as one, and whether
they mix is measured: an affine map is known completely by finitely many of its values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stn_infer.fusion.dataflow import GraphView, NotLinear
from stn_infer.fusion.evaluate import SHAPED_BY_SECOND, Evaluator
from stn_infer.fusion.forms import Context, Degree, Form, Rule
from stn_infer.fusion.rules_arithmetic import ARITHMETIC
from stn_infer.fusion.rules_layout import LAYOUT
from stn_infer.fusion.shapes import Observation
from stn_infer.proto.traversal import is_standard, names_read

RULES: dict[str, Rule] = {**ARITHMETIC, **LAYOUT}
"""Operator -> rule; what is not here ends a proof."""

LINEAR_OPS = frozenset(RULES)

_BRANCHES = frozenset({"If", "Loop", "Scan"})


def why_not(op_type: str) -> str:
    """Why an operator without a rule ends a proof."""
    if op_type in _BRANCHES:
        return "a branch or a loop, whose course may depend on data"
    return "the operator is not known to be linear"


class Prover:
    """Applies the rules to one graph.

    Args:
        view: the graph.
        observed: shapes and types.
        evaluator: constants.
        samplewise: whether the samples of a batch lie on an axis of open length, to be followed.
    """

    def __init__(self, view: GraphView, observed: Observation, evaluator: Evaluator, samplewise: bool) -> None:
        self._view, self._observed, self._evaluator = view, observed, evaluator
        self._samplewise = samplewise
        self._rejections: dict[int, NotLinear | None] = {}
        self._from_samples = _from_samples(view, observed) if samplewise else set[str]()

    def source(self, tensor: str) -> Form:
        """The form of a tensor where a cut goes through: affine in itself, samples on its one batch axis."""
        if tensor not in self._observed.shapes:
            raise NotLinear(tensor, self._view.maker(tensor), "its shape follows no simple rule")
        axes = self._batch_axes(tensor)
        if len(axes) > 1 or (axes and not self._samplewise):
            raise NotLinear(
                tensor, self._view.maker(tensor), "the samples of a batch are mixed: no single axis carries them"
            )
        if not axes and tensor in self._from_samples:
            raise NotLinear(tensor, self._view.maker(tensor), "it mixes the samples of a batch")
        return Form(Degree.AFFINE, axes[0] if axes else None)

    def constant(self, tensor: str) -> Form:
        """The form of a tensor that varies with no data."""
        axes = self._batch_axes(tensor)
        if len(axes) > 1 or (axes and not self._samplewise):
            raise NotLinear(tensor, self._view.maker(tensor), "two axes of it carry the batch")
        return Form(Degree.CONSTANT, axes[0] if axes else None)

    def _batch_axes(self, tensor: str) -> list[int]:
        return [axis for axis, length in enumerate(self._observed.shapes.get(tensor, ())) if length.batch]

    def step(self, index: int, forms: Mapping[str, Form]) -> Form:
        """The form of node ``index``'s outputs, given its varying inputs' forms.

        Raises:
            NotLinear: no rule, or the rule says no.
        """
        node = self._view.nodes[index]
        if node.op_type not in LINEAR_OPS or not is_standard(node):
            raise NotLinear(node.output[0], node.op_type, why_not(node.op_type))
        inputs = tuple(
            None if not name else forms[name] if name in forms else self.constant(name) for name in node.input
        )
        for position, name in enumerate(node.input):
            # the rule of ScatterND looks at its indices itself
            is_shape = position == 1 and node.op_type in (*SHAPED_BY_SECOND, "AffineGrid", "ScatterND")
            if not name or name in forms:
                continue
            if position == 1 and node.op_type in SHAPED_BY_SECOND and not self._evaluator.grows_with_batch(name):
                raise NotLinear(node.output[0], node.op_type, f"the shape {name!r} follows no simple rule")
            if not is_shape and self._evaluator.depends_on_open_sizes(name):
                reason = f"{name!r} is computed from the batch size, or follows the size of the images"
                raise NotLinear(node.output[0], node.op_type, reason)
        shapes, dtypes = self._observed.shapes, self._observed.dtypes
        form = RULES[node.op_type](Context(node, inputs, shapes, dtypes, self._evaluator))
        for output in filter(None, node.output):
            if output not in shapes or self._batch_axes(output) != ([] if form.axis is None else [form.axis]):
                raise NotLinear(output, node.op_type, "the samples' axis is lost")
        return form

    def rejection(self, index: int) -> NotLinear | None:
        """Why node ``index`` can be part of no proof; None where some degrees of its inputs would pass."""
        if index not in self._rejections:
            self._rejections[index] = self._try(index)
        return self._rejections[index]

    def _try(self, index: int) -> NotLinear | None:
        reason: NotLinear | None = None
        names = self._view.varying_inputs(self._view.nodes[index])
        for special in (None, *names[:4]):  # all affine, or one of them a reciprocal
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
        """The forms of all tensors from ``sources`` through ``nodes`` (ascending), ``grid`` among them.

        Raises:
            NotLinear: where the proof ends.
        """
        forms = {name: self.source(name) for name in sources}
        for index in nodes:
            form = self.step(index, forms)
            forms.update((name, form) for name in self._view.nodes[index].output if name and name not in forms)
        if self._samplewise and forms[grid].axis != 0:
            raise NotLinear(grid, self._view.maker(grid), "the samples do not lie on axis 0")
        return forms


def _from_samples(view: GraphView, observed: Observation) -> set[str]:
    """Tensors that depend on a sample of the batch; the others that vary are one for all samples."""
    inputs = {value.name for value in view.scope.model.graph.input}
    shared = {name for name in inputs if name in observed.shapes and not any(a.batch for a in observed.shapes[name])}
    found = (inputs - shared) | view.scope.given
    for node in view.nodes:
        random = any(name in view.varying for name in node.output) and view.varying.isdisjoint(names_read(node))
        if random or not found.isdisjoint(names_read(node)):
            found.update(name for name in node.output if name in view.varying)
    return found
