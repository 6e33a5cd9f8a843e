"""The whole harness on a virtual clock: what comes out is what was put in, and what is doubtful says so."""

from __future__ import annotations

import statistics
from dataclasses import replace

import numpy as np
import pytest

from stn_infer.benchmarking.harness.load import paced
from stn_infer.benchmarking.harness.session import check_same
from stn_infer.benchmarking.harness.variant import BoundVariant
from stn_infer.benchmarking.machine.monitor import Reading
from stn_infer.benchmarking.record import Measurement
from stn_infer.benchmarking.report.compare import compare
from stn_infer.benchmarking.report.explain import explanation
from stn_infer.benchmarking.report.notes import notes
from stn_infer.benchmarking.report.speedup import speedup
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.result import CALIBRATION, BenchResult
from stn_infer.errors import ModelError, UsageError
from tests.support import benchmarking_sim
from tests.support.benchmarking_sim import Clock, Quiet, Simulated, Simulation, fixed, noisy

SHORT = Method(rounds=6, seconds=0.6, samples=132, turns=4, warmup_seconds=0.02, warmup_limit=0.5)
# Enough calls of a millisecond for a p99.9.
LONG = Method(rounds=6, seconds=7.2, samples=132, turns=4, warmup_seconds=0.02, warmup_limit=0.5)


def only(result: BenchResult) -> Measurement:
    (row,) = result.measurements
    assert row.status == "timed"
    return row


def test_fixed_latencies_come_out_as_they_went_in() -> None:
    backends = {"eager": Simulated(fixed(4.0)), "ort": Simulated(fixed(1.0), load_s=0.25)}
    result = Simulation(backends, batch_sizes=(1, 8)).go(SHORT)
    assert result.complete and result.passed
    assert [(row.batch_size, row.variant) for row in result.measurements] == [
        (1, "eager"), (1, "ort"), (8, "eager"), (8, "ort")
    ]  # fmt: skip
    for row in result.measurements:
        wanted = 4.0 if row.variant == "eager" else 1.0
        assert row.samples_ms == pytest.approx([wanted] * len(row.samples_ms))
        assert len(row.samples_ms) >= 132 and sum(row.samples_ms) >= 600
        assert row.throughput == pytest.approx(row.batch_size / wanted * 1e3)
        assert row.spread == pytest.approx(0, abs=1e-6) and row.outliers == 0 and row.flags == ()
        assert [each.round for each in row.rounds] == list(range(6))
    ratio = speedup(result.get("ort", 8), result.get("eager", 8))
    assert ratio.value == pytest.approx(4) and ratio.low == pytest.approx(4) and ratio.high == pytest.approx(4)
    assert result.get("ort", 1).rounds[0].load_s == pytest.approx(0.25)
    assert explanation(result)[0].startswith(
        "at batch 8 ort is the fastest: 4.00x speedup over eager (95 % CI 4.00 to 4.00)"
    )


def test_a_slow_first_call_is_told_apart_and_in_no_sample() -> None:
    row = only(Simulation({"ort": Simulated(fixed(1.0), first_call_ms=3000)}).go(SHORT))
    assert [each.first_call_ms for each in row.rounds] == pytest.approx([3001.0] * 6)
    assert max(row.samples_ms) == pytest.approx(1.0)
    assert row.flags == ()


def test_two_modes_are_named_with_their_medians() -> None:
    row = only(
        Simulation({"ort": Simulated(lambda index, generator: 1.0 if generator.random() < 0.5 else 2.0)}).go(SHORT)
    )
    assert "two modes, 1 and 2 ms" in row.flags
    assert row.percentiles[90] == pytest.approx(2.0)
    assert set(np.round(row.samples_ms, 6)) == {1.0, 2.0}


def test_a_drift_within_rounds_is_flagged() -> None:
    row = only(Simulation({"ort": Simulated(lambda index, generator: 1.0 + index * 0.002)}).go(SHORT))
    (flag,) = row.flags
    assert flag.startswith("drifts by +") and flag.endswith("within a round")


