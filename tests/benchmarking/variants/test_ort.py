"""onnxruntime's variants: a binding's first call, and CUDA graphs with a stand-in for the binding."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from stn_infer.api.bench import resolve_case
from stn_infer.backends.base import TensorSpec
from stn_infer.benchmarking.prepare.case import Setup, prepare
from stn_infer.benchmarking.request import Case, Method
from stn_infer.benchmarking.variants import ort as ort_variants

HEAD = '<ir_version: 9, opset_import: ["" : 17]> '


class Options:
    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def add_run_config_entry(self, name: str, value: str) -> None:
        self.entries[name] = value


class GraphSession:
    """A session with CUDA graphs: for each number it keeps what was bound first, and replays that for ever."""

    def __init__(self) -> None:
        self.graphs: dict[str, Any] = {}
        self.raw = self

    def io_binding(self) -> Any:
        inputs: list[Any] = []
        outputs: list[Any] = []
        return types.SimpleNamespace(
            inputs=inputs,
            outputs=outputs,
            bind_ortvalue_input=lambda name, value: inputs.append(value),
            bind_ortvalue_output=lambda name, value: outputs.append(value),
        )

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        return [feeds["x"] * 2]

    def run_with_iobinding(self, binding: Any, options: Options) -> None:
        kept = self.graphs.setdefault(options.entries.get("gpu_graph_id", "0"), binding)
        kept.outputs[0].array[...] = kept.inputs[0].array * 2


class Value:
    def __init__(self, array: Any) -> None:
        self.array = np.array(array)

    def numpy(self) -> Any:
        return self.array

    def update_inplace(self, array: Any) -> None:
        self.array[...] = array


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ort_variants.OrtVariant:
    import onnxruntime

    values = types.SimpleNamespace(
        ortvalue_from_numpy=lambda array, kind, index: Value(array),
        ortvalue_from_shape_and_type=lambda shape, dtype, kind, index: Value(np.zeros(shape, dtype)),
    )
    monkeypatch.setattr(onnxruntime, "OrtValue", values)
    monkeypatch.setattr(onnxruntime, "RunOptions", Options)
    session = GraphSession()
    spec = TensorSpec("x", (None, 3), np.dtype(np.float32))
    backend = types.SimpleNamespace(inputs=(spec,), outputs=(spec,), session=session, close=lambda: None)
    monkeypatch.setattr(ort_variants, "OrtBackend", lambda *given, **named: backend)
    monkeypatch.setattr(ort_variants, "onnx_file", lambda name, prepared: "model.onnx")
    setup = Setup(types.SimpleNamespace(cuts=()), "cuda:0", 1, Method())  # type: ignore[arg-type]
    return ort_variants.OrtVariant("ort-graph", setup)


def test_each_binding_has_a_cuda_graph_of_its_own(runner: ort_variants.OrtVariant) -> None:
    """onnxruntime replays the graph of a number whatever is bound: with one number, the first batch's outputs."""
    small, large = (np.full((count, 3), count, np.float32) for count in (1, 2))
    for array in (small, large):
        bound = runner.bind([array])
        for _ in range(2):
            np.testing.assert_array_equal(bound.outputs()[0], array * 2)
        assert not bound.concurrent and "bound" in bound.alone
    assert set(runner.backend.session.graphs) == {"1", "2"}  # 0 is onnxruntime's own


def test_binding_leaves_the_first_call_to_be_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from stn_infer.benchmarking.variants import ort as ort_variants

    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(HEAD + "g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"), path)
    prepared, _ = prepare(
        Case(str(path), batch_sizes=(2,)),
        tmp_path,
        resolve_case,
        files=frozenset(("plain", "portable")),
        tolerance=None,
        seed=0,
        say=lambda text: None,
    )
    runner = ort_variants.OrtVariant("ort-binding", Setup(prepared, "cpu", 1, Method()))
    ran: list[str] = []
    session = runner.backend.session

    class Watched:
        def run(self, *arguments: object) -> object:
            ran.append("run")
            return session.run(*arguments)

        def __getattr__(self, name: str) -> object:
            return getattr(session, name)

    monkeypatch.setattr(runner.backend, "_session", Watched())
    expected = prepared.expected(2)
    bound = runner.bind(expected.inputs)
    assert not ran
    assert expected.error(bound.outputs()) < 1e-4
    runner.close()
