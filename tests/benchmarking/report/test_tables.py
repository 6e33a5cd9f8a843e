"""What is asked for and not measured is told in the table, the JSON and every report."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from stn_infer.benchmarking.machine.monitor import Reading
from stn_infer.benchmarking.report.compare import compare
from stn_infer.benchmarking.report.explain import explanation
from stn_infer.benchmarking.report.files import as_csv, comparison_markdown, markdown
from stn_infer.benchmarking.report.notes import left_out, lines_below, notes
from stn_infer.benchmarking.report.terminal import render
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.result import BenchResult
from stn_infer.errors import ModelError
from tests.support.benchmarking_sim import Simulated, Simulation, fixed, noisy

METHOD = Method(rounds=6, seconds=0.1, samples=132, turns=2, warmup_seconds=0.01, rates=(50.0,), concurrency=(1, 4))


@pytest.fixture(scope="module")
def result() -> BenchResult:
    backends = {
        "eager": Simulated(noisy(2.0)),
        "ort": Simulated(noisy(1.0)),
        "trt": Simulated(fixed(1.0), error=ModelError("no TensorRT here")),
    }
    made = Simulation(backends, batch_sizes=(1, 8)).go(METHOD)
    shares = {"eager": {"sampling": 1.0, "rest": 3.0}, "ort": {"grid": 0.1, "sampling": 0.5, "rest": 0.4}}
    return replace(made, measurements=tuple(replace(row, stages=shares.get(row.variant)) for row in made.measurements))


def printed(result: BenchResult) -> str:
    from rich.console import Console

    console = Console(width=240, record=True, file=io.StringIO())
    console.print(render(result))
    return console.export_text()


def test_throughput_that_a_variant_cannot_give_is_told_with_the_reason(result: BenchResult) -> None:
    line = "without throughput with 4 callers: eager; ort: it takes one call at a time"
    for text in (printed(result), markdown(result)):
        assert line in text
    row = json.loads(result.to_json())["measurements"][0]
    assert row["left_out"] == {"throughput with 4 callers": "it takes one call at a time"}
    cells = next(csv.DictReader(io.StringIO(as_csv(result))))
    assert cells["left_out"] == "throughput with 4 callers: it takes one call at a time"
    assert cells["samples_per_second_4_callers"] == ""
    assert float(cells["samples_per_second_1_callers"]) == pytest.approx(1 / 2.0 * 1e3, rel=0.05)
    assert float(cells["p50_ms_at_50_per_s"]) == pytest.approx(2.0, rel=0.05)


def test_figures_under_load_and_shares_are_in_the_terminal_and_in_markdown(result: BenchResult) -> None:
    for text in (printed(result), markdown(result)):
        assert "1 callers" in text and "50 calls/s" in text and "samples/s" in text
        assert "in the rest" in text  # the grid's share of a row that cannot tell it
    assert "Where the time goes at batch 8" in printed(result)


def test_what_was_not_timed_at_one_batch_size_says_at_which(result: BenchResult) -> None:
    assert "not timed: trt: no TensorRT here" in left_out(result)
    rows = tuple(
        replace(row, status="unavailable", reason="out of memory", rounds=()) if row.key[2:] == (8, "ort") else row
        for row in result.measurements
    )
    assert "not timed: ort at batch 8: out of memory" in left_out(replace(result, measurements=rows))


def test_every_model_of_a_suite_says_what_it_was_verified_against(result: BenchResult) -> None:
    (model,) = result.models
    other = replace(model, name="other", reference="float32 eager", tolerance=1e-4)
    lines = lines_below(replace(result, models=(model, other)))
    assert any(line.startswith("simulated: inputs: random; outputs verified against float64 eager") for line in lines)
    assert any("other: inputs: random; outputs verified against float32 eager to 1e-04" in line for line in lines)


def test_percentiles_that_are_missing_have_a_reason(result: BenchResult) -> None:
    assert "p90/p99 need at least 64/662 samples" in lines_below(result)


def test_a_flushed_cache_leaves_no_throughput() -> None:
    row = (
        Simulation({"ort": Simulated(fixed(1.0), place="CUDAExecutionProvider")}, device="cuda:0")
        .go(replace(METHOD, boundary="device", l2="flushed", concurrency=(), rates=()))
        .measurements[0]
    )
    assert row.median_ms == pytest.approx(1.0) and row.throughput is None
    assert row.left_out == {"throughput": "flushing the level-2 cache takes wall time of its own"}


def test_rounds_without_wall_time_leave_no_throughput(result: BenchResult) -> None:
    row = result.get("ort", 8)
    assert row.throughput is not None
    rounds = (*row.rounds[:3], *(replace(each, wall_s=0.0) for each in row.rounds[3:]))
    assert replace(row, rounds=rounds).throughput is None


@pytest.mark.parametrize(
    ("device", "reading", "message"),
    [
        ("cpu", Reading(0.0), "whether the processor was throttled is not known"),
        ("cuda:0", Reading(0.0), "pip install nvidia-ml-py"),
        ("cuda:0", Reading(0.0, gpu_sm_mhz=1500), "whether others were on the GPU is not known"),
        ("cuda:0", Reading(0.0, gpu_sm_mhz=1500, gpu_others=2), "up to 2 other processes were on the GPU"),
    ],
)
def test_what_the_machine_does_not_say_is_told(
    result: BenchResult, device: str, reading: Reading, message: str
) -> None:
    log = tuple(replace(it, readings=(reading,)) for it in result.log)
    asked = replace(result, log=log, request=replace(result.request, device=device))
    assert any(message in note for note in notes(asked))
    seen = replace(asked, log=tuple(replace(it, readings=(Reading(0.0, cpu_throttles=0),)) for it in log))
    assert device != "cpu" or not any("not known" in note for note in notes(seen))


def on(device: str, boundary: str, result: BenchResult) -> BenchResult:
    method = replace(result.request.method, boundary=boundary)
    return replace(result, request=replace(result.request, device=device, method=method))


def test_milliseconds_of_a_stage_are_told_where_the_median_is_of_kernels_alone(result: BenchResult) -> None:
    shares = {"eager": {"grid": 1.0, "sampling": 1.0, "rest": 2.0}, "ort": {"grid": 0.1, "sampling": 0.5, "rest": 0.4}}
    told = replace(
        result, measurements=tuple(replace(row, stages=shares.get(row.variant)) for row in result.measurements)
    )
    for device, boundary in (("cpu", "host"), ("cuda:0", "device")):
        assert " ms saved, " in explanation(on(device, boundary, told))[0]
    gpu = on("cuda:0", "host", told)
    assert " ms" not in explanation(gpu)[0]
    assert "Where the kernels' time goes at batch 8" in printed(gpu) and "Where the kernels' time goes" in markdown(gpu)


def test_the_plugins_op_is_set_against_a_grid_that_is_known(result: BenchResult) -> None:
    rows = {"eager": "trt", "ort": "trt-fused"}
    shares = {
        "trt": {"grid": 0.1, "sampling": 0.2, "rest": 0.7},
        "trt-fused": {"grid": 0.0, "sampling": 0.2, "rest": 0.8},
    }
    named = [replace(row, variant=rows.get(row.variant, "")) for row in result.measurements if row.variant in rows]
    both = replace(result, measurements=tuple(replace(row, stages=shares[row.variant]) for row in named))
    (line,) = (line for line in explanation(on("cuda:0", "device", both)) if line.startswith("trt-fused has a "))
    assert "the plugin's op takes 0.2 ms where grid and sampler take 0.6 ms" in line
    (line,) = (line for line in explanation(on("cuda:0", "host", both)) if line.startswith("trt-fused has a "))
    assert "grid and sampler are 30% of the kernels' time in trt, the plugin's op 20% in trt-fused" in line
    del shares["trt"]["grid"]
    unknown = replace(result, measurements=tuple(replace(row, stages=shares[row.variant]) for row in named))
    assert not any(line.startswith("trt-fused has a ") for line in explanation(on("cuda:0", "device", unknown))[1:])


def test_rows_of_two_precisions_are_told_apart(result: BenchResult) -> None:
    (model,) = result.models
    lower = replace(model, case=replace(model.case, precision="int8"), notes=("ranges",))
    rows = [replace(row, precision="int8") for row in result.measurements]
    rows = [
        replace(row, status="unavailable", reason="no int8", rounds=()) if row.variant == "eager" else row
        for row in rows
    ]
    both = replace(result, models=(model, lower), measurements=(*result.measurements, *rows))
    lines = lines_below(both)
    assert "not timed: int8, eager: no int8" in lines and "note: int8: ranges" in lines
    assert any(line.startswith("fp32: at batch 8") for line in lines)
    assert compare(both, both).changes and "| int8, ort |" in comparison_markdown(compare(both, both))