def test_rounds_that_differ_are_flagged() -> None:
    simulation = Simulation({"ort": Simulated(fixed(1.0))}, round_factor=lambda number, generator: 1 + 0.1 * number)
    row = only(simulation.go(SHORT))
    assert row.spread == pytest.approx(0.5 / 1.2, rel=1e-3)
    assert any(flag.startswith("rounds differ by 4") for flag in row.flags)


def test_a_stall_every_hundredth_call_stays_in_the_samples_and_shows_where_it_belongs() -> None:
    stall = Simulated(lambda index, generator: 51.0 if index % 100 == 50 else 1.0)
    row = only(Simulation({"ort": stall}).go(replace(LONG, seconds=12)))
    share = sum(sample > 50 for sample in row.samples_ms) / len(row.samples_ms)
    assert share == pytest.approx(0.01, rel=0.15)
    assert row.outliers == sum(sample > 50 for sample in row.samples_ms)
    assert row.median_ms == row.percentiles[90] == row.percentiles[95] == pytest.approx(1.0)
    assert row.percentiles[99.9] == pytest.approx(51.0)
    assert row.throughput == pytest.approx(4 / 1.5 * 1e3, rel=0.05)  # from wall time: the stalls count


def test_percentiles_appear_with_their_sample_floors() -> None:
    floors = {}
    for samples in (60, 66, 132, 672, 6660):
        method = replace(SHORT, samples=samples, seconds=1e-3, turns=1)
        row = only(Simulation({"ort": Simulated(noisy(1.0))}).go(method))
        assert len(row.samples_ms) == samples
        floors[samples] = list(row.percentiles)
    assert floors == {
        60: [50], 66: [50, 90], 132: [50, 90, 95], 672: [50, 90, 95, 99], 6660: [50, 90, 95, 99, 99.9]
    }  # fmt: skip


def test_noise_gives_the_median_and_an_interval_that_holds_the_truth() -> None:
    backends = {"eager": Simulated(noisy(3.0)), "ort": Simulated(noisy(1.0))}
    common = lambda number, generator: float(np.exp(generator.normal(0, 0.1)))  # noqa: E731
    result = Simulation(backends, round_factor=common).go(SHORT)
    # a round's own factor hits both alike, and the ratio does not see it
    ratio = speedup(result.get("ort", 4), result.get("eager", 4))
    assert ratio.low is not None and ratio.high is not None
    assert ratio.low < 3 < ratio.high and ratio.high - ratio.low < 0.25


def twins(seed: int, slower: float) -> bool:
    """Whether two backends are told apart that differ by a factor; rounds and processes have noise of their own."""

    def own(milliseconds: float) -> Simulated:
        offsets: dict[int, float] = {}

        def latency(index: int, generator: np.random.Generator) -> float:
            # each process places its memory otherwise: half a per cent of its own
            offset = offsets.setdefault(id(generator), float(np.exp(generator.normal(0, 0.005))))
            return milliseconds * offset * float(np.exp(generator.normal(0, 0.03)))

        return Simulated(latency)

    method = replace(SHORT, seconds=0.05, turns=2, warmup_seconds=0.0)
    common = lambda number, generator: float(np.exp(generator.normal(0, 0.05)))  # noqa: E731
    result = Simulation({"a": own(1.0), "b": own(slower)}, seed=seed, round_factor=common).go(method)
    return speedup(result.get("a", 4), result.get("b", 4)).excludes_one


def test_identical_twins_are_not_told_apart() -> None:
    assert sum(twins(seed, 1.0) for seed in range(100)) <= 5


def test_a_planted_difference_of_5_percent_is_found() -> None:
    assert sum(twins(seed, 1.05) for seed in range(100, 120)) >= 19


def test_wrong_values_get_no_number() -> None:
    backends = {"eager": Simulated(fixed(1.0)), "ort": Simulated(fixed(0.1), off_by=1e-3)}
    result = Simulation(backends).go(SHORT)
    row = result.get("ort", 4)
    assert not result.passed
    assert (row.status, row.rounds, row.median_ms, row.throughput) == ("failed", (), None, None)
    assert "expected at most 1e-05: not timed" in row.reason
    assert result.get("eager", 4).status == "timed"


