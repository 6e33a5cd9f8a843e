"""The versions and attributes of this package's own ops in a file."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks.op_files import op_file
from stn_infer import plugin
from stn_infer.backends.ort import OrtBackend
from stn_infer.errors import ModelError
from stn_infer.fusion import op
from stn_infer.proto.check import check_structure
from stn_infer.proto.own_ops import ATTRIBUTES, DOMAIN
from stn_infer.samplers import SamplerSpec


def changed(**attributes: Any) -> onnx.ModelProto:
    """A file with a node of version 2; None removes an attribute."""
    model = op_file("projective", (1, 4, 4), np.ones((3, 16)), (4, 4), SamplerSpec(), w_min=0.5)
    node = model.graph.node[0]
    kept = [entry for entry in node.attribute if entry.name not in attributes]
    new = [onnx.helper.make_attribute(name, value) for name, value in attributes.items() if value is not None]
    del node.attribute[:]
    node.attribute.extend([*kept, *new])
    return model


def test_the_table_agrees_with_the_writer_and_with_the_library() -> None:
    assert DOMAIN == op.DOMAIN and tuple(ATTRIBUTES) == op.OP_TYPES
    assert {name: len(versions) for name, versions in ATTRIBUTES.items()} == plugin.OP_VERSIONS
    if plugin.available():
        known = plugin.load().stn_op_version
        assert {name: known(name.encode()) for name in ATTRIBUTES} == plugin.OP_VERSIONS
        assert known(b"Other") == known(None) == 0
    quotient = op.quotient_attributes(2)
    assert quotient.keys() - {"plugin_version"} == ATTRIBUTES[op.PROJECTIVE][1].keys() - ATTRIBUTES[op.PROJECTIVE][0]
    for name in ATTRIBUTES:
        function = op.function_proto(name, 18)
        assert ATTRIBUTES[name][0].keys() == set(function.attribute)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        (
            {"plugin_version": "3"},
            "is of version 3, and this stn-infer knows this op up to version 2; update",
        ),
        ({"plugin_version": "0"}, "has the plugin_version '0', expected a number from 1 on"),
        ({"plugin_version": "²"}, "expected a number from 1 on"),
        ({"plugin_version": "9" * 99}, "expected a number from 1 on"),
        ({"plugin_version": 2}, "expected a number from 1 on"),
        ({"plugin_version": "1"}, "has the attribute '(w_min|offset)', which version 1 does not have"),
        ({"plugin_version": None}, "has the attribute '(w_min|offset)', which version 1 does not have"),
        ({"tilt": 0.5}, "has the attribute 'tilt', which version 2 does not have"),
        ({"w_min": None}, "has no attribute 'w_min', which every node of version 2 has"),
        ({"offset": None}, "has no attribute 'offset'"),
        ({"w_min": 1}, "has an attribute 'w_min' that is not of type FLOAT"),
        ({"offset": 0.5}, "has an attribute 'offset' that is not of type FLOATS"),
        ({"w_min": math.nan}, "has the w_min nan, expected a number below infinity"),
        ({"w_min": math.inf}, "has the w_min inf, expected a number below infinity"),
        ({"offset": [0.0]}, r"has the offset \[0\], expected 2 finite numbers, one per axis of its grid"),
        ({"offset": [0.0, 0.5, 1.0]}, r"has the offset \[0, 0.5, 1\], expected 2 finite numbers"),
        ({"offset": [math.nan, 0.0]}, r"has the offset \[nan, 0\], expected 2 finite numbers"),
        ({"grid_shape": [0, 4, 4, 3]}, r"has the grid_shape \[0, 4, 4, 3\], expected \[0, H, W, 2\] or"),
        ({"grid_shape": [0, 16, 1]}, r"has the grid_shape \[0, 16, 1\], expected"),
        ({"align_corners": "1"}, "has an attribute 'align_corners' that is not of type INT"),
    ],
)
def test_what_a_newer_package_may_have_written_is_one_line(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=rf"^node 'transformer' \(ProjectiveTransformer\) .*{words}") as info:
        check_structure(changed(**attributes))
    assert "\n" not in str(info.value)


def test_nodes_in_functions_are_checked_and_other_domains_are_not() -> None:
    check_structure(changed())
    model = changed(plugin_version="3", tilt=1.0)
    (node,) = model.graph.node
    caller = onnx.helper.make_function(
        "own", "Warp", ["input", "theta", "basis"], ["output"], [node], [onnx.helper.make_opsetid("stn", 1)]
    )
    model.functions.append(caller)
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    del node.attribute[:]
    node.domain, node.op_type = "own", "Warp"
    with pytest.raises(ModelError, match="is of version 3"):
        check_structure(model)
    (inner,) = caller.node
    inner.domain = "other"
    model.functions[-1].CopyFrom(caller)
    model.functions[-1].opset_import[0].domain = "other"
    check_structure(model)


@pytest.mark.parametrize("library", [False, True])
def test_a_backend_reports_it(library: bool, tmp_path: Any) -> None:
    if library and not plugin.available():
        pytest.skip("the plugin library is not built: stn-infer plugin build")
    path = tmp_path / "newer.onnx"
    onnx.save(changed(plugin_version="3"), path)
    with pytest.raises(ModelError, match=r"newer.onnx: node .* is of version 3, .*; update stn-infer"):
        OrtBackend(path, plugin=library)
    if library:
        with pytest.raises(ModelError, match=r"the file has version 3 of this op, .*: update stn-infer") as info:
            OrtBackend(path.read_bytes(), plugin=True)
        assert "\n" not in str(info.value)
