"""CUDA graphs of onnxruntime, with its CPU kernels in place of CUDA's and streams without a device."""

from __future__ import annotations

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from stn_infer.backends.base import BatchingBackend, PixelBackend
from stn_infer.backends.graphs import MOST_GRAPHS
from stn_infer.backends.ort import OrtBackend, cuda_problem
from stn_infer.backends.ort_graphs import GraphedOrtBackend
from stn_infer.backends.slots import Streams
from stn_infer.errors import FallbackWarning, ModelError
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.rule import Preprocess
from tests.support.streams_standin import Inline, Late

HEAD = '<ir_version: 9, opset_import: ["" : 17]> '
TWO = "g (float[N, 3] x, float[N, 3] z) => (float[N, 3] sum, float[N, 3] same) { sum = Sub(x, z) same = Identity(x) }"
IMAGES = "g (float[N, 3, 6, 7] x) => (float[N, 3, 6, 7] y) { y = Neg(x) }"


def file(text: str) -> bytes:
    return onnx.parser.parse_model(HEAD + text).SerializeToString()


class GraphSession:
    """onnxruntime's rules for CUDA graphs, around a session on the CPU.

    A number's graph reads and writes what was bound when it was recorded, exists in one thread, and is recorded while
    no other call is on its way.
    """

    def __init__(self, raw: Any, fails: bool = False) -> None:
        self.raw, self.fails = raw, fails
        self.graphs: dict[tuple[int, str], Any] = {}
        self.inside = 0
        self.recorded_beside: list[int] = []

    def run(self, outputs: object, feeds: Any, options: Any) -> Any:
        assert options.get_run_config_entry("gpu_graph_id") == "-1"
        self.inside += 1
        try:
            time.sleep(0.001)
            return self.raw.run(outputs, feeds)
        finally:
            self.inside -= 1

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        key = threading.get_ident(), options.get_run_config_entry("gpu_graph_id")
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        if key not in self.graphs:
            self.recorded_beside.append(self.inside)
            if self.fails:
                raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 900: operation not permitted")
        self.raw.run_with_iobinding(self.graphs.setdefault(key, binding))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def opened(text: str, streams: Streams | None = None, fails: bool = False) -> tuple[GraphedOrtBackend, GraphSession]:
    backend = GraphedOrtBackend(file(text), "cpu", 1, plugin=False, streams=streams or Inline())
    session = backend.session
    session.raw = GraphSession(session.raw, fails)
    return backend, session.raw


def given(rows: int, number: float) -> dict[str, Any]:
    x = np.linspace(-number, number, 3 * rows, dtype=np.float32).reshape(rows, 3)
    return {"x": x, "z": np.full_like(x, number / 2)}


def check(backend: OrtBackend, rows: int, number: float) -> None:
    feeds = given(rows, number)
    found = backend.run(feeds)
    np.testing.assert_array_equal(found["sum"], feeds["x"] - feeds["z"])
    np.testing.assert_array_equal(found["same"], feeds["x"])


def test_a_shape_that_comes_again_gets_a_graph_of_its_own() -> None:
    backend, session = opened(TWO)
    for number in range(1, 6):
        check(backend, 4, number)
        check(backend, 2, number)
    assert sorted(number for _, number in session.graphs) == ["1", "2"]  # 0 is onnxruntime's own
    assert len({thread for thread, _ in session.graphs}) == 1
    check(backend, 0, 1.0)
    assert isinstance(backend, BatchingBackend) and isinstance(backend, PixelBackend) and backend.in_flight == 3
    assert backend.describe()["CUDA graphs"] == "yes"


@pytest.mark.parametrize("seed", range(3))
def test_calls_from_several_threads_get_their_own_outputs(seed: int) -> None:
    streams = Late(seed=seed)
    backend, session = opened(TWO, streams)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda number: check(backend, 6 if number % 5 else 4, number + 1), range(40)))
    assert streams.errors == [] and len(session.graphs) == 2
    assert session.recorded_beside == [0, 0], "other calls were on their way"


def test_without_copies_of_the_outputs_calls_get_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The streams run late enough to show it."""
    monkeypatch.setattr("stn_infer.backends.ort_graphs.handed_over", lambda outputs, slot: list(outputs))
    backend, _ = opened(TWO, Late(seconds=0.01))
    with ThreadPoolExecutor(5) as pool, pytest.raises(AssertionError):
        list(pool.map(lambda number: check(backend, 6, number + 1), range(30)))


def test_graphs_have_a_limit() -> None:
    backend, session = opened(TWO)
    for _ in range(3):
        for rows in range(1, MOST_GRAPHS + 3):
            check(backend, rows, rows)
    assert len(session.graphs) == MOST_GRAPHS


def test_pixels_are_normalized_into_the_graphs_memory() -> None:
    backend, session = opened(IMAGES)
    rule = Preprocess("rgb", mean=(0.4, 0.5, 0.6), gamma=2.0)
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (2, 6, 7, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
        pixels = pixels if number % 2 else np.ascontiguousarray(pixels)
        np.testing.assert_allclose(backend.run_pixels(pixels, rule)["y"], -normalize(pixels, rule), rtol=1e-6)
    assert len(session.graphs) == 1


def test_a_model_that_cannot_be_recorded_runs_without_graphs_and_says_so_once() -> None:
    backend, session = opened(TWO, fails=True)
    check(backend, 4, 1)
    text = "^the model runs without CUDA graphs: onnxruntime fails while running the model on .*: CUDA failure 900"
    with pytest.warns(FallbackWarning, match=text):
        check(backend, 4, 2)
    assert backend.session.raw is not session, "a session that failed while it recorded is not used again"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3, 6):
            check(backend, 4, number)
    assert backend.describe()["CUDA graphs"].startswith("no: onnxruntime fails")


def test_a_model_that_onnxruntime_does_not_open_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where an operator has no CUDA kernel."""
    first = OrtBackend.__init__

    def init(self: Any, *arguments: Any, cuda_options: Any = None, **named: Any) -> None:
        if cuda_options:
            assert cuda_options == {"enable_cuda_graph": "1", "user_compute_stream": "0"}
            raise ModelError("onnxruntime rejects the model: This session cannot use the graph capture feature")
        first(self, *arguments, **named)

    monkeypatch.setattr(OrtBackend, "__init__", init)
    with pytest.warns(FallbackWarning, match="runs without CUDA graphs: onnxruntime rejects the model: This session"):
        backend = GraphedOrtBackend(file(TWO), "cpu", 1, plugin=False, streams=Inline())
    for number in range(1, 4):
        check(backend, 3, number)


def test_dynamic_sizes_get_no_graphs() -> None:
    backend = GraphedOrtBackend(file("g (float[N, M] x) => (float[N, M] y) { y = Neg(x) }"), "cpu", 1, streams=Inline())
    assert backend.describe()["CUDA graphs"] == "no: the model has inputs of dynamic sizes"
    assert backend.run({"x": np.ones((2, 5), np.float32)})["y"].shape == (2, 5)


def test_a_closed_backend_reports_it() -> None:
    backend, _ = opened(TWO)
    for number in range(3):
        check(backend, 2, number)
    backend.close()
    with pytest.raises(ModelError, match="closed"):
        backend.run(given(2, 1))


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    if (problem := cuda_problem()) is not None:
        pytest.skip(problem)
    backend = GraphedOrtBackend(file(TWO))
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda number: check(backend, 6 if number % 5 else 4, number + 1), range(300)))
    assert backend.graph_problem is None