def test_a_row_that_goes_wrong_in_a_later_round_loses_its_numbers() -> None:
    simulation = Simulation({"ort": Simulated(fixed(1.0))})
    first = simulation.go(replace(SHORT, rounds=1))
    assert only(first).rounds
    simulation.backends["ort"].off_by = 1.0
    earlier = replace(first, request=replace(first.request, method=SHORT))
    result = simulation.go(SHORT, earlier)
    (row,) = result.measurements
    assert (row.status, row.rounds) == ("failed", ())
    assert simulation.rounds_run == [0, 1] and result.complete  # there is nothing left to measure


def test_a_sampler_on_another_device_is_named_and_voids_the_row() -> None:
    backends = {
        "ort": Simulated(fixed(1.0), place="CUDAExecutionProvider"),
        "ort-plain": Simulated(fixed(0.1), place="CPUExecutionProvider"),
    }
    result = Simulation(backends, device="cuda:0").go(SHORT)
    row = result.get("ort-plain", 4)
    assert (row.status, row.rounds) == ("failed", ())
    assert row.reason == "sampler sampler_0 (GridSample) ran on CPUExecutionProvider, not on cuda:0: not timed"
    assert result.get("ort", 4).samplers[0].place == "CUDAExecutionProvider"


def test_what_cannot_be_opened_is_listed_with_its_reason() -> None:
    backends = {"eager": Simulated(fixed(1.0)), "trt": Simulated(fixed(1.0), error=ModelError("no TensorRT here"))}
    result = Simulation(backends).go(SHORT)
    assert (result.get("trt", 4).status, result.get("trt", 4).reason) == ("unavailable", "no TensorRT here")
    assert result.passed


def test_where_nothing_can_be_opened_later_rounds_start_no_process() -> None:
    simulation = Simulation({"trt": Simulated(fixed(1.0), error=ModelError("no TensorRT here"))})
    result = simulation.go(SHORT)
    assert simulation.rounds_run == [0] and result.complete
    assert result.get("trt", 4).reason == "no TensorRT here"


def test_a_variant_that_kills_its_process_is_named_and_the_others_go_on() -> None:
    backends = {"eager": Simulated(fixed(1.0)), "ort": Simulated(fixed(1.0), crashes_in_round=2)}
    result = Simulation(backends).go(SHORT)
    assert result.get("ort", 4).reason == "it crashed its process (signal 11)"
    assert result.get("ort", 4).status == "failed"
    assert len(result.get("eager", 4).rounds) == 6


def test_separate_variants_have_processes_of_their_own() -> None:
    backends = {
        "eager": Simulated(fixed(4.0)),
        "ort": Simulated(fixed(1.0), crashes_in_round=1),
        "ort-plain": Simulated(fixed(2.0)),
    }
    simulation = Simulation(backends)
    result = simulation.go(replace(SHORT, separate=True))
    assert simulation.rounds_run == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert sorted(simulation.processes[:3]) == [("eager",), ("ort",), ("ort-plain",)]
    assert {simulation.processes[index] for index in (5, 7, 9, 11)} == {("eager",), ("ort-plain",)}  # in random order
    assert result.complete and result.get("ort", 4).reason == "it crashed its process (signal 11)"
    assert speedup(result.get("ort-plain", 4), result.get("eager", 4)).value == pytest.approx(2)
    assert "each variant ran in processes of its own, whose idle threads may spin" in notes(result)


def test_killed_halfway_the_finished_rounds_are_there_and_resume_completes_them() -> None:
    saved: list[BenchResult] = []
    backends = {"eager": Simulated(noisy(2.0)), "ort": Simulated(noisy(1.0))}
    with pytest.raises(KeyboardInterrupt):
        Simulation(backends, stop_after=3).go(SHORT, save=saved.append)
    half = saved[-1]
    assert len(half.log) == 3 and not half.complete
    assert any("not finished: 3 of 6 rounds" in note for note in notes(half))
    again = Simulation(backends)
    whole = again.go(SHORT, half)
    assert again.rounds_run == [3, 4, 5]
    assert whole.complete
    assert whole.measurements == Simulation(backends).go(SHORT).measurements  # as if nothing had happened


