"""Damaged and hostile ONNX files: each function writes one into a folder and gives its path back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.support.onnx_files import F32, affine_model, constant, make

Writer = Callable[[Path], Path]


def _save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def _weight(model: onnx.ModelProto, name: str) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _truncated(share: float) -> Writer:
    def write(folder: Path) -> Path:
        content = affine_model().SerializeToString()
        path = folder / "model.onnx"
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return write


def _text(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_text("this is not a protobuf, it is a sentence\n" * 40)
    return path


def _empty(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(b"")
    return path


def _folder(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.mkdir()
    return path


def _pipe(folder: Path) -> Path:
    path = folder / "model.onnx"
    os.mkfifo(path)
    return path


def _edited(edit: Callable[[onnx.ModelProto], None]) -> Writer:
    def write(folder: Path) -> Path:
        model = affine_model()
        edit(model)
        return _save(model, folder)

    return write


def _cycle(model: onnx.ModelProto) -> None:
    _node(model, "relu").input[0] = "points"


def _missing_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.remove(_weight(model, "fc_w"))


def _absurd_dims(model: onnx.ModelProto) -> None:
    del _weight(model, "fc_w").dims[:]
    _weight(model, "fc_w").dims.extend([2**20, 2**20])


def _overflowing_dims(model: onnx.ModelProto) -> None:
    del _weight(model, "fc_w").dims[:]
    _weight(model, "fc_w").dims.extend([2**62, 2**62, 0])


def _negative_dims(model: onnx.ModelProto) -> None:
    _weight(model, "fc_w").dims[0] = -6


def _short_data(model: onnx.ModelProto) -> None:
    _weight(model, "fc_w").raw_data = _weight(model, "fc_w").raw_data[:-4]


def _short_floats(model: onnx.ModelProto) -> None:
    tensor = _weight(model, "fc_w")
    tensor.ClearField("raw_data")
    tensor.float_data.extend([0.5] * 7)


def _absurd_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**50


def _negative_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -8


def _duplicate_output(model: onnx.ModelProto) -> None:
    _node(model, "relu").output[0] = "c"
    _node(model, "flatten").input[0] = "c"


def _duplicate_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(_weight(model, "fc_b"))


def _wrong_weight_type(model: onnx.ModelProto) -> None:
    _weight(model, "fc_w").data_type = 77


def _string_weight(model: onnx.ModelProto) -> None:
    _weight(model, "fc_w").data_type = TensorProto.STRING


def _no_opset(model: onnx.ModelProto) -> None:
    del model.opset_import[:]


def _negative_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = -3


def _nothing_makes_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "elsewhere"


def _wrong_attribute_type(model: onnx.ModelProto) -> None:
    node = _node(model, "sample")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("mode", 3))


def _too_few_inputs(model: onnx.ModelProto) -> None:
    del _node(model, "sample").input[1:]


def _invalid_value(model: onnx.ModelProto) -> None:
    (mode,) = (attribute for attribute in _node(model, "sample").attribute if attribute.name == "mode")
    mode.s = b"wild"


def _unheard_of_operator(model: onnx.ModelProto) -> None:
    _node(model, "relu").op_type = "Relux"


def _attribute_without_type(model: onnx.ModelProto) -> None:
    (mode,) = (attribute for attribute in _node(model, "sample").attribute if attribute.name == "mode")
    mode.ClearField("type")


def _attribute_of_a_caller(model: onnx.ModelProto) -> None:
    node = _node(model, "sample")
    (mode,) = (attribute for attribute in node.attribute if attribute.name == "mode")
    mode.ClearField("s")
    mode.ref_attr_name = "how"


def _attribute_without_graph(model: onnx.ModelProto) -> None:
    node = helper.make_node("If", ["t"], ["z"], name="if")
    node.attribute.append(onnx.AttributeProto(name="then_branch", type=onnx.AttributeProto.GRAPH))
    node.attribute.append(onnx.AttributeProto(name="else_branch", type=onnx.AttributeProto.GRAPH))
    model.graph.node.append(node)


def _bad_name(folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(affine_model().SerializeToString().replace(b"points", b"po\xff\xfets"))
    return path


def _external(location: str, *, offset: str = "0", length: str | None = None, prepare: Writer | None = None) -> Writer:
    def write(folder: Path) -> Path:
        secret = folder.parent / f"secret-{folder.name}"
        secret.write_bytes(bytes(6 * 32 * 4))
        if prepare is not None:
            prepare(folder)
        model = affine_model()
        tensor = _weight(model, "fc_w")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        where = location.format(secret=secret, name=secret.name)
        entries = {"location": where, "offset": offset} | ({} if length is None else {"length": length})
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        return _save(model, folder)

    return write


def _link_out(folder: Path) -> Path:
    path = folder / "weights"
    path.symlink_to(folder.parent / f"secret-{folder.name}")
    return path


def _folder_link_out(folder: Path) -> Path:
    path = folder / "inside"
    path.symlink_to(folder.parent, target_is_directory=True)
    return path


def _short_file(folder: Path) -> Path:
    path = folder / "weights"
    path.write_bytes(bytes(100))
    return path


def _pipe_data(folder: Path) -> Path:
    path = folder / "weights"
    os.mkfifo(path)
    return path


def _opset_version(version: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        model.opset_import[0].version = version

    return edit


def _batch_of_0(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 0


def _function(name: str, calls: list[str], opset: int = 18) -> onnx.FunctionProto:
    nodes = [
        helper.make_node(call, ["a" if i == 0 else f"b{i - 1}"], [f"b{i}"], domain="f") for i, call in enumerate(calls)
    ]
    nodes.append(helper.make_node("Identity", [nodes[-1].output[0] if nodes else "a"], ["z"]))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["a"], ["z"], nodes, imports)


def _with_functions(functions: list[onnx.FunctionProto], called: str) -> Writer:
    def write(folder: Path) -> Path:
        node = helper.make_node(called, ["x"], ["y"], domain="f", name="call")
        model = make([node], {"x": (F32, ["n", 4])}, {"y": (F32, ["n", 4])}, [], domains=("f",), functions=functions)
        return _save(model, folder)

    return write


def _nested(depth: int) -> Writer:
    def write(folder: Path) -> Path:
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["deep"])], "g", [], [helper.make_tensor_value_info("deep", F32, None)]
        )
        for level in range(depth):
            name = f"level{level}"
            node = (
                helper.make_node("If", ["yes"], [name], then_branch=graph, else_branch=graph)
                if level < 3
                else (helper.make_node("Loop", ["trips", "yes"], [name], body=_body(graph, level)))
            )
            graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info(name, F32, None)])
        last = graph.node[0]
        model = make(
            [last, helper.make_node("Identity", [last.output[0]], ["y"])],
            {"x": (F32, ["n", 4])},
            {"y": (F32, None)},
            [constant(True, "yes"), constant(1, "trips", np.int64)],
        )
        return _save(model, folder)

    return write


def _body(graph: onnx.GraphProto, level: int) -> onnx.GraphProto:
    nodes = [*graph.node, helper.make_node("Identity", ["go"], [f"on{level}"])]
    inputs = [
        helper.make_tensor_value_info("i", TensorProto.INT64, []),
        helper.make_tensor_value_info("go", TensorProto.BOOL, []),
    ]
    outputs = [helper.make_tensor_value_info(f"on{level}", TensorProto.BOOL, []), *graph.output]
    return helper.make_graph(nodes, "body", inputs, outputs)


#: name -> (writer, a piece of the one line that must come).
HOSTILE: dict[str, tuple[Writer, str]] = {
    "empty": (_empty, "not an ONNX file"),
    "text": (_text, "not an ONNX file"),
    "folder": (_folder, "is a folder"),
    "pipe": (_pipe, "not a regular file"),
    **{f"truncated at {share:.0%}": (_truncated(share), "") for share in (0.03, 0.3, 0.6, 0.97)},
    "cycle": (_edited(_cycle), "cycle"),
    "missing weight": (_edited(_missing_weight), "no node produces"),
    "absurd dimensions": (_edited(_absurd_dims), "holds 768"),
    "overflowing dimensions": (_edited(_overflowing_dims), "implausibly large dimensions"),
    "negative dimensions": (_edited(_negative_dims), "invalid dimensions"),
    "short data": (_edited(_short_data), "768 bytes, but holds 764"),
    "short floats": (_edited(_short_floats), "192 values, but holds 7"),
    "absurd input": (_edited(_absurd_input), "invalid dimension"),
    "negative input": (_edited(_negative_input), "invalid dimension"),
    "duplicate output": (_edited(_duplicate_output), "already exists"),
    "duplicate weight": (_edited(_duplicate_weight), "two initializers"),
    "unknown weight type": (_edited(_wrong_weight_type), "data type 77"),
    "strings for weights": (_edited(_string_weight), "192 strings"),
    "no opset": (_edited(_no_opset), "default operator set"),
    "negative opset": (_edited(_negative_opset), "operator set"),
    "output from nowhere": (_edited(_nothing_makes_output), "no node produces the output"),
    "wrong attribute type": (_edited(_wrong_attribute_type), "attribute 'mode' is not a STRING"),
    "too few inputs": (_edited(_too_few_inputs), "has 1 input, expected 2"),
    "unknown mode": (_edited(_invalid_value), "mode 'wild' is not one of"),
    "attribute without a type": (_edited(_attribute_without_type), "attribute 'mode' is not a STRING"),
    "attribute of a caller": (_edited(_attribute_of_a_caller), "references a caller's attribute"),
    "unknown operator": (_edited(_unheard_of_operator), ""),
    "attribute without its graph": (_edited(_attribute_without_graph), "has no value"),
    "name that is not text": (_bad_name, "UTF-8"),
    "data above the folder": (_external("../{name}"), "own folder"),
    "data above, by a detour": (_external("a/../../{name}"), "own folder"),
    "data at an absolute path": (_external("{secret}"), "own folder"),
    "data behind a link": (_external("weights", prepare=_link_out), "own folder"),
    "data behind a linked folder": (_external("inside/{name}", prepare=_folder_link_out), "own folder"),
    "data in the folder itself": (_external("."), "own folder"),
    "data nowhere": (_external("weights"), "missing"),
    "data without a place": (_external(""), "own folder"),
    "data too short": (_external("weights", prepare=_short_file), "which has 100"),
    "data in a pipe": (_external("weights", prepare=_pipe_data), "not a regular file"),
    "data from minus one": (_external("weights", offset="-1", prepare=_short_file), "not a number of bytes"),
    "data from beyond": (_external("weights", offset="9" * 17, prepare=_short_file), "which has 100"),
    "data of another length": (_external("weights", length="8", prepare=_short_file), "should be 768 bytes"),
    "function calling itself": (_with_functions([_function("a", ["a"])], "a"), "calls itself"),
    "functions calling each other": (
        _with_functions([_function("a", ["b"]), _function("b", ["a"])], "a"),
        "calls itself",
    ),
    "functions that explode": (
        _with_functions([_function(f"g{i}", [f"g{i + 1}"] * 8) for i in range(12)] + [_function("g12", [])], "g0"),
        "with functions inlined; the limit is",
    ),
    "functions of 100,000 nodes": (
        _with_functions([_function(f"g{i}", [f"g{i + 1}"] * 10) for i in range(5)] + [_function("g5", [])], "g0"),
        "its 57 nodes expand to 111,111 with functions inlined; the limit is 50,570",
    ),
    "opset beyond 32 bits": (_edited(_opset_version(2**40)), "imports operator set 'ai.onnx' version 1099511627776"),
    "function of an opset beyond 32 bits": (
        _with_functions([_function("a", [], opset=2**33)], "a"),
        "function 'a' imports operator set version 8589934592",
    ),
    "no outputs": (_edited(lambda model: model.graph.ClearField("output")), "no outputs"),
    "batch of 0": (_edited(_batch_of_0), "input 'x' has batch size 0"),
    "subgraphs too deep": (_nested(20), "nested"),
    "subgraphs far too deep": (_nested(28), "nested"),
}
