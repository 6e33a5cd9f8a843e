"""``refit`` and ``stn-infer refit``: other weights in an engine, with a stand-in for TensorRT that stores weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import stn_infer
from stn_infer.backends.tensorrt import refitting, runtime
from stn_infer.backends.tensorrt.engine_cache import EngineKey, Sidecar, load_engine, sidecar_path, write_engine
from stn_infer.backends.tensorrt.identity import hashes, structure, weight_hashes
from stn_infer.backends.tensorrt.runtime import Gpu, TensorRT
from stn_infer.cli.main import main
from stn_infer.errors import MissingDependencyError
from stn_infer.metadata import ModelMetadata
from tests.support.tensorrt_builder import Recorder, on_gpu
from tests.support.tensorrt_engines import Module, content_of, plan_of

GPU = Gpu("a GPU", "sm89")
SCALE, BIAS = [1.5, -2.0, 0.25], [0.0, 1.0, 2.0]


def network(scale: list[float], labels: tuple[str, ...] = (), shape: int = 3) -> onnx.ModelProto:
    """y = batch_norm(x) * scale + bias, and a Reshape whose shape is a weight, too."""
    weights = {"scale": scale, "bias": BIAS, "gamma": [1, 1, 1], "beta": [0, 0, 0], "mean": [0, 0, 0], "var": [1, 1, 1]}
    nodes = [
        helper.make_node("BatchNormalization", ["x", "gamma", "beta", "mean", "var"], ["normal"]),
        helper.make_node("Mul", ["normal", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "bias"], ["added"]),
        helper.make_node("Reshape", ["added", "shape"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(np.array(values, np.float32), name) for name, values in weights.items()]
        + [numpy_helper.from_array(np.array([-1, shape], np.int64), "shape")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, value in ModelMetadata(labels=labels).to_props().items():
        made.metadata_props.add(key=key, value=value)
    return made


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Module:
    """A TensorRT 11.4 on a machine with a GPU; m.engine of old.onnx, and new.onnx with another scale."""
    made = Module()
    monkeypatch.setattr(runtime, "load_runtime", lambda name: TensorRT(name, made, made.version))
    monkeypatch.setattr(runtime, "current_gpu", lambda index: GPU)
    monkeypatch.setattr(refitting, "current_device", lambda index: nullcontext())
    monkeypatch.setenv("STN_TRIAL_SECONDS", "0")
    monkeypatch.chdir(tmp_path)
    onnx.save(network(SCALE), "old.onnx")
    onnx.save(network([3.0, 4.0, 5.0], labels=("a", "b", "c")), "new.onnx")
    engine_of(network(SCALE))
    return made


def engine_of(model: onnx.ModelProto, **change: Any) -> None:
    """m.engine with its sidecar; the batch normalization has become two weights of other names."""
    plan = plan_of(weights={"scale": SCALE, "bias": BIAS}, refittable=True, warns=["a warning"])
    graph, weights = hashes(model)
    key = EngineKey(
        graph, weights, "tensorrt", "11.4.0.106", GPU.name, GPU.sm, "", (), "float32", ("refittable",)
    )  # fmt: skip
    digest = hashlib.sha256(plan).hexdigest()
    sidecar = Sidecar(
        replace(key, **change), digest, len(plan), "old.onnx", "2026", 9.0, (), {}, {"x": "n"},
        structure(model), weight_hashes(model),
    )  # fmt: skip
    write_engine(Path("m.engine"), plan, sidecar)


def refitted(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["refit", *map(str, arguments)])


def test_an_engine_has_the_new_weights_and_what_build_would_record(module: Module) -> None:
    old, before = load_engine(Path("m.engine"))
    result = refitted("m.engine", "new.onnx", "-o", "new.engine", "-v")
    assert result.exit_code == 0, result.output
    assert result.stderr == "tensorrt: a warning\n"
    assert "refitted with new.onnx in" in result.stdout and ": 1 of 7 weights are new" in result.stdout
    data, sidecar = load_engine(Path("new.engine"))
    assert content_of(data)["weights"] == {"scale": [3.0, 4.0, 5.0], "bias": BIAS}
    assert sidecar is not None and before is not None
    new = onnx.load("new.onnx")
    assert (sidecar.key.graph_sha256, sidecar.key.weights_sha256) == hashes(new)
    assert replace(sidecar.key, graph_sha256="", weights_sha256="") == replace(
        before.key, graph_sha256="", weights_sha256=""
    )
    assert ModelMetadata.from_props(sidecar.metadata).labels == ("a", "b", "c")
    assert (sidecar.source, sidecar.batch_axes, sidecar.engine_size) == ("new.onnx", {"x": "n"}, len(data))
    assert sidecar.weights == weight_hashes(new) and sidecar.structure == before.structure
    assert load_engine(Path("m.engine")) == (old, before)


def test_back_again_in_place_and_json(module: Module) -> None:
    stn_infer.refit("m.engine", "new.onnx", "m.engine")
    report = stn_infer.refit(Path("m.engine"), Path("old.onnx"), Path("m.engine"))
    assert report.changed == ("scale",) and content_of(report.data)["weights"]["scale"] == SCALE
    found = json.loads(refitted("m.engine", "old.onnx", "-o", "m.engine", "--json").stdout)
    assert (found["path"], found["changed"], found["warnings"]) == ("m.engine", [], ["a warning"])
    assert "data" not in found and found["sidecar"]["source"] == "old.onnx"


def test_a_batch_normalization_is_left_to_the_parser(module: Module) -> None:
    other = network(SCALE)
    next(it for it in other.graph.initializer if it.name == "gamma").raw_data = np.float32([2, 2, 2]).tobytes()
    onnx.save(other, "new.onnx")
    assert stn_infer.refit("m.engine", "new.onnx", "new.engine").changed == ("gamma",)


def without_sidecar() -> None:
    sidecar_path(Path("m.engine")).unlink()


def graph() -> None:
    other = network(SCALE)
    other.graph.node[2].op_type = "Sub"
    onnx.save(other, "new.onnx")


def cut() -> None:
    path = Path("m.engine")
    path.write_bytes(path.read_bytes()[:-1])


def not_stored() -> None:
    plan = plan_of(weights={"scale": SCALE, "bias": BIAS, "another": [1.0]}, refittable=True)
    _, sidecar = load_engine(Path("m.engine"))
    assert sidecar is not None
    digest = hashlib.sha256(plan).hexdigest()
    write_engine(Path("m.engine"), plan, replace(sidecar, engine_sha256=digest, engine_size=len(plan)))


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no sidecar": (without_sidecar, "m.engine has no sidecar, which says what it was built from; build it again"),
    "not refittable": (
        lambda: engine_of(network(SCALE), flags=("tf32",)),
        "m.engine takes no other weights; build it again: stn-infer build --refittable",
    ),
    "another graph": (
        graph,
        "new.onnx differs from old.onnx, from which m.engine was built, in more than weights; build an engine of it",
    ),
    "another number of weights": (
        lambda: onnx.save(network([1.0]), "new.onnx"),
        "new.onnx differs from old.onnx, from which m.engine was built, in more than weights",
    ),
    "a weight that is part of the plan": (
        lambda: onnx.save(network(SCALE, shape=-3), "new.onnx"),
        "TensorRT 11.4.0.106 cannot replace 'shape', which new.onnx changes: the engine was built for its value; build",
    ),
    "a weight that is not given": (not_stored, "cannot take the weights of new.onnx: weights another are missing"),
    "another version": (
        lambda: engine_of(network(SCALE), runtime_version="11.3.0"),
        "m.engine was built with TensorRT 11.3.0, this is 11.4.0.106; build it again",
    ),
    "another GPU": (lambda: engine_of(network(SCALE), sm="sm90"), "m.engine was built for a GPU (sm90), this is a GPU"),
    "truncated": (cut, "m.engine has "),
    "no model": (lambda: Path("new.onnx").unlink(), "new.onnx does not exist; expected an ONNX file"),
    "not a model": (lambda: Path("new.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40)), "new.onnx is a PNG image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_refitted_is_one_line_and_writes_nothing(module: Module, case: str) -> None:
    make, message = REFUSED[case]
    make()
    result = refitted("m.engine", "new.onnx", "-o", "new.engine")
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not Path("new.engine").exists() and not Path("new.engine.json").exists()


def test_what_the_machine_lacks(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refitted("m.engine", "new.onnx", "-o", "new.engine", "--device", "cpu").exit_code == 2
    assert "no such folder" in refitted("m.engine", "new.onnx", "-o", "none/new.engine").stderr
    monkeypatch.setattr(Module, "OnnxParserRefitter", property())
    result = refitted("m.engine", "new.onnx", "-o", "new.engine")
    assert "TensorRT 11.4.0.106 cannot refit engines from ONNX files; a newer one is required" in result.stderr

    def missing(index: int) -> Gpu:
        raise MissingDependencyError("a GPU is required (cuda:0)")

    monkeypatch.setattr(runtime, "current_gpu", missing)
    assert "a GPU is required (cuda:0)" in refitted("m.engine", "new.onnx", "-o", "new.engine").stderr


def test_weights_that_tensorrt_fails_to_take(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.tensorrt_engines.Refitter.refit_cuda_engine", lambda self: False)
    result = refitted("m.engine", "new.onnx", "-o", "new.engine")
    assert result.exit_code == 1 and "cannot refit the engine with new.onnx: it gives no reason" in result.stderr


def test_a_refittable_build_records_the_weights(
    module: Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    recorder = Recorder(layers=["SHUFFLE"])
    on_gpu(monkeypatch, lambda: TensorRT("tensorrt", recorder, "11.4.0.106"), lambda: GPU)
    options = stn_infer.BuildOptions(plugin=False, refittable=True)
    sidecar = stn_infer.build("old.onnx", "b.engine", options, cache=Path("cache")).sidecar
    assert sidecar.structure == structure(network(SCALE)) and sidecar.weights == weight_hashes(network(SCALE))
    plain = stn_infer.build(
        "old.onnx", "c.engine", replace(options, refittable=False), cache=tmp_path / "cache"
    ).sidecar
    assert (plain.structure, plain.weights) == ("", {})


def test_tensorrt_rtx_needs_a_gpu_to_build_a_refittable_engine(rtx: TensorRT, tmp_path: Path) -> None:
    onnx.save(network(SCALE), tmp_path / "m.onnx")
    options = stn_infer.BuildOptions.parse("tensorrt-rtx", "sm89", ["1:2:4"], refittable=True)
    with pytest.raises(stn_infer.StnInferError, match="refittable engines need a GPU to be built on") as caught:
        stn_infer.build(tmp_path / "m.onnx", tmp_path / "m.engine", options, cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)
