"""Repairs of ONNX files: each a pure function from a model to (a changed copy, what was done).

They are made one after the other, some before the pass, so that it can run, some after it, since it takes operators
away. Each result is checked on its own: one that onnx's checker or onnxruntime refuses is left out and named. What the
whole computes is compared with the original afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stn_infer.errors import ModelError, one_line
from stn_infer.fusion.basis import canonical_basis
from stn_infer.fusion.samplers import (
    CUSTOM,
    UNKNOWN,
    find_samplers,
    infer_facts,
    reads_nearest,
    sampler_settings,
    small_constants,
)
from stn_infer.proto.session import Stored, open_session
from stn_infer.proto.traversal import every_node, nested_nodes, opset_of, tensors_of
from stn_infer.repairs.opset import NotRepairable, lower_opset, raise_opset
from stn_infer.samplers import spell_mode

#: The newest that onnxruntime 1.31 reads.
NEWEST_OPSET, NEWEST_IR = 26, 13
_TRAP_FREE_OPSET = 19
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Repair:
    """One thing that was mended, or that could not be.

    Attributes:
        code: of the finding that it answers.
        message: one clause: what was done; or why it was not.
        done: which of the two.
    """

    code: str
    message: str
    done: bool = True


Step = Callable[[onnx.ModelProto], tuple[onnx.ModelProto, list[Repair]]]


def repair(model: onnx.ModelProto, steps: Mapping[str, Step]) -> tuple[onnx.ModelProto, tuple[Repair, ...]]:
    """Make each of ``steps`` (``BEFORE`` or ``AFTER`` the pass) that applies and passes its check.

    Returns:
        (a changed copy, or ``model`` itself where there was nothing to do; what was done and what was not).
    """
    report: list[Repair] = []
    for code, step in steps.items():
        try:
            changed, done = step(model)
            if done:
                check(changed, model)
        except NotRepairable as refusal:
            report.append(Repair(code, str(refusal), done=False))
            continue
        model = changed if done else model
        report += done
    return model, tuple(report)


def check(changed: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Refuse what onnxruntime refuses, or onnx's checker, if it did not refuse the file before.

    Raises:
        NotRepairable: with the reason.
    """
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


def drop_default_inputs(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Repair]]:
    """Weights that are listed as inputs too, as IR versions before 4 had to, become constants."""
    weights = {tensor.name for tensor in model.graph.initializer}
    listed = [value for value in model.graph.input if value.name in weights]
    if not listed or model.ir_version >= 4:
        return model, []
    changed = _copy(model)
    kept = [value for value in model.graph.input if value.name not in weights]
    del changed.graph.input[:]
    changed.graph.input.extend(kept)
    changed.ir_version = 4
    return changed, [Repair("weights-as-inputs", f"{len(listed)} weights are no longer inputs; IR version 4")]


def standard_samplers(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Repair]]:
    """Custom samplers become GridSample, and the file's opset at least 16.

    Raises:
        NotRepairable: mmdeploy's runtime samples bicubic as bilinear, a function takes a sampler's settings as
            attributes, or the opset can't be raised.
    """
    changed = _copy(model)
    count = 0
    constants = small_constants(model)
    graphs: list[tuple[Any, dict[str, int]]] = [(changed.graph.node, constants)]
    graphs += [(function.node, {}) for function in changed.functions]  # where the main graph's names mean nothing
    for node, known in ((node, known) for nodes, known in graphs for node in nested_nodes(nodes)):
        settings = sampler_settings(node, known)
        old = node.domain in ("", "ai.onnx") and opset_of(model) < 16
        if settings is None or not (old or (node.domain, node.op_type) in CUSTOM):
            continue
        mode, padding, aligned, _ = settings
        if any(attribute.ref_attr_name for attribute in node.attribute):
            raise NotRepairable(f"a function takes the settings of {node.name or node.output[0]!r} as attributes")
        if node.domain == "mmdeploy" and mode == "bicubic":
            raise NotRepairable(f"{node.name!r} asks mmdeploy for bicubic, and mmdeploy's kernels compute bilinear")
        count += 1
        inputs = list(node.input[:2])
        node.op_type, node.domain = "GridSample", ""
        del node.attribute[:], node.input[:]
        node.input.extend(inputs)
        for key, value in (
            ("mode", spell_mode(mode, opset_of(model))),
            ("padding_mode", padding),
            ("align_corners", int(aligned)),
        ):
            node.attribute.append(helper.make_attribute(key, value))
    if not count:
        return model, []
    done = [Repair("custom-sampler", f"{count} custom samplers are the standard GridSample now")]
    if opset_of(model) < 16:
        changed = raise_opset(changed, 16)
        done.append(Repair("custom-sampler", f"opset {opset_of(model)} raised to 16, the first that has GridSample"))
    _drop_unused_domains(changed)
    return changed, done