def test_resume_refuses_another_machine() -> None:
    simulation = Simulation({"ort": Simulated(fixed(1.0))})
    earlier = simulation.go(replace(SHORT, rounds=1))
    moved = replace(earlier, machine=replace(earlier.machine, cpu="another"))
    with pytest.raises(UsageError, match="same machine"):
        simulation.go(SHORT, moved)


def test_throttled_samples_are_marked() -> None:
    simulation = Simulation({"ort": Simulated(fixed(1.0))}, monitor=Quiet(lambda at: at > 0.62))
    row = only(simulation.go(SHORT))
    marked = sum(len(each.throttled) for each in row.rounds)
    assert 0 < marked < len(row.samples_ms)
    assert any(flag.endswith("taken while throttled") for flag in row.flags)
    assert len(row.rounds[0].samples_ms) > max(row.rounds[0].throttled)


def test_a_row_that_is_too_slow_is_cut_short_and_says_so() -> None:
    row = only(Simulation({"ort": Simulated(fixed(1000.0))}).go(replace(SHORT, row_limit=4.0, samples=600)))
    assert "cut short by the row's time limit" in row.flags
    assert len(row.samples_ms) == 6 * 4


def test_a_row_that_never_gets_its_seconds_is_cut_short_and_says_so() -> None:
    sped_up = Simulated(lambda index, generator: 100.0 if index < 25 else 0.001)  # after its calls a turn were settled
    row = only(Simulation({"ort": sped_up}).go(replace(SHORT, seconds=600.0, row_limit=1000.0)))
    assert all(each.cut_short for each in row.rounds)
    assert "cut short by the row's time limit" in row.flags


