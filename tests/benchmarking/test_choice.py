"""The choice among settings, on figures that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stn_infer.benchmarking.choice import BACKENDS, TIE, Bounds, Setting, choose, settings_of
from stn_infer.benchmarking.record import Throughput
from stn_infer.benchmarking.variants.names import VARIANTS
from stn_infer.errors import VerificationError
from tests.support.measured import result, row

SLOW = Setting(
    precision="fp32",
    backend="ort",
    batch_size=1,
    threads=1,
    callers=2,
    median_ms=2.0,
    throughput=1000.0,
    error=1e-6,
)
BATCH = replace(SLOW, batch_size=64, median_ms=40.0, throughput=3000.0)
HALF = replace(BATCH, precision="fp16", backend="openvino", threads=2, median_ms=16.0, throughput=4000.0, error=1e-3)
INT8 = replace(HALF, precision="int8", median_ms=10.0, throughput=6400.0, error=2e-2)
ALL = (SLOW, BATCH, HALF, INT8)


@pytest.mark.parametrize(
    ("bounds", "chosen"),
    [
        (Bounds(), INT8),
        (Bounds(max_error=2e-2), INT8),
        (Bounds(max_error=1.9e-2), HALF),
        (Bounds(max_error=1e-6), BATCH),
        (Bounds(latency_ms=9.9), SLOW),
        (Bounds(latency_ms=10.0), INT8),
        (Bounds(latency_ms=39.0, max_error=1e-4), SLOW),
        (Bounds(latency_ms=16.0, max_error=1e-3), HALF),
    ],
)
def test_the_fastest_that_meets_the_bounds(bounds: Bounds, chosen: Setting) -> None:
    assert choose(ALL, bounds) == chosen
    assert choose(ALL[::-1], bounds) == chosen


def test_of_equally_fast_settings_the_most_precise_with_the_smallest_batch_and_fewest_threads() -> None:
    near = BATCH.throughput * (1 + TIE / 2)
    half = replace(HALF, throughput=near)
    large = replace(BATCH, batch_size=128, throughput=near)
    threads = replace(BATCH, threads=2, throughput=near)
    assert choose((half, large, threads, BATCH), Bounds()) == BATCH
    faster = replace(half, throughput=BATCH.throughput * (1 + 2 * TIE))
    assert choose((BATCH, faster), Bounds()) == faster
    again = replace(BATCH, backend="openvino", throughput=near)
    assert choose((BATCH, again), Bounds()) == again


@pytest.mark.parametrize(
    ("bounds", "named", "nearest"),
    [
        (Bounds(latency_ms=1.0), "--latency-ms 1", SLOW),
        (Bounds(max_error=1e-9), "--max-error 1e-09", SLOW),
        (Bounds(latency_ms=0.1, max_error=1e-7), "--latency-ms 0.1 and --max-error 1e-07", SLOW),
        (Bounds(latency_ms=1.0, max_error=1e-12), "--latency-ms 1 and --max-error 1e-12", SLOW),
    ],
)
def test_none_that_meets_them(bounds: Bounds, named: str, nearest: Setting) -> None:
    with pytest.raises(VerificationError) as raised:
        choose(ALL, bounds)
    assert str(raised.value) == f"nothing meets {named}, so no file was written; nearest: {nearest}"
    assert "fp32 in ort, batch 1, 1 thread: 2 ms per batch, 1000 samples/s, error 1.0e-06" in str(raised.value)


def test_the_nearest_is_that_whose_worst_bound_is_nearest() -> None:
    with pytest.raises(VerificationError, match="nearest: int8 in openvino"):
        choose((BATCH, INT8), Bounds(latency_ms=5.0, max_error=1e-2))  # 8 times the latency; twice latency and error
    with pytest.raises(VerificationError, match="nearest: fp32 in ort, batch 64"):
        choose((BATCH, INT8), Bounds(latency_ms=5.0, max_error=1e-3))  # 8 times the latency; 20 times the error


def test_nothing_to_choose_from() -> None:
    with pytest.raises(VerificationError, match=r"^nothing could be timed, so no file was written$"):
        choose((), Bounds())


def test_settings_of_a_benchmark() -> None:
    found = result(
        1,
        row("ort-fused", 4, [2.0, 4.0, 3.0], error=3e-6, together=Throughput(2, 50, 0.1)),
        row("openvino", 4, [2.0, 3.0, 5.0], error=1e-7),
        row("openvino-fused", 8, [8.0], wall_s=0.0),
        row("trt", 4, [], status="unavailable", reason="TensorRT needs a GPU"),
    )
    settings, refused = settings_of(found, "fp16", 1e-4)
    assert settings == (
        Setting(
            precision="fp16",
            backend="ort",
            batch_size=4,
            threads=1,
            callers=2,
            median_ms=3.0,
            throughput=2000.0,
            error=1e-4,
        ),
        Setting(
            precision="fp16",
            backend="openvino",
            batch_size=4,
            threads=1,
            callers=1,
            median_ms=3.0,
            throughput=1200.0,
            error=1e-4,
        ),
        Setting(
            precision="fp16",
            backend="openvino",
            batch_size=8,
            threads=1,
            callers=1,
            median_ms=8.0,
            throughput=1000.0,
            error=1e-4,
        ),
    )
    assert refused == (("fp16 in tensorrt, batch 4", "TensorRT needs a GPU"),)
    assert settings_of(found, "fp16", 1e-9)[0][0].error == 3e-6


def test_every_variant_that_is_tried_is_one_of_the_benchmark() -> None:
    assert set(BACKENDS) < set(VARIANTS)