def lower_versions(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Repair]]:
    """An opset or IR version that onnxruntime doesn't read yet is lowered where the file means the same there.

    Raises:
        NotRepairable: an operator is newer or was revised, or there are tensors of a type that is newer.
    """
    opset, ir_version = opset_of(model), model.ir_version
    done: list[Repair] = []
    changed = model
    if opset > NEWEST_OPSET:
        changed = lower_opset(changed, NEWEST_OPSET)
        done.append(
            Repair("opset-too-new", f"opset {opset} lowered to {NEWEST_OPSET}: every operator is the same there")
        )
    if ir_version > NEWEST_IR:
        newest = max((tensor.data_type for tensor in tensors_of(model)), default=0)
        if newest > TensorProto.INT2:
            raise NotRepairable(f"it holds tensors of type {TensorProto.DataType.Name(newest)}, new in IR version 14")
        changed = _copy(changed)
        changed.ir_version = NEWEST_IR
        done.append(Repair("ir-too-new", f"IR version {ir_version} lowered to {NEWEST_IR}"))
    return changed, done


def plain_affine_grids(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Repair]]:
    """AffineGrid nodes that the pass left become theta · mesh, which every runtime has and every opset.

    Raises:
        NotRepairable: the size of the grid is not fixed, or one pixel along an axis.
    """
    nodes = [node for node in model.graph.node if node.op_type == "AffineGrid" and node.domain in ("", "ai.onnx")]
    if not nodes:
        return model, []
    facts = infer_facts(_without_defaults(model))
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    changed = _copy(model)
    kept: list[onnx.NodeProto] = []
    for node in changed.graph.node:
        if node.op_type != "AffineGrid" or node.domain not in ("", "ai.onnx"):
            kept.append(node)
            continue
        grid, theta = facts.get(node.output[0], UNKNOWN), facts.get(node.input[0], UNKNOWN)
        sizes = (grid.dims or ())[1:-1]
        if not sizes or any(size is None or size < 2 for size in sizes) or theta.elem_type != TensorProto.FLOAT:
            raise NotRepairable(f"the size of AffineGrid {node.name or node.output[0]!r} is not fixed in the file")
        kept += _product(node, [size for size in sizes if size is not None], changed, names)
    copies = [_copied(node) for node in kept]
    del changed.graph.node[:]
    changed.graph.node.extend(copies)
    return changed, [Repair("affine-grid", f"{len(nodes)} AffineGrid written as a matrix product with a constant mesh")]