def test_a_warm_up_that_never_settles_is_flagged() -> None:
    row = only(Simulation({"ort": Simulated(lambda index, generator: 1 + 0.5 * (index // 5 % 2))}).go(SHORT))
    assert any("warm-up did not settle in 6 of 6 rounds" in flag for flag in row.flags)


def test_a_comparison_with_an_unstable_measurement_says_so() -> None:
    shaky = Simulated(lambda index, generator: 4.0 if generator.random() < 0.5 else 8.0)
    told = explanation(Simulation({"eager": shaky, "ort": Simulated(fixed(1.0))}).go(SHORT))[0]
    assert told.endswith("(low confidence: unstable measurement of eager)")


def test_others_on_the_machine_are_told() -> None:
    result = Simulation({"ort": Simulated(fixed(1.0))}, others=0.4).go(SHORT)
    assert any("others used up to 40%" in note for note in notes(result))


class Stalling(BoundVariant):
    """Calls of 1 ms on a clock of their own; the tenth takes 21."""

    items = 1

    def __init__(self) -> None:
        self.clock, self.calls = Clock(), 0

    def call(self) -> object:
        self.calls += 1
        self.clock.time += 0.021 if self.calls == 10 else 0.001
        return None

    def outputs(self) -> list[object]:  # type: ignore[override]
        return []


def test_paced_latencies_count_from_when_calls_were_due() -> None:
    bound = Stalling()
    found = paced(bound, rate=500.0, seconds=0.1, clock=bound.clock)
    # after the stall of 21 ms, calls are due every 2 ms and done every 1 ms: the queue shrinks by 1 ms per call
    wanted = [1.0] * 9 + [21.0 - late for late in range(21)] + [1.0] * 20
    assert found.latencies_ms == pytest.approx(wanted, abs=1e-6)


def test_paced_beyond_what_it_can_do_grows() -> None:
    bound = Stalling()
    latencies = paced(bound, rate=2000.0, seconds=0.02, clock=bound.clock).latencies_ms
    assert len(latencies) == 40
    assert latencies[-1] > latencies[20] > latencies[0]


def test_traffic_is_measured_where_it_is_asked_for() -> None:
    method = replace(SHORT, concurrency=(1,), rates=(100.0,), traffic_seconds=1.2)
    row = only(Simulation({"ort": Simulated(fixed(2.0))}).go(method))
    for each in row.rounds:
        (load,), (pace,) = each.throughput, each.paced
        assert load.calls / load.wall_s == pytest.approx(500, rel=0.02)
        assert statistics.median(pace.latencies_ms) == pytest.approx(2.0)
        assert len(pace.latencies_ms) == 20


def test_orders_change_from_round_to_round_and_are_the_same_for_a_seed() -> None:
    def told(seed: int) -> list[str]:
        texts: list[str] = []
        backends = {name: Simulated(fixed(1.0)) for name in "abcde"}
        Simulation(backends).go(replace(SHORT, rounds=3, seed=seed), say=texts.append)
        return [text.split(" (")[0] for text in texts]

    assert told(1) == told(1)
    assert told(1) != told(2)
    opened = [
        "".join(text[-1] for text in told(1) if text.startswith(f"round {n} of 3: ") and len(text) == 15)
        for n in (1, 2, 3)
    ]
    assert all(sorted(order) == list("abcde") for order in opened)
    assert len(set(opened)) > 1


class HeldBack:
    """A machine whose clocks are held back while one row's calls of 10 ms run, and not while the other's of 1 s do."""

    def __init__(self) -> None:
        self.held_ns = 0

    def read(self, at_s: float) -> Reading:
        return Reading(at_s, gpu_sm_mhz=1, gpu_held_back_ns=self.held_ns)


def test_a_short_row_that_is_throttled_beside_a_long_one_that_is_not_is_marked() -> None:
    machine = HeldBack()

    def fast(index: int, generator: np.random.Generator) -> float:
        machine.held_ns += 5_000_000
        return 10.0

    backends = {"eager": Simulated(fixed(1000.0)), "ort": Simulated(fast)}
    simulation = Simulation(backends, monitor=machine)  # type: ignore[arg-type]
    result = simulation.go(replace(SHORT, seconds=0.02, samples=24, turns=4))
    slow, short = result.get("eager", 4), result.get("ort", 4)
    assert all(len(each.throttled) == len(each.samples_ms) for each in short.rounds)
    assert not any(each.throttled for each in slow.rounds)


def test_an_inspection_that_fails_leaves_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object) -> None:
        raise NotImplementedError("no such thing\nand more")

    monkeypatch.setattr(benchmarking_sim._Called, "inspect", fails)
    row = only(Simulation({"ort": Simulated(fixed(1.0))}).go(SHORT))
    assert row.median_ms == pytest.approx(1.0)
    assert row.left_out == dict.fromkeys(("samplers", "stages"), "the inspection failed: no such thing and more")


def test_resume_tells_other_samples_and_older_files(monkeypatch: pytest.MonkeyPatch) -> None:
    simulation = Simulation({"ort": Simulated(fixed(1.0))})
    done = simulation.go(replace(SHORT, rounds=1))
    (model,) = done.models

    def hashed(**hashes: str) -> BenchResult:
        return replace(done, models=(replace(model, sha256={"weights": "w", **hashes}),))

    mine = hashed(**{CALIBRATION: "a"})
    check_same(mine, mine)
    with pytest.raises(UsageError, match="same models, and of simulated the int8 samples changed"):
        check_same(mine, hashed(**{CALIBRATION: "b"}))
    with pytest.raises(UsageError, match="an older version wrote"):
        check_same(done, hashed(file="f"))
    differ = compare(
        hashed(file="f", **{CALIBRATION: "a", "plugin library": "p"}), hashed(file="g", **{CALIBRATION: "b"})
    )
    assert {
        "simulated: another ONNX file in A than in B",
        "simulated: other INT8 calibration data in A than in B",
    } <= set(differ.warnings)
    assert not any("plugin library" in warning for warning in differ.warnings)
