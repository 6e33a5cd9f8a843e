"""``stn-infer bench``, ``bench compare`` and ``bench report`` on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from stn_infer.benchmarking.harness import session
from stn_infer.benchmarking.request import Method, Request
from stn_infer.benchmarking.result import BenchResult, read_result
from stn_infer.cli.bench import command
from stn_infer.cli.main import main
from stn_infer.errors import MissingDependencyError, ModelError, UsageError, VerificationError
from tests.support.benchmarking_sim import Simulated, Simulation, fixed, noisy

METHOD = Method(rounds=6, seconds=0.1, samples=66, turns=2, warmup_seconds=0.01)


class Small(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


SMALL = f"{__name__}:Small"


def simulated(**backends: Simulated) -> BenchResult:
    return Simulation(backends).go(METHOD)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests of the command line; the results are simulated."""
    requests: list[Request] = []

    def run_request(request: Request, *resolve: object, **extra: object) -> BenchResult:
        requests.append(request)
        return simulated(eager=Simulated(noisy(2.0)), ort=Simulated(noisy(1.0)))

    monkeypatch.setattr(session, "run_request", run_request)
    return requests


def test_bench_prints_a_table_and_writes_the_result(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    arguments = ["bench", SMALL, "--input-shape", "1,8,8", "--batch-sizes", "2", "--variant", "eager"]
    arguments += ["--rounds", "1", "--seconds", "0.01", "--samples", "4", "-o", str(output)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "1 rows in 1 rounds" in done.stderr  # the estimate of the duration
    assert "eager" in done.stdout and "wrote" in done.stdout
    fields = json.loads(output.read_text())
    assert len(fields["measurements"][0]["rounds"][0]["samples_ms"]) >= 4
    assert fields["command"].split()[0] == "stn-infer"


def test_options_become_a_request(asked: list[Request], tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    line = "bench cnn --batch-sizes 1,8 --rounds 7 --concurrency 1,2 --rate 50 --boundary device --threads 3 --seed 4"
    assert CliRunner().invoke(main, line.split(), catch_exceptions=False).exit_code == 0
    (request,) = asked
    assert request.cases[0].model == "cnn" and request.cases[0].batch_sizes == (1, 8)
    assert (request.method.rounds, request.method.concurrency, request.method.rates) == (7, (1, 2), (50.0,))
    assert (request.method.boundary, request.threads, request.method.seed) == ("device", 3, 4)
    assert "trt" in request.variants and "compile" in request.variants
    CliRunner().invoke(main, ["bench", "cnn", "--precision", "int8", "--inputs", str(tmp_path)], catch_exceptions=False)
    assert (asked[1].cases[0].precision, asked[1].cases[0].inputs) == ("int8", (str(tmp_path),))


def test_quick_is_quicker(asked: list[Request]) -> None:
    done = CliRunner().invoke(main, ["bench", "--quick", "cnn"], catch_exceptions=False)
    assert done.exit_code == 0
    omitted = "compile, fused, compile-fused, ort-binding, openvino-plain, openvino, openvino-fused"
    assert f"--quick omits {omitted}; add one with --variant" in done.stderr
    assert asked[0].method.quick and "compile" not in asked[0].variants
    assert session.expected_seconds(asked[0]) * asked[0].method.rounds < 30


def test_a_suite_is_read_and_the_command_line_takes_precedence(asked: list[Request], tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text('variants = ["ort"]\nrounds = 8\n[[model]]\nsource = "cnn"\n[[model]]\nsource = "fcn"\n')
    CliRunner().invoke(main, ["bench", "--suite", str(path)], catch_exceptions=False)
    line = ["bench", "--suite", str(path), "--variant", "eager", "--rounds", "2", "--device", "cpu"]
    CliRunner().invoke(main, line, catch_exceptions=False)
    CliRunner().invoke(main, ["bench", "--suite", str(path), "--quick"], catch_exceptions=False)
    assert [request.variants for request in asked[:2]] == [("ort",), ("eager",)]
    assert [request.method.rounds for request in asked] == [8, 2, 3]
    assert [case.model for case in asked[0].cases] == ["cnn", "fcn"] and asked[0].method.rounds == 8
    assert asked[2].variants == ("ort",)  # --quick does not replace the variants of a suite


def test_resume_takes_the_request_from_the_file(asked: list[Request], tmp_path: Path) -> None:
    path = tmp_path / "half.json"
    half = simulated(ort=Simulated(noisy(1.0)))
    path.write_text(replace(half, log=half.log[:3]).to_json())
    CliRunner().invoke(main, ["bench", "--resume", str(path), "--debug"], catch_exceptions=False)
    assert asked == [half.request]


def test_options_without_effect_are_refused(asked: list[Request], tmp_path: Path) -> None:
    for line, message in (
        ("--resume half.json --rounds 9", "--rounds has no effect with --resume"),
        ("--resume half.json --variant ort", "--variant has no effect with --resume"),
        ("--suite suite.toml --batch-sizes 8", "--batch-sizes has no effect with --suite: set it in the file"),
    ):
        done = CliRunner().invoke(main, ["bench", *line.split()])
        assert done.exit_code == 2 and message in done.stderr
    assert not asked


def test_an_interruption_names_the_file_to_resume(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    output = tmp_path / "result.json"

    def interrupted(request: Request, *resolve: object, **extra: object) -> BenchResult:
        if written:
            output.write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "run_request", interrupted)
    written = False
    done = CliRunner().invoke(main, ["bench", "cnn", "-o", str(output)])
    assert done.exit_code == 130 and "--resume" not in done.stderr
    written = True
    done = CliRunner().invoke(main, ["bench", "cnn", "-o", str(output)])
    assert done.exit_code == 130 and f"stn-infer bench --resume {output}" in done.stderr


def test_compare_exits_with_1_on_a_regression(tmp_path: Path) -> None:
    old, new, broken = tmp_path / "old.json", tmp_path / "new.json", tmp_path / "broken.json"
    old.write_text(simulated(ort=Simulated(noisy(1.0))).to_json())
    new.write_text(simulated(ort=Simulated(noisy(1.3))).to_json())
    broken.write_text("{}")
    same = CliRunner().invoke(main, ["bench", "compare", str(old), str(old)], catch_exceptions=False)
    assert same.exit_code == 0 and "same" in same.stdout
    slower = CliRunner().invoke(main, ["bench", "compare", str(old), str(new)])
    assert slower.exit_code == 1 and "slower: ort at batch 4" in slower.stdout
    faster = CliRunner().invoke(main, ["bench", "compare", str(new), str(old)])
    assert faster.exit_code == 0 and "faster" in faster.stdout
    wide = CliRunner().invoke(main, ["bench", "compare", str(old), str(new), "--threshold", "50"])
    assert wide.exit_code == 0
    wrong = CliRunner().invoke(main, ["bench", "compare", str(old), str(broken), "--debug"])
    assert wrong.exit_code == 2


def test_report_writes_its_files(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is in the report extra")
    path = tmp_path / "result.json"
    path.write_text(simulated(ort=Simulated(noisy(1.0))).to_json())
    done = CliRunner().invoke(main, ["bench", "report", str(path), "-o", str(tmp_path)], catch_exceptions=False)
    assert done.stdout.count("wrote") == 4
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_exit_code_3_for_a_failed_variant_and_1_if_none_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    off = simulated(eager=Simulated(fixed(1.0)), ort=Simulated(fixed(1.0), off_by=1.0))
    none = simulated(ort=Simulated(fixed(1.0), error=MissingDependencyError("no such runtime")))
    monkeypatch.setattr(session, "run_request", lambda request, resolve, **extra: off)
    with pytest.raises(VerificationError, match="ort at batch 4: outputs are off") as caught:
        CliRunner().invoke(command, ["cnn"], catch_exceptions=False)
    assert caught.value.exit_code == 3
    monkeypatch.setattr(session, "run_request", lambda request, resolve, **extra: none)
    with pytest.raises(ModelError, match="nothing could be timed; ort: no such runtime"):
        CliRunner().invoke(command, ["cnn"], catch_exceptions=False)


def test_wrong_command_lines_are_usage_errors(tmp_path: Path) -> None:
    for line, message in (
        ("cnn --batch-sizes 1;2", "separated by commas"),
        ("", "exactly one of SOURCE, --suite FILE and --resume"),
        ("cnn --suite x.toml", "exactly one of SOURCE, --suite FILE and --resume"),
        ("--resume missing.json", "missing.json"),
        ("cnn --variant tvm", "variants are"),
    ):
        with pytest.raises(UsageError, match=message):
            CliRunner().invoke(command, line.split(), catch_exceptions=False)


def test_the_variants_can_be_listed_and_help_names_the_other_forms() -> None:
    listed = CliRunner().invoke(main, ["bench", "--list-variants"], catch_exceptions=False)
    assert "ort-fused-graph" in listed.stdout
    text = CliRunner().invoke(main, ["bench", "--help"], catch_exceptions=False).stdout
    assert "bench compare A.json B.json" in text and "bench report RESULT.json" in text
    assert "--threshold" in CliRunner().invoke(main, ["bench", "compare", "--help"], catch_exceptions=False).stdout


@pytest.mark.slow
def test_a_killed_benchmark_resumes(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = ["bench", "fcn", "--batch-sizes", "2", "--variant", "eager", "--rounds", "3", "--seconds", "0.05"]
    program = [sys.executable, "-m", "stn_infer.cli.main"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([*program, *arguments, "-o", str(output)], stderr=subprocess.DEVNULL, env=environment)
    deadline = time.monotonic() + 300
    while not output.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    half = read_result(output)
    assert 1 <= len(half.log) < 3
    subprocess.run([*program, "bench", "--resume", str(output)], check=True, stdout=subprocess.DEVNULL)
    whole = read_result(output)
    assert whole.complete and len(whole.measurements[0].rounds) == 3
    assert whole.measurements[0].rounds[: len(half.log)] == half.measurements[0].rounds
