from __future__ import annotations

import re
from dataclasses import replace

from stn_infer.benchmarking.report.verdict import milliseconds, verdict, verdict_of
from stn_infer.benchmarking.request import QUICK, Method
from stn_infer.benchmarking.result import BenchResult
from tests.support.benchmarking_sim import Simulated, Simulation, fixed, noisy

METHOD = Method(rounds=6, seconds=3.0, samples=20, turns=2, warmup_seconds=0.01)


def only(result: BenchResult, *variants: str) -> BenchResult:
    return replace(result, measurements=tuple(row for row in result.measurements if row.variant in variants))


def test_the_best_of_ours_is_compared_with_the_best_of_the_others(measured: BenchResult) -> None:
    best, over = verdict(measured)
    assert re.fullmatch(
        r"At batch 8, stn-infer \(onnxruntime CPU, no plugin, (10\.\d|9\.\d\d) ms per call\) has a 1\.[45]\dx speedup "
        r"\(95 % CI \d\.\d\d to \d\.\d\d\) over the fastest of the others \(torch\.compile CPU, 1[45]\.\d ms\)\.",
        best,
    )
    assert re.fullmatch(r"Over PyTorch CPU, the speedup is (1\.9\d|2\.0\d)x \(95 % CI .*\)\.", over)
    (alone,) = verdict(only(measured, "eager", "ort"))  # the baseline is the fastest of the others
    assert "the fastest of the others (PyTorch CPU" in alone


def test_no_difference_and_a_slowdown_are_told_as_such(measured: BenchResult) -> None:
    same = Simulation({"eager": Simulated(noisy(10.0)), "ort": Simulated(noisy(10.0))}).go(METHOD)
    assert "does not differ significantly from the fastest of the others" in verdict(same)[0]
    slower = Simulation({"eager": Simulated(fixed(5.0)), "ort": Simulated(fixed(10.0))}).go(METHOD)
    (sentence,) = verdict(slower)
    assert "is slower than the fastest of the others (PyTorch CPU, 5.00 ms): 0.50x speedup" in sentence


def test_an_unstable_pair_gets_no_ratio() -> None:
    shaky = Simulation(
        {"eager": Simulated(fixed(4.0)), "ort": Simulated(noisy(1.0, 0.9))}, round_factor=lambda number, _: 1.0 + number
    )
    sentence, quick = verdict(shaky.go(QUICK))
    assert sentence.endswith("are unstable, and the rounds too few for an interval: no speedup is given.")
    assert re.search(r"\dx", sentence) is None and quick == "A quick look: not for publication."


def test_too_few_rounds_and_low_confidence_stand_in_brackets() -> None:
    stable = Simulation({"eager": Simulated(fixed(4.0)), "ort": Simulated(fixed(1.0))}).go(QUICK)
    assert "has a 4.00x speedup (too few rounds for an interval) over" in verdict(stable)[0]
    two_modes = Simulated(lambda index, generator: 4.0 if generator.random() < 0.5 else 8.0)
    unstable = Simulation({"eager": two_modes, "ort": Simulated(fixed(1.0))}).go(METHOD)
    assert re.search(r"x speedup \(95 % CI [\d.]+ to [\d.]+, low confidence\) over", verdict(unstable)[0])


def test_one_side_alone_or_nothing(measured: BenchResult) -> None:
    (model,) = measured.models
    (ours,) = verdict_of(only(measured, "ort", "ort-fused"), model)
    assert ours.startswith("At batch 8, stn-infer, onnxruntime CPU, no plugin is the fastest: ")
    (theirs,) = verdict_of(only(measured, "eager"), model)
    assert theirs.endswith("ms per call. Nothing of stn-infer was timed.")
    assert verdict_of(only(measured, "ort-fused"), model) == ["Nothing was timed at batch 8."]  # its outputs are wrong


def test_several_models_are_summed_up(measured: BenchResult) -> None:
    (model,) = measured.models
    slow = Simulation({"eager": Simulated(fixed(5.0)), "ort": Simulated(fixed(10.0))}, batch_sizes=(8,)).go(METHOD)
    rows = tuple(replace(row, model="other") for row in slow.measurements)
    both = replace(measured, models=(model, replace(model, name="other")), measurements=(*measured.measurements, *rows))
    (sentence,) = verdict(both)
    assert re.fullmatch(
        r"stn-infer is significantly faster than everything else for 1 of 2 models, with a speedup of 1\.[45]\dx over "
        r"the fastest of the others, at the largest batch size; it is significantly slower for 1\.",
        sentence,
    )
    assert verdict(only(both, "eager")) == ["No speedup is given for any of the 2 models."]


def test_times_have_three_digits() -> None:
    given = (0.04832, 1.0, 26.34, 412.4, 999.9, 12345.6)
    assert list(map(milliseconds, given)) == ["0.0483 ms", "1.00 ms", "26.3 ms", "412 ms", "1,000 ms", "12,346 ms"]
