"""Loading ONNX files: damaged and hostile files give a one-sentence error, valid files load."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from stn_infer.errors import ModelError
from stn_infer.proto.load import load_model, parse_model, read_graph
from tests.support.hostile_files import HOSTILE
from tests.support.onnx_files import affine_model, constant

RUNTIME_ERRORS = {"unknown operator"}  # structurally valid; onnx and onnxruntime reject it


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - RUNTIME_ERRORS))
def test_rejected(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write, piece = HOSTILE[name]
    path = write(folder)
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert piece in message
    assert str(path) in message
    assert "\n" not in message and len(message) < 500


def test_a_valid_file_is_read_unchanged(tmp_path: Path) -> None:
    model = affine_model()
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    assert load_model(path) == model


def test_external_data_are_read_from_the_folder(tmp_path: Path) -> None:
    model = affine_model()
    path = tmp_path / "model.onnx"
    onnx.save(affine_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    assert (tmp_path / "weights.bin").stat().st_size > 700
    loaded = load_model(path)
    for tensor, wanted in zip(loaded.graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), numpy_helper.to_array(wanted))
    kept = read_graph(path).graph.initializer
    assert any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in kept)


def test_external_data_may_be_in_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    onnx.save(affine_model(), tmp_path / "m.onnx", save_as_external_data=True, location="data/w", size_threshold=64)
    assert load_model(tmp_path / "m.onnx").SerializeToString() == affine_model().SerializeToString()


def test_bytes_have_no_folder_for_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(affine_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    with pytest.raises(ModelError, match="give the file's path"):
        parse_model(path.read_bytes())


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    model = affine_model()
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    random.Random(1).shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "model.onnx")
    names = [node.name for node in load_model(tmp_path / "model.onnx").graph.node]
    assert names == [node.name for node in affine_model().graph.node]


def test_subgraphs_read_tensors_of_the_enclosing_graph(tmp_path: Path) -> None:
    then = helper.make_graph(
        [helper.make_node("Mul", ["y0", "half"], ["a"])], "then", [], [helper.make_tensor_value_info("a", 1, None)]
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["y0"], ["b"])], "else", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    model = affine_model()
    model.graph.node[-1].output[0] = "y0"
    model.graph.initializer.extend([constant(True, "yes"), constant(0.5, "half", np.float32)])
    model.graph.node.append(helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other))
    assert parse_model(model.SerializeToString()).graph.node[-1].op_type == "If"
    model.graph.node[-1].attribute[0].g.node[0].input[0] = "unknown"
    with pytest.raises(ModelError, match="reads 'unknown', which no node produces"):
        parse_model(model.SerializeToString())


@pytest.mark.parametrize(
    "kind", ["FLOAT16", "BFLOAT16", "INT4", "UINT4", "FLOAT4E2M1", "FLOAT8E4M3FN", "BOOL", "COMPLEX64"]
)
@pytest.mark.parametrize("raw", [True, False])
def test_the_data_length_of_every_type_is_checked(kind: str, raw: bool) -> None:
    number = onnx.TensorProto.DataType.Value(kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    values = np.zeros(5, dtype)
    tensor = (
        numpy_helper.from_array(values, "extra") if raw else helper.make_tensor("extra", number, [5], values.tolist())
    )
    assert tensor.data_type == number
    model = affine_model()
    model.graph.initializer.append(tensor)
    parse_model(model.SerializeToString())
    model.graph.initializer[-1].dims[0] = 9
    with pytest.raises(ModelError, match="extra"):
        parse_model(model.SerializeToString())


def test_flipped_bits_never_raise_another_exception() -> None:
    content = affine_model().SerializeToString()
    passed = 0
    for seed in range(3000):
        generator = random.Random(seed)
        damaged = bytearray(content)
        for _ in range(generator.choice([1, 1, 2, 5])):
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        try:
            parse_model(bytes(damaged))
            passed += 1
        except ModelError:
            continue
    assert 0 < passed < 3000


@pytest.mark.slow
def test_the_limit_on_inlined_nodes_grows_with_the_file() -> None:
    """A large model without functions is accepted."""
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(100_000)]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4]) for name in ("t0", "t100000")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    assert len(parse_model(model.SerializeToString()).graph.node) == 100_000
