"""CUDA graphs of a model: recorded at the second call of a shape, replayed for all slots; what cannot be recorded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stn_infer.arrays import Array
from stn_infer.backends.eager import EagerBackend
from stn_infer.backends.graphs import MOST_GRAPHS, Graphs
from stn_infer.backends.slots import SLOTS, CudaStreams, Slot, Slots, Streams
from stn_infer.errors import FallbackWarning
from stn_infer.metadata import ModelMetadata
from stn_infer.preprocess.pixels import normalize
from stn_infer.preprocess.rule import Preprocess
from stn_infer.sources.load import LoadedModel
from tests.support.streams_standin import Inline, Late


class Counting(nn.Module):
    """Counts how often Python runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.arange(1.0, 13).reshape(3, 4) / 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return torch.relu(x @ self.weight - 1), x.flip(1)

    def expected(self, x: Array) -> list[Array]:
        weight = self.weight.detach().numpy()
        return [np.maximum(x @ weight - 1, 0), x[:, ::-1]]


class Waits(Counting):
    """Waits for the device, which no graph can hold."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = float(x.sum().item() * 0 + 1)
        first, second = super().forward(x)
        return first * scale, second


def rows(count: int, number: float = 1.0) -> Array:
    return np.linspace(-number, number, 3 * count, dtype=np.float32).reshape(count, 3)


def opened(module: nn.Module, streams: Streams, *shape: int, fixed: int | None = None) -> EagerBackend:
    return EagerBackend(
        LoadedModel("toy", module, (shape or (3,),), ModelMetadata(), "factory", fixed), streams=streams
    )


def check(backend: EagerBackend, module: Counting, x: Array) -> None:
    for found, expected in zip(backend.run({backend.inputs[0].name: x}).values(), module.expected(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_third_call_of_a_shape_runs_no_python() -> None:
    module = Counting()
    backend = opened(module, Inline())
    before = module.calls
    for number in range(1, 7):
        check(backend, module, rows(4, number))
    assert module.calls - before == 2  # one that runs, one that is recorded
    check(backend, module, rows(5))
    check(backend, module, rows(4))  # the first shape's graph is still there
    assert module.calls - before == 3
    assert backend.full_batches and backend.describe()["CUDA graphs"] == "yes"


@pytest.mark.parametrize("seed", range(3))
def test_slots_share_a_graph_and_get_their_own_outputs(seed: int) -> None:
    streams, module = Late(seed=seed), Counting()
    backend = opened(module, streams)

    def call(number: int) -> None:
        check(backend, module, rows(6 if number % 5 else 4, number + 1))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(call, range(40)))
    assert streams.errors == []


def test_without_copies_of_the_outputs_calls_get_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The streams run late enough to show it."""
    monkeypatch.setattr("stn_infer.backends.graphs.handed_over", lambda outputs, slot: list(outputs))
    backend = opened(module := Counting(), Late(seconds=0.01))
    with ThreadPoolExecutor(5) as pool, pytest.raises(AssertionError):
        list(pool.map(lambda number: check(backend, module, rows(6, number + 1)), range(30)))


def test_what_cannot_be_recorded_runs_without_a_graph_and_says_so_once() -> None:
    module = Waits()
    backend = opened(module, Inline())
    check(backend, module, rows(4, 1))
    why = "toy fails in PyTorch .*operation not permitted when stream is capturing and a second line"
    with pytest.warns(FallbackWarning, match=f"^toy runs without CUDA graphs: {why}$"):
        check(backend, module, rows(4, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(3, 6):
            check(backend, module, rows(4, number))
            check(backend, module, rows(2, number))
    assert backend.describe()["CUDA graphs"].startswith("no: toy fails in PyTorch")


def test_memory_for_graphs_has_a_limit() -> None:
    module = Counting()
    backend = opened(module, Inline())
    before = module.calls
    for _ in range(3):
        for count in range(1, MOST_GRAPHS + 3):
            check(backend, module, rows(count, count))
    assert module.calls - before == 2 * MOST_GRAPHS + 3 * 2


@pytest.mark.parametrize("layout", ["planar", "interleaved"])
def test_pixels_are_normalized_in_the_graph(layout: str) -> None:
    module = nn.Conv2d(3, 2, 3)
    backend = opened(module, Inline(), 3, 6, 7)
    rules = Preprocess("rgb", mean=(0.4, 0.5, 0.6)), Preprocess("rgb", gamma=2.0)
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (2, 3, 6, 7), dtype=np.uint8)
        if layout == "interleaved":
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        rule = rules[number % 2]
        expected = module(torch.from_numpy(normalize(pixels, rule))).detach().numpy()
        found = backend.run_pixels(pixels, rule)["output"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_is_one_shape() -> None:
    module = Counting()
    backend = opened(module, Inline(), fixed=2)
    before = module.calls
    for count in (5, 1, 4):
        check(backend, module, rows(count, count))
    assert module.calls - before == 2


def test_a_closed_backend_replays_nothing() -> None:
    backend = opened(module := Counting(), Inline())
    for _ in range(3):
        check(backend, module, rows(2))
    backend.close()
    with pytest.raises(Exception, match="this backend is closed"):
        backend.run({"x": rows(2)})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu() -> None:
    streams = CudaStreams(torch.device("cuda", 0))
    slots, graphs, module = Slots(streams, SLOTS), Graphs(streams, "toy"), Counting().cuda()

    def work(tensors: Sequence[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            return list(module(*tensors))

    def compute(tensors: Sequence[Tensor], slot: Slot) -> Sequence[Tensor]:
        return graphs.run(None, tensors, slot, work)

    def wrong(number: int) -> bool:
        x = rows(6 if number % 5 else 4, number + 1)
        found, flipped = slots.run([x], compute)
        expected = np.maximum(x @ module.weight.detach().cpu().numpy() - 1, 0)
        return not (np.allclose(found, expected, rtol=1e-4, atol=1e-5) and np.array_equal(flipped, x[:, ::-1]))

    with ThreadPoolExecutor(5) as pool:
        assert not any(pool.map(wrong, range(300)))
    assert graphs.problem is None and module.calls == 4
