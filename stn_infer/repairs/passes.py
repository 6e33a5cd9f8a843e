"""The passes over a third-party ONNX file, shared by ``optimize`` and ``lint``.

Some repairs run before the fusion, to make it possible, and some after it, because the fusion removes operators. A
repair is a function from a model to a changed copy, and each result is checked: a repair whose result onnx's checker or
onnxruntime rejects is skipped and reported. ``optimize`` compares the final result with the original.
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
from stn_infer.repairs.low_precision import without_half_grids, without_quantized_grids
from stn_infer.repairs.result import NotRepairable, PassResult, Repair
from stn_infer.repairs.samplers import one_type, standard_samplers
from stn_infer.repairs.versions import drop_default_inputs, lower_versions, older_mode_names

Pass = Callable[[onnx.ModelProto], PassResult]

#: Repairs by the code of the finding that they fix, in execution order.
BEFORE_FUSION: dict[str, Pass] = {
    "opset-too-new": lower_versions,
    "weights-as-inputs": drop_default_inputs,
    "custom-sampler": standard_samplers,
    "quantized-grid": without_quantized_grids,
}
AFTER_FUSION: dict[str, Pass] = {
    "affine-grid": plain_affine_grids,
    "opset-20-trap": older_mode_names,
    "half-grid": without_half_grids,
    "mixed-types": one_type,
}


@dataclass(frozen=True)
class Rewritten:
    """The result of the passes.

    Attributes:
        model: the final model; the given model itself if nothing changed.
        repaired: the input of the fusion; the given model itself if nothing was repaired before it.
        findings: the fusion's result for each sampler.
        repairs: what was fixed besides, and what could not be fixed.
        not_fused: why the fusion could not run; "" if it could.
    """

    model: onnx.ModelProto
    repaired: onnx.ModelProto
    findings: tuple[Finding, ...]
    repairs: tuple[Repair, ...]
    not_fused: str


def run_passes(model: onnx.ModelProto, *, fix: bool = True) -> Rewritten:
    """Repairs ``model``, fuses its samplers, and repairs what remains after the fusion.

    Args:
        model: a model that passed the checks of :mod:`stn_infer.proto.load`; it is not changed.
        fix: whether to repair; if False, only the fusion runs.
    """
    before = repair(model, BEFORE_FUSION if fix else {})
    fused, findings, not_fused = before.model, tuple[Finding, ...](), ""
    try:
        fused, findings = _fuse(before.model)
    except NotRepairable as reason:
        not_fused = str(reason)
    after = repair(fused, AFTER_FUSION if fix else {})
    return Rewritten(after.model, before.model, findings, (*before.notes, *after.notes), not_fused)


def repair(model: onnx.ModelProto, passes: Mapping[str, Pass]) -> PassResult:
    """Runs each of ``passes`` that applies; keeps results that pass the check."""
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


def _fuse(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[Finding, ...]]:
    """:func:`fuse` for any file; returns the given model itself if nothing was replaced.

    Raises:
        NotRepairable: the fusion can't run on this model.
    """
    if opset_of(model) < 16:
        return model, ()  # these opsets have no GridSample
    try:
        with np.errstate(all="ignore"):  # weights may be infinite or NaN
            fused, findings = fuse(model)
    except ModelError as error:
        raise NotRepairable(str(error)) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, onnx.checker.ValidationError) as error:
        # A damaged file may violate an operator's definition.
        raise NotRepairable(f"the pass cannot analyze it ({type(error).__name__}: {one_line(error, 120)})") from None
    if not any(finding.written for finding in findings):
        return model, findings
    fused.ir_version = max(fused.ir_version, 8)  # the first with functions
    return fused, findings


def _check(changed: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Raises NotRepairable if onnxruntime rejects the result, or if onnx's checker rejects only the result."""
    problem = checker_problem(changed)
    if problem and not checker_problem(model):
        raise NotRepairable(f"the result would not be valid: {problem}")
    try:
        open_session(Stored(changed))
    except ModelError as error:
        raise NotRepairable(f"the result would not run: {one_line(error, 160)}") from None


def checker_problem(model: onnx.ModelProto) -> str:
    """Why onnx's checker rejects a model; "" if it accepts it."""
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # its C++ code raises several classes
        return one_line(error, 160)
    return ""