def _without_defaults(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which what a caller may override has no value."""
    copy = _copy(model)
    inputs = {value.name for value in model.graph.input}
    for index in reversed(range(len(copy.graph.initializer))):
        if copy.graph.initializer[index].name in inputs:
            del copy.graph.initializer[index]
    return copy


def _product(node: onnx.NodeProto, sizes: list[int], model: onnx.ModelProto, names: set[str]) -> list[onnx.NodeProto]:
    """The nodes that compute what AffineGrid does; their constants go into ``model``."""
    corners = any(attribute.name == "align_corners" and attribute.i for attribute in node.attribute)
    mesh = canonical_basis(sizes, corners).astype(np.float32)
    output = node.output[0]
    names_of = {part: _fresh(names, f"{output}_{part}") for part in ("mesh", "shape", "points", "moved")}
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(mesh, names_of["mesh"]),
            numpy_helper.from_array(np.array([0, *sizes, len(sizes)]), names_of["shape"]),
        ]
    )
    return [
        helper.make_node("MatMul", [node.input[0], names_of["mesh"]], [names_of["points"]], name=names_of["points"]),
        helper.make_node(
            "Transpose", [names_of["points"]], [names_of["moved"]], name=names_of["moved"], perm=[0, 2, 1]
        ),
        helper.make_node("Reshape", [names_of["moved"], names_of["shape"]], [output], name=node.name),
    ]


def leave_trap(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Repair]]:
    """A file whose samplers TensorRT up to 11.1 takes for nearest is brought to opset 19, where they are ``bilinear``.

    Raises:
        NotRepairable: an operator in it is newer, or means something else there.
    """
    if opset_of(model) < 20:
        return model, []
    facts = infer_facts(model)
    caught = [sampler for sampler in find_samplers(model) if reads_nearest(model, sampler, facts)]
    if not caught:
        return model, []
    lowered = lower_opset(model, _TRAP_FREE_OPSET)
    return lowered, [
        Repair("opset-20-trap", f"opset {opset_of(model)} lowered to {_TRAP_FREE_OPSET}, which spells mode 'bilinear'")
    ]


def one_type(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[Repair]]:
    """Image and grid of a sampler get one type, the wider of the two; the output keeps its own."""
    facts = infer_facts(model)
    names = {name for node in model.graph.node for name in (*node.input, *node.output)}
    changed = _copy(model)
    nodes: list[onnx.NodeProto] = []
    done: list[Repair] = []
    for node in changed.graph.node:
        image, grid = (facts.get(name, UNKNOWN).elem_type for name in (*node.input[:2], "", "")[:2])
        floats = (TensorProto.FLOAT, *_HALVES)
        plain = node.op_type == "GridSample" and node.domain in ("", "ai.onnx") and len(node.input) > 1
        if not plain or image == grid or image not in floats or grid not in floats:
            nodes.append(node)
            continue
        before, after = [], []
        for index, kind in enumerate((image, grid)):
            if kind != TensorProto.FLOAT:
                name = _fresh(names, f"{node.input[index]}_float")
                before.append(helper.make_node("Cast", [node.input[index]], [name], to=TensorProto.FLOAT))
                node.input[index] = name
        if image != TensorProto.FLOAT:
            output, name = node.output[0], _fresh(names, f"{node.output[0]}_float")
            node.output[0] = name
            after.append(helper.make_node("Cast", [name], [output], to=image))
        nodes += [*before, node, *after]
        done.append(Repair("mixed-types", f"{node.name or node.output[0]!r} samples in float32, image and grid"))
    if not done:
        return model, []
    copies = [_copied(node) for node in nodes]
    del changed.graph.node[:], changed.graph.value_info[:]
    changed.graph.node.extend(copies)
    return changed, done


#: What is repaired before the pass and after it, in this order, by the code of the finding.
BEFORE: dict[str, Step] = {
    "opset-too-new": lower_versions,
    "weights-as-inputs": drop_default_inputs,
    "custom-sampler": standard_samplers,
}
AFTER: dict[str, Step] = {"affine-grid": plain_affine_grids, "opset-20-trap": leave_trap, "mixed-types": one_type}


def _fresh(names: set[str], name: str) -> str:
    while name in names:
        name += "_"
    names.add(name)
    return name


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    used = {node.domain for node in every_node(model)}
    for entry in [
        entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx") and entry.domain not in used
    ]:
        model.opset_import.remove(entry)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy
