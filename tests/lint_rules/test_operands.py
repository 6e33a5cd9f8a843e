"""``wrong-shape``: operands of every op of domain ``stn`` that do not fit its grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stn_infer.api.lint import lint
from stn_infer.budget import Budget
from stn_infer.fusion.op import LATTICE, OP_TYPES, SAMPLER, SPATIAL, TENSOR_PRODUCT
from stn_infer.lint_rules.context import LintFinding
from tests.support.onnx_files import F32, make
from tests.support.op_models import feeds, one_node
from tests.support.wrong_files import one_transformer


def wrong(model: onnx.ModelProto, folder: Path) -> list[LintFinding]:
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    found = lint(folder / "model.onnx", budget=Budget(seconds=0)).findings
    return [finding for finding in found if finding.code == "wrong-shape"]


def stored(op: str, **other: Any) -> onnx.ModelProto:
    """One node, its constants stored; ``other``: arrays, or shapes of inputs, in place of those that fit."""
    given = feeds(op)
    model = one_node(op, given)
    constants = [name for name in given if name not in ("input", "theta", "grid")]
    for value in model.graph.input:
        shape = other.get(value.name, given[value.name].shape)
        if value.name not in constants and not isinstance(shape, np.ndarray):
            value.CopyFrom(helper.make_tensor_value_info(value.name, F32, ["batch", *shape[1:]]))
    for name in constants:
        model.graph.initializer.append(numpy_helper.from_array(other.get(name, given[name]), name))
    kept = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


@pytest.mark.parametrize("op", OP_TYPES)
def test_what_fits_is_not_reported(op: str, tmp_path: Path) -> None:
    assert wrong(stored(op), tmp_path) == []


def with_index(value: int) -> np.ndarray[Any, Any]:
    index = feeds(LATTICE)["index"].copy()
    index[1, 3] = value
    return index


F = np.float32
CASES: list[tuple[str, dict[str, Any], str, str]] = [
    (SPATIAL, {"theta": (2, 2, 5)}, "theta", "theta has the shape [?, 2, 5], expected [?, 2, 6] for grids [4, 5]"),
    (
        *(TENSOR_PRODUCT, {"theta": (2, 2, 7)}, "theta"),
        "theta has the shape [?, 2, 7], expected [?, 2, 6] for grids [4, 5] and a lattice [1, 3, 2]",
    ),
    (
        *(TENSOR_PRODUCT, {"rows": np.ones((3, 4), F)}, "rows"),
        "rows has the shape [3, 4], expected [4, 3] for grids [4, 5] and a lattice [1, 3, 2]",
    ),
    (
        *(TENSOR_PRODUCT, {"columns": np.ones((5, 2), F)}, "columns"),
        "columns has the shape [5, 2], expected [2, 5] for grids [4, 5] and a lattice [1, 3, 2]",
    ),
    (
        *(TENSOR_PRODUCT, {"planes": np.ones((2, 1), F)}, "planes"),
        "planes has the shape [2, 1], expected [1, 1] for grids [4, 5] and a lattice [1, 3, 2]",
    ),
    (
        *(TENSOR_PRODUCT, {"input": (2, 3, 4, 6, 7)}, "input"),
        "image has the shape [?, 3, 4, 6, 7], expected [?, ?, ?, ?] for grids [4, 5] and a lattice [1, 3, 2]",
    ),
    (LATTICE, {"theta": (2, 3, 7)}, "theta", "theta has the shape [?, 3, 7], expected [?, 2, ?] for grids [4, 5]"),
    (
        *(LATTICE, {"weight": np.ones((4, 19), F)}, "weight"),
        "weight has the shape [4, 19], expected [4, 20] for grids [4, 5]",
    ),
    (
        *(LATTICE, {"weight": np.ones((3, 20), F)}, "weight"),
        "weight has the shape [3, 20], expected [4, 20] for grids [4, 5]",
    ),
    (LATTICE, {"index": with_index(7)}, "index", "index contains 7, expected 0 to 6, the points of theta"),
    (LATTICE, {"index": with_index(-1)}, "index", "index contains -1, expected 0 to 6, the points of theta"),
    (SAMPLER, {"grid": (2, 4, 5, 3)}, "grid", "grid has the shape [?, 4, 5, 3], expected [?, ?, ?, 2] for images"),
    (
        SAMPLER,
        {"input": (2, 3, 4, 6, 7)},
        "grid",
        "grid has the shape [?, 4, 5, 2], expected [?, ?, ?, ?, 3] for volumes",
    ),
]


@pytest.mark.parametrize(("op", "other", "tensor", "message"), CASES)
def test_what_does_not_fit(op: str, other: dict[str, Any], tensor: str, message: str, tmp_path: Path) -> None:
    found = wrong(stored(op, **other), tmp_path)
    assert [(finding.severity, finding.tensor, finding.message) for finding in found] == [("error", tensor, message)]


def test_more_taps_than_kernels_have(tmp_path: Path) -> None:
    many = {"index": np.zeros((65, 20), np.int32), "weight": np.ones((65, 20), F)}
    (found,) = wrong(stored(LATTICE, **many), tmp_path)
    assert found.message == "index has 65 rows, expected at most 64 points per pixel"


def test_attributes_of_a_lattice_that_contradict_each_other(tmp_path: Path) -> None:
    model = stored(TENSOR_PRODUCT)
    (shape,) = (entry for entry in model.graph.node[0].attribute if entry.name == "theta_shape")
    shape.ints[3] = 5
    (found,) = wrong(model, tmp_path)
    assert found.message == (
        "theta_shape is [0, 2, 1, 5] and lattice_shape [0, 2, 1, 3, 2], expected [0, 2, 1, 6] and [0, 2, 1, 3, 2] "
        "for grids [4, 5]"
    )


def test_nodes_in_subgraphs_are_examined(tmp_path: Path) -> None:
    inner = stored(LATTICE, weight=np.ones((4, 19), F))
    node, output = inner.graph.node[0], helper.make_tensor_value_info("output", F32, None)
    branches = {name: helper.make_graph([node], name, [], [output]) for name in ("then_branch", "else_branch")}
    choice = helper.make_node("If", ["yes"], ["y"], name="choice", **branches)
    inputs: dict[str, Any] = {
        "yes": (TensorProto.BOOL, []),
        "input": (F32, [2, 3, 6, 7]),
        "theta": (F32, [2, 2, 7]),
    }
    model = make([choice], inputs, {"y": (F32, [2, 3, 4, 5])}, list(inner.graph.initializer), domains=("stn",))
    model.functions.extend(inner.functions)
    assert {finding.node for finding in wrong(model, tmp_path)} == {"warp"}


@pytest.mark.parametrize(
    ("kind", "theta", "message"),
    [
        ("projective", [2, 7], "theta has the shape [?, 2, 7], expected [?, 3, 7] for grids [10, 12]"),
        ("projective", [3, 7], ""),
        ("affine", [3, 3], "theta has the shape [?, 3, 3], expected [?, 2, 3] for grids [10, 12]"),
    ],
)
def test_a_theta_of_other_rows_is_found(kind: Any, theta: list[int], message: str, tmp_path: Path) -> None:
    """The plain body of a quotient would divide the rows that there are, and give them to x and y alike."""
    model = one_transformer(kind, division=(0.5, (0.0, 0.0)) if kind == "projective" else None)
    model.graph.input[1].CopyFrom(helper.make_tensor_value_info("theta", F32, ["batch", *theta]))
    assert [finding.message for finding in wrong(model, tmp_path)] == ([message] if message else [])


def test_a_basis_of_other_points_is_found(tmp_path: Path) -> None:
    model = one_transformer("projective", division=(0.5, (0.0, 0.0)))
    basis = model.graph.initializer[0]
    basis.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(basis)[:, :-1]), "basis"))
    (finding,) = wrong(model, tmp_path)
    assert finding.severity == "error" and finding.tensor == "basis"
    assert finding.message == "basis has the shape [7, 119], expected [?, 120] for grids [10, 12]"
