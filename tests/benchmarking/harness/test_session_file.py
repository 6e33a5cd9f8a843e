"""A benchmark's file: it is resumed by the same benchmark only, one at a time writes it, and leftovers go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stn_infer.api.bench import resolve_case
from stn_infer.benchmarking.harness import session
from stn_infer.benchmarking.harness.session import check_same, run_request
from stn_infer.benchmarking.request import Method
from stn_infer.benchmarking.result import CALIBRATION, BenchResult, read_result
from stn_infer.errors import OutputError, UsageError
from stn_infer.pipeline.lock import JobLock
from tests.support.benchmarking_sim import Simulated, Simulation, fixed


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> BenchResult:
    """A result, which every benchmark then has without measuring."""
    made = Simulation({"ort": Simulated(fixed(1.0))}).go(Method(rounds=3, seconds=0.1, samples=4, turns=2))
    monkeypatch.setattr(session, "measure", lambda *given, **named: made)
    return made


HASHES = ("weights", "network", "file", "external data", "plugin library", CALIBRATION)


@pytest.mark.parametrize("name", HASHES)
def test_a_benchmark_of_another_model_is_not_resumed_and_the_thing_named(result: BenchResult, name: str) -> None:
    (model,) = result.models
    before = replace(result, models=(replace(model, sha256=dict.fromkeys(HASHES, "a")),))
    now = replace(result, models=(replace(model, sha256={**dict.fromkeys(HASHES, "a"), name: "b"}),))
    check_same(before, before)
    with pytest.raises(UsageError, match=f"--resume needs the same models, and of simulated the {name} changed;"):
        check_same(before, now)


def test_a_benchmark_elsewhere_is_not_resumed_and_the_thing_named(result: BenchResult) -> None:
    (model,) = result.models
    result = replace(result, versions={"onnx": "1"}, settings={"threads": "1"})
    for changes, named in (
        (
            {"versions": {"onnx": "2", "torch": "2"}},
            "versions: onnx was 1, now 2; torch was none, now 2;",
        ),
        ({"settings": {"threads": "2"}}, "settings: threads was 1, now 2; measure again"),
        ({"machine": replace(result.machine, cpu="another")}, "machine: cpu was .*, now another; measure again"),
        ({"models": (replace(model, inputs_sha256={"1": "x"}),)}, "models, and of simulated the inputs changed;"),
        ({"models": (replace(model, name="other"),)}, "models, and their names or precisions have changed;"),
    ):
        with pytest.raises(UsageError, match=f"--resume needs the same {named}") as caught:
            check_same(result, replace(result, **changes))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_one_benchmark_writes_a_file(result: BenchResult, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    with JobLock.of_file(output), pytest.raises(OutputError, match=r"another job is writing .*result\.json") as caught:
        run_request(result.request, resolve_case, output=output)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    run_request(result.request, resolve_case, output=output)
    assert read_result(output) == result and list(tmp_path.iterdir()) == [output]


def test_what_a_killed_benchmark_left_is_removed(result: BenchResult, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    for name in (".result.json.abc.part", ".result.json.lock", ".other.json.abc.part"):
        (tmp_path / name).write_text("{")
    run_request(result.request, resolve_case, output=output)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.json.abc.part", "result.json"]


def test_a_result_that_another_process_has_continued_is_not_overwritten(result: BenchResult, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    run_request(result.request, resolve_case, output=output)
    earlier = replace(result, log=result.log[:1])
    before = output.read_bytes()
    with pytest.raises(OutputError, match=r"another process has continued .*result\.json meanwhile"):
        run_request(result.request, resolve_case, output=output, earlier=earlier)
    assert output.read_bytes() == before
    output.write_text("{}")  # something else, which is replaced as always
    run_request(result.request, resolve_case, output=output, earlier=earlier)
    assert output.read_bytes() == before
