"""What is done to a foreign file, pass by pass: the page that ``optimize`` and ``lint`` share.

Some repairs are made before the fusion, so that it can run, and some after it, since it takes operators away. A repair
is a function from a model to a changed copy, checked on its own: one that onnx's checker or onnxruntime refuses is left
out and named. What the whole computes is compared with the original afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from stn_infer.errors import ModelError, one_line
from stn_infer.fusion.fuse import Finding, fuse
from stn_infer.proto.session import Stored, open_session
from stn_infer.proto.traversal import opset_of
from stn_infer.repairs.affine_grids import plain_affine_grids
from stn_infer.repairs.result import NotRepairable, PassResult, Repair
from stn_infer.repairs.samplers import one_type, standard_samplers
from stn_infer.repairs.versions import drop_default_inputs, lower_versions, older_mode_names

Pass = Callable[[onnx.ModelProto], PassResult[Repair]]

#: By the code of the finding that they answer, in this order.
BEFORE_FUSION: dict[str, Pass] = {
    "opset-too-new": lower_versions,
    "weights-as-inputs": drop_default_inputs,
    "custom-sampler": standard_samplers,
}
AFTER_FUSION: dict[str, Pass] = {
    "affine-grid": plain_affine_grids,
    "opset-20-trap": older_mode_names,
    "mixed-types": one_type,
}


@dataclass(frozen=True)
class Rewritten:
    """What the passes made of a model.

    Attributes:
        model: the result; the given model itself where nothing changed.
        repaired: what the fusion was given: as :attr:`model`.
        findings: what became of each sampler.
        repairs: what was fixed beside, and what could not be.
        not_fused: why the fusion could not be run; "" where it could.
    """

    model: onnx.ModelProto
    repaired: onnx.ModelProto
    findings: tuple[Finding, ...]
    repairs: tuple[Repair, ...]
    not_fused: str


def run_passes(model: onnx.ModelProto, *, fix: bool = True) -> Rewritten:
    """Repair ``model``, fuse its samplers, and repair what the fusion left.

    Args:
        model: any model that was let in (:mod:`stn_infer.proto.load`); it is not changed.
        fix: whether to repair; else fuse alone.
    """
    before = repair(model, BEFORE_FUSION if fix else {})
    fused, not_fused = PassResult[Finding](before.model), ""
    try:
        fused = fuse_samplers(before.model)
    except NotRepairable as reason:
        not_fused = str(reason)
    after = repair(fused.model, AFTER_FUSION if fix else {})
    return Rewritten(after.model, before.model, fused.notes, (*before.notes, *after.notes), not_fused)


def repair(model: onnx.ModelProto, passes: Mapping[str, Pass]) -> PassResult[Repair]:
    """Make each of ``passes`` that applies and whose result passes its check."""
    notes: list[Repair] = []
    changed = False
    for code, apply in passes.items():
        try:
            result = apply(model)
            if result.changed:
                _check(result.model, model)
        except NotRepairable as reason:
            notes.append(Repair(code, str(reason), done=False))
            continue
        model, changed = result.model, changed or result.changed
        notes += result.notes
    return PassResult(model, changed, tuple(notes))


def fuse_samplers(model: onnx.ModelProto) -> PassResult[Finding]:
    """The fusion as a pass.

    Raises:
        NotRepairable: it can't be run on this model.
    """
    if opset_of(model) < 16:
        return PassResult(model)  # there is no GridSample yet
    try:
        with np.errstate(all="ignore"):  # weights may be infinite, or no numbers
            fused, findings = fuse(model)
    except ModelError as error:
        raise NotRepairable(str(error)) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, onnx.checker.ValidationError) as error:
        # a damaged file may hold what no operator's definition allows
        raise NotRepairable(f"the pass cannot take it apart ({type(error).__name__}: {one_line(error, 120)})") from None
    if not any(finding.fused for finding in findings):
        return PassResult(model, False, findings)
    fused.ir_version = max(fused.ir_version, 8)  # the first with functions
    return PassResult(fused, True, findings)


def _check(changed: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Raise NotRepairable where onnxruntime refuses the result, or onnx's checker does that took the file before."""
    problem = checker_problem(changed)
    if problem and not checker_problem(model):
        raise NotRepairable(f"the result would not be valid: {problem}")
    try:
        open_session(Stored(changed))
    except ModelError as error:
        raise NotRepairable(f"the result would not run: {one_line(error, 160)}") from None


def checker_problem(model: onnx.ModelProto) -> str:
    """Why onnx's checker refuses a model; "" where it doesn't."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # its C++ raises several classes
        return one_line(error, 160)
    return ""
