"""A result of two batch sizes: PyTorch, a plain file, ours in two ways, one of which is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.result import BenchResult
from tests.support.benchmarking_sim import Simulated, Simulation, fixed, noisy

METHOD = Method(rounds=6, seconds=3.0, samples=20, turns=2, warmup_seconds=0.01)


@pytest.fixture(scope="session")
def measured() -> BenchResult:
    backends = {
        "eager": Simulated(noisy(20.0)),
        "compile": Simulated(noisy(15.0)),
        "ort-plain": Simulated(noisy(30.0)),
        "ort": Simulated(noisy(10.0)),
        "ort-fused": Simulated(fixed(5.0), off_by=1.0),
    }
    return replace(Simulation(backends, batch_sizes=(1, 8)).go(METHOD), command="stn-infer bench model.onnx")
